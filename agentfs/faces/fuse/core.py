"""The operations of a mount in plain values, over one `FileService`: what every binding to the kernel shares.

It knows no binding and translates no error; failures are `OSError` (or a bug, which a binding answers with EIO).
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import select
import stat as _stat
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import trio

from agentfs.errors import error
from agentfs.faces.fuse.answers import Attr, Opened
from agentfs.faces.fuse.blocked import Blocked, Opener
from agentfs.faces.fuse.directories import Directories
from agentfs.faces.fuse.inodes import Inodes, Node
from agentfs.faces.fuse.keeping import Content, Keeping
from agentfs.faces.fuse.owners import Owners, shown
from agentfs.service import FileHandle, FileService
from agentfs.types import Kind, Mode, Path, Stat, Want, clean, join

log = logging.getLogger(__name__)

Usage: TypeAlias = Callable[[], Awaitable[tuple[int, int]]]
"""Bytes used and bytes there are."""

RENAME_NOREPLACE: Final = 1
_CLOSE_S: Final = 2.0
_ALONE: Final = frozenset({Kind.CTL, Kind.CALL, Kind.QUEUE})


@dataclass(slots=True, eq=False)
class _Open:
    node: Node
    handle: FileHandle
    mode: Mode
    opener: Opener
    is_nonblocking: bool
    reads: int = 0
    notify: Callable[[], None] | None = None
    watching: trio.CancelScope | None = None


def _mode_of(flags: int) -> Mode:
    access = flags & os.O_ACCMODE
    if access == os.O_RDONLY:
        return Mode.READ
    mode = Mode.WRITE if access == os.O_WRONLY else Mode.READ | Mode.WRITE
    if flags & os.O_TRUNC:
        mode |= Mode.TRUNCATE
    return mode | Mode.APPEND if flags & os.O_APPEND else mode


class Core:
    """One mounted tree. Every operation may run concurrently with every other; only reads of streams block.

    *aliases*: each lookup of a file that takes commands gets a number of its own, since the kernel holds a lock for
    each number while it writes, and a slow command must not hold up the next. Only where numbers and inodes can differ.
    *keeps*: what holds ``until`` something changes may be kept; `Keeping.changed` must then be called when it does.
    """

    def __init__(
        self, service: FileService, *, usage: Usage | None = None, max_blocked: int = 4096,
        lent: tuple[int, int] | None = None, aliases: bool = False, keeps: bool = False,
    ) -> None:  # fmt: skip
        self.keeping = Keeping(is_on=keeps)
        self.alone = _ALONE if aliases else frozenset()
        self._service, self._usage, self._owners = service, usage, Owners(lent)
        self.inodes = Inodes()
        self.blocked = Blocked(max_blocked)
        self._numbers = itertools.count(1)
        self._born_ns = time.time_ns()  # shown for files of which no change is known
        self._open: dict[int, _Open] = {}
        self._open_on: dict[int, dict[int, _Open]] = {}
        self.directories = Directories(service, self.inodes, self, self.keeping, self._numbers)

    def start(self, nursery: trio.Nursery) -> None:
        """Begin work: background tasks live in *nursery*."""
        self._nursery = nursery

    # names

    def _child(self, parent: int, name: bytes) -> Path:
        return clean(join(self.inodes.get(parent).path, os.fsdecode(name)))

    async def lookup(self, parent: int, name: bytes) -> Attr:
        """Attributes of *name*; counts one lookup. ENOENT."""
        path, turn = self._child(parent, name), self.keeping.turn
        return self._entry(path, self._known(path) or await self._service.stat(path), turn)

    def _known(self, path: Path) -> Stat | None:
        node = self.inodes.at(path)
        return self.keeping.stat(node.ino) if node is not None else None

    def _entry(self, path: Path, stat: Stat, turn: int) -> Attr:
        node = self.inodes.see(path, stat)
        if stat.kind in self.alone:
            return self.attr(node, stat)._replace(node=self.inodes.alias(node))
        node.lookups += 1
        return self.told(node, stat, turn)

    def told(self, node: Node, stat: Stat, turn: int) -> Attr:
        """What the kernel is told of *node*, which at *turn* was what *stat* says, with what it may keep of that."""
        attr, name = self.held(node, stat, turn), self.keeping.keeps_name(stat, turn)
        return attr._replace(keeps_name=True) if name else attr

    def held(self, node: Node, stat: Stat, turn: int) -> Attr:
        """The same where no name led there."""
        attr = self.attr(node, stat)
        return attr._replace(keeps=True) if self.keeping.keeps(node, stat, attr.size, turn) else attr

    def forget(self, ino: int, count: int) -> None:
        """The kernel dropped *count* lookups."""
        self.inodes.forget(ino, count)
        if ino not in self.inodes:
            self.keeping.forget(ino)

    async def mkdir(self, parent: int, name: bytes) -> Attr:
        """Make a directory; counts one lookup."""
        path = self._child(parent, name)
        await self._service.mkdir(path)
        turn = self.keeping.turn
        return self._entry(path, await self._service.stat(path), turn)

    async def remove(self, parent: int, name: bytes, tid: int) -> None:
        """Unlink or rmdir: the kernel has checked which. EPERM for a walk (``rm -r``) through a protected directory.

        A directory with the sticky bit is protected: a thread that holds it open may remove nothing below it.
        """
        path = self._child(parent, name)
        if self.directories.is_walked(path, tid):
            raise error(errno.EPERM, path, "a walk must not remove what a living agent holds; remove it by name")
        await self._service.remove(path)
        self.inodes.retire(path)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """Rename; RENAME_NOREPLACE gives EEXIST, every other flag is EINVAL."""
        old, new = self._child(parent, name), self._child(new_parent, new_name)
        if flags & ~RENAME_NOREPLACE:
            raise error(errno.EINVAL, new, f"rename flags {flags:#x}")
        await self._service.rename(old, new, want=Want(exclusive=bool(flags & RENAME_NOREPLACE)))
        self.inodes.move(old, new)

    # attributes

    def attr(self, node: Node, stat: Stat) -> Attr:
        """What the kernel is told of *node*, which is what *stat* says."""
        size = self._open_size(node.ino)
        if size is None:
            size = self.keeping.size(node.ino, stat)
        return Attr(
            node.ino, node.ino, shown(stat.mode), size, stat.mtime_ns or self._born_ns, self._owners.of(node.path)
        )

    def _open_size(self, ino: int) -> int | None:
        """The size of what was opened last of *ino* to be read, if it is still open."""
        opened = reversed(self._open_on.get(ino, {}).values())
        return next((size for open_ in opened if (size := open_.handle.size) is not None), None)

    async def stat(self, node: Node) -> Stat:
        """What the service says of *node*, wherever it has been moved to meanwhile. ESTALE when it is gone."""
        if (known := self.keeping.stat(node.ino)) is not None:
            return known
        while True:
            path = node.path
            try:
                stat = await self._service.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                if path != node.path:
                    continue
                if node.draft is not None and any(o.node is node for o in self._open.values()):
                    return node.draft
                self.inodes.retire(path)
                raise error(errno.ESTALE, path, "file was removed") from None
            if path == node.path:
                self.inodes.recognise(node, stat)
                return stat

    async def getattr(self, ino: int) -> Attr:
        """Attributes of *ino*. ESTALE when its file is gone."""
        node, turn = self.inodes.get(ino), self.keeping.turn
        return self.held(node, await self.stat(node), turn)

    async def setattr(
        self,
        ino: int,
        fh: int | None,
        *,
        size: int | None = None,
        mode: int | None = None,
        owner: tuple[int | None, int | None] = (None, None),
    ) -> Attr:
        """Truncate; a mode or owner that is already shown is accepted, any other EPERM; times are ignored."""
        node = self.inodes.get(ino)
        stat = await self.stat(node)
        if mode is not None and (mode ^ shown(stat.mode)) & 0o7777:
            raise error(errno.EPERM, node.path, "the mode says what the file can do and cannot be changed")
        if any(new not in (None, now) for new, now in zip(owner, self._owners.of(node.path), strict=True)):
            raise error(errno.EPERM, node.path, "the owner cannot be changed")
        if size is not None:
            await self._truncate(node, fh, size)
            stat = await self.stat(node)
        return self.attr(node, stat)

    async def _truncate(self, node: Node, fh: int | None, size: int) -> None:
        if fh is not None:
            await self._file(fh).handle.truncate(size)
            return
        async with await self._service.open(node.path, Mode.WRITE) as handle:
            await handle.truncate(size)
            await handle.flush(final=True)

    async def statfs(self) -> tuple[int, int]:
        """Bytes used and bytes there are; zeros where nobody counts."""
        return await self._usage() if self._usage is not None else (0, 0)

    # open files

    def _file(self, fh: int) -> _Open:
        file = self._open.get(fh)
        if file is None:
            raise error(errno.EBADF, detail=f"no open file {fh}")
        return file

    def _keep(self, node: Node, handle: FileHandle, flags: int, tid: int) -> Opened:
        fh = next(self._numbers)
        opener = Opener(tid, node.ino)
        file = _Open(node, handle, _mode_of(flags), opener, bool(flags & os.O_NONBLOCK))
        self._open[fh] = file
        if Mode.READ in file.mode:
            self._open_on.setdefault(node.ino, {})[fh] = file
            self._show_size(node.ino)
        if not handle.is_ready():
            opener.settle()
        return Opened(fh, Mode.WRITE in file.mode, handle.descriptor)

    def _show_size(self, ino: int) -> None:
        if (size := self._open_size(ino)) is not None:
            self.keeping.shows(ino, size)

    async def open(self, ino: int, flags: int, tid: int) -> Opened:
        """Open a file for thread *tid*. ESTALE when it is gone."""
        node, mode, turn = self.inodes.get(ino), _mode_of(flags), self.keeping.turn
        if mode is Mode.READ and (content := self.keeping.content(node.ino)) is not None:
            return self._keep(node, Content(content), flags, tid)
        try:
            handle = await self._service.open(node.path, mode)
        except FileNotFoundError:
            raise error(errno.ESTALE, node.path, "file was removed") from None
        if mode is Mode.READ and (content := self.keeping.read(node.ino, handle, turn)) is not None:
            await handle.aclose()
            handle = Content(content)
        return self._keep(node, handle, flags, tid)

    async def create(self, parent: int, name: bytes, flags: int, tid: int) -> tuple[Opened, Attr]:
        """Create and open; counts one lookup. EEXIST with O_EXCL."""
        path = self._child(parent, name)
        handle = await self._service.create(path, _mode_of(flags), want=Want(exclusive=bool(flags & os.O_EXCL)))
        try:
            node, stat = await self._created(path)
            opened = self._keep(node, handle, flags, tid)
        except BaseException:
            await handle.aclose()
            raise
        node.lookups += 1
        return opened, self.attr(node, stat)

    async def _created(self, path: Path) -> tuple[Node, Stat]:
        try:
            stat = await self._service.stat(path)
        except FileNotFoundError:
            stat = Stat(path.rpartition("/")[2], _stat.S_IFREG | 0o600)
            return self.inodes.draft(path, stat), stat
        return self.inodes.see(path, stat), stat

    async def mknod(self, parent: int, name: bytes, mode: int) -> Attr:
        """Create a regular file; counts one lookup. EPERM for anything else."""
        if not _stat.S_ISREG(mode):
            raise error(errno.EPERM, detail="only regular files and directories can be made")
        opened, attr = await self.create(parent, name, os.O_WRONLY | os.O_EXCL, 0)
        await self.release(opened.fh)
        return attr

    def known(self, fh: int, size: int, offset: int) -> bytes | None:
        """What `read` gives, if nothing has to be asked for it."""
        handle = self._file(fh).handle
        return handle.content[offset : offset + size] if type(handle) is Content else None

    async def read(self, fh: int, size: int, offset: int) -> bytes:
        """Up to *size* bytes; only a stream that is not ready blocks (EAGAIN if opened O_NONBLOCK)."""
        file = self._file(fh)
        if file.reads or not file.handle.is_ready():
            return await self._read_stream(file, size, offset)
        file.reads += 1
        try:
            return _checked(await file.handle.read(size, offset), size)
        finally:
            file.reads -= 1

    async def _read_stream(self, file: _Open, size: int, offset: int) -> bytes:
        if file.is_nonblocking and not file.handle.is_ready():
            self._watch(file)
            raise error(errno.EAGAIN, file.node.path)
        file.reads += 1
        try:
            return _checked(await self.blocked.run(file.opener, lambda: file.handle.read(size, offset)), size)
        finally:
            file.reads -= 1

    def takes(self, fh: int, data: bytes, offset: int) -> bool:
        """Whether all of *data* was taken at once; else nothing is done, and it is a case for `write`."""
        return self._file(fh).handle.write_nowait(data, offset)

    async def write(self, fh: int, data: bytes, offset: int) -> int:
        """The number of bytes taken; what they complete is committed."""
        taken = await self._file(fh).handle.write(data, offset)
        if not 0 <= taken <= len(data):
            raise RuntimeError(f"write of {len(data)} bytes took {taken}")
        return taken

    async def flush(self, fh: int) -> None:
        """Commit what is complete: at each close of a descriptor, and for fsync."""
        await self._file(fh).handle.flush()

    async def release(self, fh: int) -> None:
        """The last descriptor is closed."""
        file = self._open.pop(fh, None)
        if file is None:
            return
        readers = self._open_on.get(file.node.ino, {})
        readers.pop(fh, None)
        if not readers:
            self._open_on.pop(file.node.ino, None)
        self._show_size(file.node.ino)
        file.notify = None
        if file.watching is not None:
            file.watching.cancel()
        await file.handle.aclose()

    def poll(self, fh: int, notify: Callable[[], None] | None) -> int:
        """The poll(2) events that hold now; *notify* replaces an older one and is called once when that may change."""
        file = self._file(fh)
        events = select.POLLOUT | select.POLLWRNORM if Mode.WRITE in file.mode else 0
        if Mode.READ in file.mode and file.handle.is_ready():
            events |= select.POLLIN | select.POLLRDNORM
        elif Mode.READ in file.mode and notify is not None:
            file.notify = notify
            self._watch(file)
        return events

    def _watch(self, file: _Open) -> None:
        if file.watching is None:
            file.watching = trio.CancelScope()
            self._nursery.start_soon(self._await_ready, file, file.watching)

    async def _await_ready(self, file: _Open, scope: trio.CancelScope) -> None:
        try:
            with scope:
                if not file.handle.is_ready():  # it may have become so before this task began
                    await file.handle.wait_ready()
        except Exception as exc:
            if not isinstance(exc, OSError):  # an OSError the woken reader gets by itself
                log.exception("waiting for %r failed", file.node.path)
        finally:
            file.watching = None
            notify, file.notify = file.notify, None
        if notify is not None:
            notify()

    async def aclose(self) -> None:
        """The mount is gone: close every open file, as the kernel no longer will. At most 2 s."""
        self.blocked.end()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_S):
            for fh in list(self._open):
                try:
                    await self.release(fh)
                except Exception:
                    log.exception("closing an open file failed")


def _checked(data: bytes, size: int) -> bytes:
    if not isinstance(data, bytes) or len(data) > size:
        raise RuntimeError(f"read of {size} bytes gave {type(data).__name__} of {len(data)}")
    return data
