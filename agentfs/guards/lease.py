"""`Lease`: what open handles hold on to; when it is revoked they are cut off at once, blocked reads included.

It does not know why it is revoked.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable
from typing import TypeVar

from agentfs.errors import error
from agentfs.service import FileHandle
from agentfs.types import Mode, Path, Record
from agentfs.views import ViewHandle

T = TypeVar("T")


class Lease:
    """A grant that can be taken back, unless it *stays*."""

    def __init__(self, reason: str = "this mount is no longer granted", *, stays: bool = False) -> None:
        self.is_revoked, self._reason, self.stays = False, reason, stays
        self._handles: set[LeasedHandle] = set()

    def check(self, path: Path) -> None:
        """EACCES once it is revoked."""
        if self.is_revoked:
            raise error(errno.EACCES, path, self._reason)

    @property
    def is_idle(self) -> bool:
        """Whether no handle lives by it."""
        return not self._handles

    def hold(self, handle: LeasedHandle) -> None:
        """*handle* lives by this lease until `drop`."""
        self._handles.add(handle)

    def drop(self, handle: LeasedHandle) -> None:
        """*handle* is closed."""
        self._handles.discard(handle)

    async def revoke(self) -> None:
        """Take it back: what is not committed is given up, blocked reads wake, all that follows is EACCES."""
        self.is_revoked = True
        for handle in list(self._handles):
            await handle.cut()


class LeasedHandle(ViewHandle):
    """A handle that works as long as its leases."""

    def __init__(self, handle: FileHandle, path: Path, mode: Mode, *leases: Lease) -> None:
        super().__init__(handle)
        self._path, self._mode, self._leases = path, mode, leases
        for lease in leases:
            lease.check(path)  # it may have been revoked while the file was being opened
            lease.hold(self)

    @property
    def content(self) -> bytes | None:
        return self._handle.content if self._stays() else None

    @property
    def descriptor(self) -> int | None:
        return self._handle.descriptor if self._stays() else None

    def _stays(self) -> bool:
        return all(lease.stays for lease in self._leases)

    def _is_cut(self) -> bool:
        return any(lease.is_revoked for lease in self._leases)

    async def cut(self) -> None:
        """End what is under way; nothing more is committed."""
        self._handle.discard()
        await self._handle.aclose()

    def _check(self) -> None:
        for lease in self._leases:
            lease.check(self._path)

    async def _held(self, call: Awaitable[T]) -> T:
        """*call*; one that was cut off is EACCES, not EBADF, and never an end of file."""
        try:
            found = await call
        except OSError:
            self._check()
            raise
        self._check()
        return found

    async def read(self, size: int, offset: int) -> bytes:
        self._check()
        return await self._held(self._handle.read(size, offset))

    async def write(self, data: bytes, offset: int) -> int:
        self._check()
        return await self._handle.write(data, offset)

    def write_nowait(self, data: bytes, offset: int) -> bool:
        return not self._is_cut() and self._handle.write_nowait(data, offset)

    async def truncate(self, size: int) -> None:
        self._check()
        await self._handle.truncate(size)

    async def flush(self, *, final: bool = False) -> None:
        if Mode.WRITE in self._mode:  # who only reads may close in peace
            self._check()
        await self._handle.flush(final=final)

    async def next(self) -> Record | None:
        self._check()
        return await self._held(self._handle.next())

    async def wait_ready(self) -> None:
        if not self._is_cut():
            await self._handle.wait_ready()

    def is_ready(self) -> bool:
        return self._is_cut() or self._handle.is_ready()

    async def aclose(self) -> None:
        for lease in self._leases:
            lease.drop(self)
        await self._handle.aclose()
