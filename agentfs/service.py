"""The interface every capability implements and every face serves: `FileService` and `FileHandle`.

It holds no policy and no I/O: required methods are few, optional ones refuse, so that wrappers never lose a capability.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

from agentfs.errors import error
from agentfs.types import NO_WANT, Mode, Path, Principal, Record, Stat, Want

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType


class FileHandle(ABC):
    """An open file: a 9P fid.

    The caller has checked nothing but that the handle came from `open` or `create`. Calls on one handle may
    overlap. A cancelled call is a flushed call: it has had no effect and lost no data.
    """

    @abstractmethod
    async def read(self, size: int, offset: int) -> bytes:
        """Up to *size* bytes at *offset*; empty is end of file. Only a follow stream blocks."""

    async def write(self, data: bytes, offset: int) -> int:
        """Take *data*; the number of bytes taken. Complete units are committed before it returns.

        A bad unit after good ones gives a short count; the same bytes again give its error.
        """
        raise error(errno.EACCES, detail="not open for writing")

    def write_nowait(self, data: bytes, offset: int) -> bool:
        """Do all of `write` if that is nothing to wait for, and no error; else False, and nothing is done."""
        return False

    async def truncate(self, size: int) -> None:
        """Cut or zero-extend this handle's copy."""
        raise error(errno.EOPNOTSUPP, detail="truncate")

    async def flush(self, *, final: bool = False) -> None:
        """Commit what is complete. *final*: no more bytes will come, so what is left is one document."""

    def discard(self) -> None:
        """Give up what is not committed: later flushes and the close commit nothing."""

    async def aclose(self) -> None:
        """Clunk: commits a rest as `flush(final=True)` does, keeps its error for the service's last error.

        Idempotent, never fails, wakes blocked reads. Every later call is EBADF.
        """

    async def next(self) -> Record | None:
        """The next record of a follow stream, blocking; None when the stream has ended."""
        raise error(errno.EOPNOTSUPP, detail="not a follow stream")

    def is_ready(self) -> bool:
        """True when a read would not block."""
        return True

    async def wait_ready(self) -> None:
        """Return when `is_ready` may have become true."""

    @property
    def size(self) -> int | None:
        """Size of this handle's snapshot in bytes, or None where it has none."""
        return None

    @property
    def content(self) -> bytes | None:
        """All that reads of this handle ever give; None where that is not known, or opening it does more than that.

        Who opens the same file before anything changes may be given the same without being asked for here.
        """
        return None

    @property
    def descriptor(self) -> int | None:
        """A descriptor of the file of this machine that every read here is one of; None where reads are ours alone.

        A face may read from it by itself, as long as this handle is open.
        """
        return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


class FileService(ABC):
    """A tree of files. Paths are relative to its own root and already clean (`types.clean`)."""

    @abstractmethod
    def attach(self, principal: Principal) -> FileService:
        """This tree as *principal* sees it. Identity is fixed here and nowhere else."""

    @abstractmethod
    async def stat(self, path: Path) -> Stat:
        """The entry of *path*. ENOENT, ENOTDIR."""

    @abstractmethod
    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        """Up to *limit* entries of *path* whose names sort behind *after* (by code point). ENOENT, ENOTDIR."""

    @abstractmethod
    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        """Open an existing file. Opening never has an effect. ENOENT, EISDIR, EACCES, EAGAIN, EMFILE."""

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        """Create and open a file. EEXIST (with `want.exclusive`, or a directory), EINVAL for the name, EACCES."""
        raise error(errno.EACCES, path, "no file can be created here")

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> None:
        """Make a directory. EEXIST, EINVAL for the name, EACCES."""
        raise error(errno.EACCES, path, "no directory can be made here")

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> None:
        """Remove a file or an empty directory. ENOENT, ENOTEMPTY, EBUSY, EACCES."""
        raise error(errno.EACCES, path, "cannot be removed")

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        """Rename within this service, replacing *new* atomically.

        ENOENT, EXDEV, EACCES; EEXIST with `want.exclusive`.
        """
        raise error(errno.EXDEV, old, "cannot be renamed")


class Selective:
    """What a service is besides that can tell at once what it does not have, so that a union need not ask it."""

    def lacks(self, name: str, *, is_change: bool) -> bool:
        """True where every path that begins with *name* is ENOENT and asking has no other effect.

        *is_change*: where it is asked for a write or a removal.
        """
        return False
