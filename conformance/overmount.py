"""A `FileService` whose every operation is a system call on a mounted tree, made in worker threads with a time limit.

The process that serves the mount must be another one. What a mount cannot say is in the table of `conformance.drivers`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path as FsPath
from typing import TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.to_thread
import msgspec

from agentfs.errors import error
from agentfs.service import FileHandle, FileService
from agentfs.types import NO_WANT, Kind, Mode, Path, Principal, Qid, Record, Stat, Want, join

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
CALL_S = 60.0
KindOf = Callable[[Path], Awaitable[Kind]]


async def call(run: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
    """One system call in a thread. ETIMEDOUT when it does not come back, which a file here never may."""
    with anyio.move_on_after(CALL_S):
        return await anyio.to_thread.run_sync(run, *args, abandon_on_cancel=True)
    raise error(errno.ETIMEDOUT, detail=f"{getattr(run, '__name__', run)}{args!r:.80}")


class MountTree(FileService):
    """The tree mounted at *top*; a mount shows no kinds, so *kind_of* is asked for them."""

    def __init__(self, top: FsPath, kind_of: KindOf) -> None:
        self._top, self._kind_of = top, kind_of

    def attach(self, principal: Principal) -> FileService:
        raise error(errno.EOPNOTSUPP, detail="the mount is attached already")

    def _at(self, path: Path) -> str:
        return f"{self._top}/{path}" if path else str(self._top)

    async def _stat(self, path: Path, found: os.stat_result) -> Stat:
        kind = await self._kind_of(path)
        qid = Qid(found.st_ino, found.st_mtime_ns)
        return Stat(path.rpartition("/")[2], found.st_mode, found.st_size, found.st_mtime_ns, qid, kind)

    async def stat(self, path: Path) -> Stat:
        return await self._stat(path, await call(os.lstat, self._at(path)))

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        names = sorted(name for name in await call(os.listdir, self._at(path)) if name > after)
        return [await self.stat(join(path, name)) for name in names[:limit]]

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        if "@" in path.rpartition("/")[2]:
            return Follower(await call(os.open, self._at(path), _flags(mode) | os.O_NONBLOCK), path)
        handle = MountHandle(await call(os.open, self._at(path), _flags(mode)), path, mode)
        if (await call(os.fstat, handle.fd)).st_mode & 0o040000:
            await handle.aclose()
            raise error(errno.EISDIR, path)
        return handle

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        flags = _flags(mode) | os.O_CREAT | (os.O_EXCL if want.exclusive else 0)
        return MountHandle(await call(os.open, self._at(path), flags, 0o666), path, mode)

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> None:
        await call(os.mkdir, self._at(path))

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> None:
        is_dir = (await call(os.lstat, self._at(path))).st_mode & 0o170000 == 0o040000
        await call(os.rmdir if is_dir else os.unlink, self._at(path))

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        if want.exclusive:  # Python has no renameat2; mv -n asks for it and says nothing, so look first
            raise error(errno.EOPNOTSUPP, new, "RENAME_NOREPLACE is tested by conformance.posix")
        await call(os.rename, self._at(old), self._at(new))


def _flags(mode: Mode) -> int:
    flags = {Mode.READ: os.O_RDONLY, Mode.WRITE: os.O_WRONLY, Mode.READ | Mode.WRITE: os.O_RDWR}[
        mode & (Mode.READ | Mode.WRITE)
    ]
    flags |= os.O_TRUNC if Mode.TRUNCATE in mode else 0
    return flags | (os.O_APPEND if Mode.APPEND in mode else 0) | os.O_CLOEXEC


class MountHandle(FileHandle):
    """One descriptor. A flush is what closing a duplicate asks for, so that its error is seen; then fsync."""

    def __init__(self, fd: int, path: Path, mode: Mode) -> None:
        self.fd, self._path, self._mode = fd, path, mode
        self._is_untouched = Mode.TRUNCATE in mode

    async def read(self, size: int, offset: int) -> bytes:
        return await call(os.pread, self.fd, size, offset)

    async def write(self, data: bytes, offset: int) -> int:
        self._is_untouched = False
        if Mode.APPEND in self._mode:
            return await call(os.write, self.fd, data)
        return await call(os.pwrite, self.fd, data, offset)

    async def truncate(self, size: int) -> None:
        await call(os.ftruncate, self.fd, size)

    async def flush(self, *, final: bool = False) -> None:
        if final and self._is_untouched:  # emptied by its open alone, a file is stored when the kernel releases it
            await call(os.ftruncate, self.fd, 0)
        await call(lambda: os.close(os.dup(self.fd)))
        if Mode.WRITE in self._mode:
            await call(os.fsync, self.fd)

    async def aclose(self) -> None:
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        try:
            await call(os.close, fd)
        except OSError:
            return  # as for every close, nobody is told

    @property
    def size(self) -> int | None:
        return os.fstat(self.fd).st_size


class Follower(FileHandle):
    """A descriptor opened O_NONBLOCK and waited for with epoll, so that a waiting read can be cancelled."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd, self._path, self._rest = fd, path, b""

    async def read(self, size: int, offset: int) -> bytes:
        while True:
            try:
                return await call(os.read, self._fd, size)
            except BlockingIOError:
                await anyio.wait_readable(self._fd)

    async def next(self) -> Record | None:
        while b"\n" not in self._rest:
            more = await self.read(1 << 16, 0)
            if not more:
                return None
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        msgspec.json.decode(line)
        return Record("", line + b"\n")

    async def aclose(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            await call(os.close, fd)
