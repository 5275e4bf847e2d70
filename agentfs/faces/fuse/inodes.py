"""The inode table: which number stands for which path, and for how long. No I/O, no attributes, no handles."""

from __future__ import annotations

import errno
import itertools
import stat as _stat
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from agentfs.errors import error
from agentfs.types import ROOT, Path, Stat

ROOT_INO: Final = 1
_FIRST_ALIAS: Final = 1 << 63  # inode numbers are below


@dataclass(slots=True, eq=False)
class Node:
    """One inode that the kernel may know.

    ``identity`` is the `qid.path` and file type it was last seen with (None: not known, the next sight decides).
    ``draft`` stands in for a file that was created and exists only once its document is committed.
    """

    ino: int
    path: Path
    identity: tuple[int, int] | None = None
    draft: Stat | None = None
    lookups: int = 0
    is_stale: bool = False


def _number(path: Path, identity: tuple[int, int]) -> int:
    seed = f"{identity[0]:x} {path}".encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(seed, digest_size=8).digest()) >> 1


def _identity(stat: Stat) -> tuple[int, int]:
    return stat.qid.path, _stat.S_IFMT(stat.mode)


class Inodes:
    """Numbers for paths: the same file has the same number as long as it keeps its path (and while renamed, known).

    A number is held while the kernel counts lookups on it, so it is never reused for another file too early.
    """

    def __init__(self) -> None:
        root = Node(ROOT_INO, ROOT)
        self._by_ino = {ROOT_INO: root}
        self._by_path = {ROOT: root}
        self._aliases: dict[int, Node] = {}
        self._numbers = itertools.count(_FIRST_ALIAS)

    def __len__(self) -> int:
        return len(self._by_ino) + len(self._aliases)

    def __contains__(self, ino: int) -> bool:
        return ino in self._by_ino

    def get(self, ino: int) -> Node:
        """The live node of *ino*, or of an alias. ESTALE when its file was removed or replaced."""
        node = self._by_ino.get(ino) or self._aliases.get(ino)
        if node is None or node.is_stale:
            raise error(errno.ESTALE, node.path if node else "", "file was removed or replaced")
        return node

    def at(self, path: Path) -> Node | None:
        """The live node that *path* stands for, if the kernel may know it."""
        return self._by_path.get(path)

    def see(self, path: Path, stat: Stat) -> Node:
        """The node for *path*, which now is what *stat* says; another file's number is retired."""
        identity = _identity(stat)
        node = self._by_path.get(path)
        if node is None:
            return self._add(path, identity)
        if self._is_same(node, identity):
            return node
        self._retire(node)
        return self._add(path, identity)

    def _is_same(self, node: Node, identity: tuple[int, int]) -> bool:
        if node.ino != ROOT_INO and node.identity not in (None, identity):
            return False
        node.identity, node.draft = identity, None
        return True

    def recognise(self, node: Node, stat: Stat) -> None:
        """Check that *stat*, found at the node's path, is the file the node stands for. ESTALE otherwise."""
        if self._by_path.get(node.path) is not node or not self._is_same(node, _identity(stat)):
            self._retire(node)
            raise error(errno.ESTALE, node.path, "file was removed or replaced")

    def draft(self, path: Path, stat: Stat) -> Node:
        """A new node for a file that was just created and that the service does not show yet."""
        self.retire(path)
        node = self._add(path, _identity(stat))
        node.identity, node.draft = None, stat
        return node

    def _add(self, path: Path, identity: tuple[int, int]) -> Node:
        ino = _number(path, identity)
        while ino <= ROOT_INO or ino in self._by_ino:
            ino = (ino + 1) & (1 << 63) - 1
        node = self._by_ino[ino] = self._by_path[path] = Node(ino, path, identity)
        return node

    def alias(self, node: Node) -> int:
        """A number of its own for *node*, for one lookup: the kernel locks per number. It counts as a lookup."""
        number = next(self._numbers)
        self._aliases[number] = node
        node.lookups += 1
        return number

    def forget(self, ino: int, count: int) -> None:
        """The kernel dropped *count* lookups of *ino*; an alias has exactly one."""
        node = self._by_ino.get(ino)
        if node is None and (node := self._aliases.pop(ino, None)) is not None:
            count = 1
        if node is not None:
            node.lookups = max(0, node.lookups - count)
            self.drop(node)

    def drop(self, node: Node) -> None:
        """Free *node*'s number unless the kernel knows it."""
        if node.lookups == 0 and node.ino != ROOT_INO:
            self._by_ino.pop(node.ino, None)
            if self._by_path.get(node.path) is node:
                del self._by_path[node.path]

    def retire(self, path: Path) -> None:
        """*path* no longer stands for the file it stood for."""
        node = self._by_path.get(path)
        if node is not None:
            self._retire(node)

    def _retire(self, node: Node) -> None:
        if node.ino == ROOT_INO:
            return
        node.is_stale = True
        if self._by_path.get(node.path) is node:
            del self._by_path[node.path]
        self.drop(node)

    def move(self, old: Path, new: Path) -> None:
        """*old* was renamed to *new*, replacing it: the subtree keeps its numbers, what was there is retired."""
        self.retire(new)
        for node in self._below(old):
            del self._by_path[node.path]
            node.path = Path(new + node.path[len(old) :])
            node.identity = None
            self._by_path[node.path] = node

    def _below(self, path: Path) -> list[Node]:
        node = self._by_path.get(path)
        if node is None:
            return []
        if node.identity is not None and node.identity[1] != _stat.S_IFDIR:
            return [node]
        return [node for at, node in self._by_path.items() if at == path or at.startswith(f"{path}/")]
