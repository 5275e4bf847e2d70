"""`HostHandle`: an open file of this machine: bytes at offsets, read from and written to it at once.

Nothing is looked up here. Small pieces are done where they are asked for, big ones in a thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

import anyio.to_thread

from agentfs.errors import BY_ERRNO, detail_of, error
from agentfs.providers.containers.room import BLOCK, Room
from agentfs.service import FileHandle
from agentfs.types import Mode, Path

T = TypeVar("T")
_SMALL: Final = 128 << 10
_PIECE: Final = 4 << 20
_LAST: Final = (1 << 63) - 1


class HostHandle(FileHandle):
    """A regular file by its descriptor, which is closed once, when nobody uses it any more.

    What is written is in the file at once, and lost with the machine's power: nothing is synced. With TRUNCATE the file
    is cut by the first operation on the handle, its close at the latest: opening has no effect.
    """

    def __init__(self, fd: int, path: Path, mode: Mode, most: int | None, room: Room | None = None) -> None:
        """*most*: EFBIG for what would make it longer, in bytes; *room*: ENOSPC for what it has no room for."""
        self._fd, self._path, self._mode = fd, path, mode
        self._most, self._room = _LAST if most is None else most, room
        if room is not None:
            room.open.add(fd)
        self._is_cut_pending = Mode.TRUNCATE in mode
        self._is_closed, self._users = False, 0

    @property
    def size(self) -> int | None:
        if self._is_closed:
            return None
        return 0 if self._is_cut_pending else os.fstat(self._fd).st_size

    @property
    def descriptor(self) -> int | None:
        return self._fd if self._mode is Mode.READ and not self._is_closed else None

    async def read(self, size: int, offset: int) -> bytes:
        self._check(Mode.READ)
        self._cut()
        if offset > _LAST - _PIECE:
            return b""
        most = min(size, _PIECE)
        return await self._do(most, lambda: os.pread(self._fd, most, offset))

    async def write(self, data: bytes, offset: int) -> int:
        self._check(Mode.WRITE)
        self._cut()
        about = os.fstat(self._fd)
        begin = about.st_size if Mode.APPEND in self._mode else offset
        self._fit(begin + len(data))
        if self._room is None or not (need := _need(about, begin, len(data))):
            return await self._put(data, begin)
        await self._take(self._room, need)
        with self._room.writing(need):
            return await self._put(data, begin)

    async def _take(self, room: Room, need: int) -> None:
        try:
            await room.take(need)
        except OSError as exc:
            raise error(exc.errno or errno.EIO, self._path, detail_of(exc)) from None
        self._check(Mode.WRITE)  # it may have been closed meanwhile

    async def _put(self, data: bytes, offset: int) -> int:
        return await self._do(len(data), lambda: os.pwrite(self._fd, data, offset))  # O_APPEND heeds no offset

    async def truncate(self, size: int) -> None:
        self._check(Mode.WRITE)
        self._cut()
        self._fit(size)
        await self._do(0, lambda: os.ftruncate(self._fd, size))
        self._freed()

    async def flush(self, *, final: bool = False) -> None:
        if not self._is_closed:
            self._cut()

    def discard(self) -> None:
        self._is_cut_pending = False

    async def aclose(self) -> None:
        if self._is_closed:
            return
        with suppress(OSError):  # a close has nobody to tell
            self._cut()
        self._is_closed = True
        self._leave()

    def _check(self, need: Mode) -> None:
        if self._is_closed:
            raise error(errno.EBADF, self._path)
        if need not in self._mode:
            raise error(errno.EBADF, self._path, "not opened for this")

    def _fit(self, size: int) -> None:
        if size > self._most:
            raise error(errno.EFBIG, self._path, f"over {self._most} bytes")

    def _cut(self) -> None:
        if self._is_cut_pending:
            self._is_cut_pending = False
            os.ftruncate(self._fd, 0)
            self._freed()

    def _freed(self) -> None:
        if self._room is not None:
            self._room.change()

    async def _do(self, size: int, call: Callable[[], T]) -> T:
        """*call*, for *size* bytes; the descriptor stays open until it has ended."""
        self._users += 1
        try:
            return call() if size <= _SMALL else await anyio.to_thread.run_sync(call)
        except OSError as exc:
            if exc.errno not in BY_ERRNO:
                raise
            raise error(exc.errno or errno.EIO, self._path) from None
        finally:
            self._users -= 1
            self._leave()

    def _leave(self) -> None:
        if self._is_closed and not self._users and self._fd >= 0:
            fd, self._fd = self._fd, -1
            if self._room is not None:
                self._room.open.discard(fd)
                self._room.change()
            os.close(fd)


def _need(about: os.stat_result, begin: int, size: int) -> int:
    """How many bytes of the disk *size* bytes at *begin* of a file take at most, besides those it has."""
    most, have = _rounded(size) + BLOCK, about.st_blocks * 512
    if have < about.st_size:  # it has holes
        return most
    return min(most, max(0, _rounded(begin + size) - have))


def _rounded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
