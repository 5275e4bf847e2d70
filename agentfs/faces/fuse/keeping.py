"""What is kept of files until a change tells: attributes and names by the kernel, the same and small contents by us.

It says what may be kept and for how long; what a file is, the core says.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Final

from agentfs.faces.fuse.inodes import Node
from agentfs.service import FileHandle
from agentfs.types import Facet, Stat

_SMALL: Final = 1 << 16
_CONTENTS: Final = 1024


class Keeping:
    """The changes that end what is kept, by the number of a file; *is_on*: `changed` is called at each.

    ``turn`` rises with each change: an answer that was begun before one is not kept. ``recall`` is of a binding that
    can: it has the kernel ask anew for the attributes of some numbers, and for all names.
    """

    def __init__(self, *, is_on: bool) -> None:
        self._is_on, self.turn = is_on, 0
        self._files: dict[Facet, set[int]] = {}  # of which something is kept until each changes
        self._known: dict[int, Stat] = {}  # the same by number
        self._names: set[Facet] = set()
        self._sizes: dict[int, int] = {}  # that the kernel may keep
        self._contents: OrderedDict[int, bytes] = OrderedDict()
        self.recall: Callable[[Collection[int], bool], None] = lambda numbers, names: None

    def keeps_name(self, stat: Stat, turn: int) -> bool:
        """Whether what *stat* said at *turn* of a name holds until a change tells; the kernel may then keep it."""
        if not self._is_on or stat.named is None or turn != self.turn:
            return False
        self._names.update(stat.named)
        return True

    def keeps(self, node: Node, stat: Stat, shown: int, turn: int) -> bool:
        """The same for all that *stat* said of *node*, whose size is given as *shown*.

        That is another one while an older content is open, which no facet tells.
        """
        ino = node.ino
        if not self._is_on or stat.until is None or stat.named is None or turn != self.turn:
            return False
        if (known := self._known.get(ino)) is not stat:
            if known is None or _facets(known) != _facets(stat):
                self.forget(ino)
                for facet in _facets(stat):
                    self._files.setdefault(facet, set()).add(ino)
            self._known[ino] = stat
        if shown != self.size(ino, stat):
            return False
        if not stat.is_dir:
            self._sizes[ino] = shown
        return True

    def stat(self, ino: int) -> Stat | None:
        """What the service says of *ino* now, if that is known."""
        return self._known.get(ino)

    def size(self, ino: int, stat: Stat) -> int:
        """The size of what *ino* holds now: of many files it is known once they were read."""
        content = self._contents.get(ino)
        return stat.size if content is None else len(content)

    def shows(self, ino: int, size: int) -> None:
        """*size* is now that of *ino*, for what is open of it: the kernel must not go on with another one."""
        if self._sizes.get(ino, size) != size:
            del self._sizes[ino]
            self.recall((ino,), False)

    def read(self, ino: int, handle: FileHandle, turn: int) -> bytes | None:
        """What all reads of *handle* give, which was opened at *turn*, if it may be given to others who open *ino*."""
        size = handle.size
        if size is None or size > _SMALL or turn != self.turn or ino not in self._known:
            return None
        content = handle.content
        if content is not None:
            self._contents[ino] = content
            if len(self._contents) > _CONTENTS:
                self._contents.popitem(last=False)
        return content

    def content(self, ino: int) -> bytes | None:
        """What is in *ino* now, if that is known."""
        return self._contents.get(ino)

    def changed(self, facet: Facet) -> None:
        """What was kept until *facet* changed is kept no longer."""
        self.turn += 1
        numbers, names = self._files.get(facet, set()).copy(), facet in self._names
        for ino in numbers:
            self.forget(ino)
        if names:
            self._names.clear()  # the kernel forgets all of them
        if numbers or names:
            self.recall(numbers, names)

    def forget(self, ino: int) -> None:
        """Nothing is kept of *ino* any more."""
        self._contents.pop(ino, None)
        self._sizes.pop(ino, None)
        for facet in _facets(self._known.pop(ino, None)):
            numbers = self._files.get(facet, set())
            numbers.discard(ino)
            if not numbers:
                self._files.pop(facet, None)


def _facets(stat: Stat | None) -> tuple[Facet, ...]:
    return () if stat is None else (*(stat.until or ()), *(stat.named or ()))


class Content(FileHandle):
    """An open file of which all is known: nothing is asked of its service any more."""

    content: bytes = b""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @property
    def size(self) -> int:
        return len(self.content)

    async def read(self, size: int, offset: int) -> bytes:
        return self.content[offset : offset + size]
