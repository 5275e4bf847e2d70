"""Open directories: positions, entries, and which of them a walk must not empty. What an entry is, the core says."""

from __future__ import annotations

import errno
import os
import stat as _stat
from collections.abc import Callable, Iterator
from typing import Protocol

from agentfs.errors import error
from agentfs.faces.fuse.answers import Attr, OpenedDirectory
from agentfs.faces.fuse.inodes import Inodes, Node
from agentfs.faces.fuse.keeping import Keeping
from agentfs.faces.fuse.listing import Listing
from agentfs.service import FileService
from agentfs.types import Kind, Path, Stat, join


class Known(Protocol):
    """What is asked of the core. ``alone``: the kinds of files of which each lookup has a number of its own."""

    alone: frozenset[Kind]

    def attr(self, node: Node, stat: Stat) -> Attr:
        """What the kernel is told of *node* where it keeps nothing."""
        ...

    def forget(self, ino: int, count: int) -> None:
        """The kernel knows *ino* by *count* lookups less."""
        ...

    def told(self, node: Node, stat: Stat, turn: int) -> Attr:
        """What the kernel is told of *node*, which at *turn* was what *stat* says."""
        ...

    def held(self, node: Node, stat: Stat, turn: int) -> Attr:
        """The same where no name led there."""
        ...

    async def stat(self, node: Node) -> Stat:
        """What the service says of *node*."""
        ...


class Directories:
    """The open directories of one mount."""

    def __init__(
        self, service: FileService, inodes: Inodes, known: Known, keeping: Keeping, numbers: Iterator[int]
    ) -> None:
        self._service, self._inodes, self._known, self._numbers = service, inodes, known, numbers
        self._keeping = keeping
        self._listings: dict[int, tuple[Node, Listing]] = {}
        self._kept: dict[int, int] = {}  # directories the kernel may keep entries of: by which open one
        self._walking: dict[int, tuple[int, Node]] = {}  # open protected directories: thread and node

    def is_walked(self, path: Path, tid: int) -> bool:
        """Whether thread *tid* holds a protected directory above *path* open, as ``rm -r`` does."""
        return any(walker == tid and path.startswith(f"{node.path}/") for walker, node in self._walking.values())

    async def open(self, ino: int, tid: int) -> OpenedDirectory:
        """Open the directory for thread *tid*. ENOTDIR.

        The kernel keeps what one reader gets under the mtime that another may find later: only one at a time may.
        """
        node, turn = self._inodes.get(ino), self._keeping.turn
        stat = await self._known.stat(node)
        if not stat.is_dir:
            raise error(errno.ENOTDIR, node.path)
        fh = next(self._numbers)
        if stat.mode & _stat.S_ISVTX:
            self._walking[fh] = tid, node
        self._listings[fh] = node, Listing(self._service, node.path, lambda: self._keeping.turn)
        keeps = stat.lists and node.ino not in self._kept and self._known.held(node, stat, turn).keeps
        if keeps:
            self._kept[node.ino] = fh
        return OpenedDirectory(fh, keeps)

    async def read(
        self, fh: int, index: int, emit: Callable[[bytes, Attr, int], bool], *, is_lookup: bool = True
    ) -> None:
        """Give entries from position *index* on to *emit* (name, attributes, next position) until it gives False.

        With *is_lookup* each entry taken counts as one, but those to be looked up each time. Nothing is opened or
        rendered. EBADF.
        """
        if fh not in self._listings:
            raise error(errno.EBADF, detail=f"no open directory {fh}")
        top, listing = self._listings[fh]
        listing.path, counted = top.path, list[Node]()
        try:
            while (found := await listing.at(index))[0]:
                page, turn = found
                for stat in page:
                    index += 1
                    node = self._inodes.see(join(listing.path, stat.name), stat)
                    is_counted = is_lookup and stat.kind not in self._known.alone
                    attr = self._known.told(node, stat, turn) if is_counted else self._known.attr(node, stat)
                    is_taken = emit(os.fsencode(stat.name), attr if is_counted else attr._replace(node=0), index)
                    if is_taken and is_counted:
                        node.lookups += 1
                        counted.append(node)
                    else:
                        self._known.forget(node.ino, 0)
                    if not is_taken:
                        return
        except BaseException:
            for node in counted:  # nobody gets to know of them
                self._known.forget(node.ino, 1)
            raise

    def close(self, fh: int) -> None:
        """The directory is closed."""
        top, _ = self._listings.pop(fh, (None, None))
        if top is not None and self._kept.get(top.ino) == fh:
            del self._kept[top.ino]
        self._walking.pop(fh, None)
