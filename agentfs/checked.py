"""`Checked`: the view that holds the file contract on the server's side, between any face and any service.

It limits and refuses; what a file may do is decided behind it.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Self, TypeVar

from agentfs.errors import BY_ERRNO, error
from agentfs.limits import Limits
from agentfs.service import FileHandle, FileService
from agentfs.types import NO_WANT, ROOT, Mode, Path, Principal, Record, Stat, Want, clean, split
from agentfs.views import View, ViewHandle

T = TypeVar("T")
_log: Final = logging.getLogger(__name__)
_WRITES: Final = Mode.WRITE | Mode.TRUNCATE | Mode.APPEND


class _Count:
    """Open handles of one view; follow streams apart, because they stay."""

    def __init__(self) -> None:
        self.open = {False: 0, True: 0}


class CheckedHandle(ViewHandle):
    """See `Checked`."""

    def __init__(self, handle: FileHandle, path: Path, mode: Mode, release: Callable[[], None]) -> None:
        super().__init__(handle)
        self._path, self._mode, self._release = path, mode, release
        self._closed = False

    def _check(self, need: Mode | None = None, *numbers: int) -> None:
        if self._closed:
            raise error(errno.EBADF, self._path)
        if need is not None and need not in self._mode:
            raise error(errno.EBADF, self._path, f"not opened for {(need.name or '').lower()}")
        for number in numbers:
            if not isinstance(number, int) or number < 0:
                raise error(errno.EINVAL, self._path, f"size or offset {number!r}")

    async def read(self, size: int, offset: int) -> bytes:
        self._check(Mode.READ, size, offset)
        try:
            data = await self._handle.read(size, offset)
        except Exception as exc:  # `checked` logs it
            raise checked(exc, "read", self._path) from exc
        if len(data) > size:
            raise _faulty("read", self._path, f"{len(data)} bytes for {size}")
        return data

    async def write(self, data: bytes, offset: int) -> int:
        self._check(Mode.WRITE, offset)
        try:
            taken = await self._handle.write(data, offset)
        except Exception as exc:  # `checked` logs it
            raise checked(exc, "write", self._path) from exc
        if not 0 <= taken <= len(data):
            raise _faulty("write", self._path, f"{taken} bytes taken of {len(data)}")
        return taken

    def write_nowait(self, data: bytes, offset: int) -> bool:
        if self._closed or offset < 0 or Mode.WRITE not in self._mode:
            return False
        try:
            return self._handle.write_nowait(data, offset)
        except Exception as exc:  # `checked` logs it
            raise checked(exc, "write", self._path) from exc

    async def truncate(self, size: int) -> None:
        self._check(Mode.WRITE, size)
        await guarded(self._handle.truncate(size), "truncate", self._path)

    async def flush(self, *, final: bool = False) -> None:
        self._check()
        await guarded(self._handle.flush(final=final), "flush", self._path)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._release()
        try:  # forwarded each time: the first call may have been cancelled half-way
            await self._handle.aclose()
        except Exception:  # noqa: BLE001  # aclose never fails; what it hides is logged
            _log.exception("aclose of %r", self._path)

    async def next(self) -> Record | None:
        self._check(Mode.READ)
        return await guarded(self._handle.next(), "next", self._path)

    def is_ready(self) -> bool:
        return self._closed or self._handle.is_ready()

    async def wait_ready(self) -> None:
        self._check()
        await guarded(self._handle.wait_ready(), "wait_ready", self._path)

    @property
    def size(self) -> int | None:
        return None if self._closed else self._handle.size


async def guarded(call: Awaitable[T], op: str, path: Path) -> T:
    """*call*, with every failure that the error table does not know turned into EIO. Cancellation passes."""
    try:
        return await call
    except Exception as exc:  # `checked` logs it
        raise checked(exc, op, path) from exc


def checked(exc: Exception, op: str, path: Path) -> OSError:
    """*exc* if it is in the error table; else EIO, with the traceback in the log and nothing of it in the error."""
    if isinstance(exc, OSError) and exc.errno in BY_ERRNO:
        return exc
    _log.error("%s of %r", op, path, exc_info=exc)
    return error(errno.EIO, path)


def _faulty(op: str, path: Path, what: str) -> OSError:
    _log.error("%s of %r broke the contract: %s", op, path, what)
    return error(errno.EIO, path)


class Checked(View):
    """The contract, held on the server's side: a service behind it sees only well-formed calls.

    Paths that are not clean, empty modes, negative numbers: EINVAL. A closed handle, or one not opened for the
    operation: EBADF. More than ``limits.handles`` open handles, or ``limits.blocked_readers`` follow streams, per
    attached view: EMFILE. Failures outside the error table become EIO and are logged with their traceback.
    """

    def __init__(self, service: FileService, limits: Limits | None = None) -> None:
        super().__init__(service)
        self._limits, self._count = limits or Limits(), _Count()

    def attach(self, principal: Principal) -> Self:
        try:
            view = super().attach(principal)
        except Exception as exc:  # `checked` logs it
            raise checked(exc, "attach", ROOT) from exc
        view._count = _Count()
        return view

    async def stat(self, path: Path) -> Stat:
        _well_formed(path)
        return await guarded(self._service.stat(path), "stat", path)

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        _well_formed(path)
        if not isinstance(limit, int) or limit < 0:
            raise error(errno.EINVAL, path, f"limit {limit!r}")
        return await guarded(self._service.list(path, after, limit), "list", path)

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        return await self._opened("open", self._service.open, path, mode, want)

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        return await self._opened("create", self._service.create, path, mode, want)

    async def _opened(
        self, op: str, run: Callable[..., Awaitable[FileHandle]], path: Path, mode: Mode, want: Want
    ) -> FileHandle:
        _well_formed(path)
        if not mode & (Mode.READ | Mode.WRITE):
            raise error(errno.EINVAL, path, "mode: want READ, WRITE or both")
        if mode & _WRITES and Mode.WRITE not in mode:
            raise error(errno.EINVAL, path, "mode: TRUNCATE and APPEND need WRITE")
        release = self._take(path)
        try:
            return CheckedHandle(await guarded(run(path, mode, want=want), op, path), path, mode, release)
        except BaseException:
            release()
            raise

    def _take(self, path: Path) -> Callable[[], None]:
        count, follows = self._count.open, is_follow(path)
        limit = self._limits.blocked_readers if follows else self._limits.handles
        if count[follows] >= limit:
            raise error(errno.EMFILE, path, f"limit {limit}")
        count[follows] += 1

        def release() -> None:
            count[follows] -= 1

        return release

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> None:
        _well_formed(path)
        await guarded(self._service.mkdir(path, want=want), "mkdir", path)

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> None:
        _well_formed(path)
        await guarded(self._service.remove(path, want=want), "remove", path)

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        _well_formed(old)
        _well_formed(new)
        await guarded(self._service.rename(old, new, want=want), "rename", old)


def _well_formed(path: Path) -> None:
    if not isinstance(path, str):
        raise error(errno.EINVAL, detail=f"path: want text, not {type(path).__name__}")
    clean(path)


def is_follow(path: Path) -> bool:
    """True for a name whose reads block: only stream twins have an ``@`` in their name (`types.check_name`)."""
    return "@" in split(path)[1]
