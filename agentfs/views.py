"""Composable wrappers: `ReadOnly Below Checked Revocable Traced`, each takes a `FileService` and is one.

Whatever a view does not change it forwards, so no wrapper loses a capability. No policy about agents lives here.
"""

from __future__ import annotations

import copy
import errno
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, NoReturn, Self, TypeVar

import anyio

from agentfs.errors import BY_ERRNO, error, row_of
from agentfs.limits import Limits
from agentfs.service import FileHandle, FileService
from agentfs.types import NO_WANT, ROOT, Mode, Path, Principal, Record, Stat, Want, clean, join, split

T = TypeVar("T")
_log: Final = logging.getLogger(__name__)
_WRITES: Final = Mode.WRITE | Mode.TRUNCATE | Mode.APPEND


class ViewHandle(FileHandle):
    """Forwards every method to the handle it was given; views subclass it."""

    def __init__(self, handle: FileHandle) -> None:
        self._handle = handle

    async def read(self, size: int, offset: int) -> bytes:
        return await self._handle.read(size, offset)

    async def write(self, data: bytes, offset: int) -> int:
        return await self._handle.write(data, offset)

    async def truncate(self, size: int) -> None:
        await self._handle.truncate(size)

    async def flush(self, *, final: bool = False) -> None:
        await self._handle.flush(final=final)

    async def aclose(self) -> None:
        await self._handle.aclose()

    async def next(self) -> Record | None:
        return await self._handle.next()

    def is_ready(self) -> bool:
        return self._handle.is_ready()

    async def wait_ready(self) -> None:
        await self._handle.wait_ready()

    @property
    def size(self) -> int | None:
        return self._handle.size


class View(FileService):
    """Forwards every method to the service it was given; what `attach` gives is wrapped like the original."""

    def __init__(self, service: FileService) -> None:
        self._service = service

    def attach(self, principal: Principal) -> Self:
        view = copy.copy(self)
        view._service = self._service.attach(principal)
        return view

    async def stat(self, path: Path) -> Stat:
        return await self._service.stat(path)

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        return await self._service.list(path, after, limit)

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        return await self._service.open(path, mode, want=want)

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        return await self._service.create(path, mode, want=want)

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> None:
        await self._service.mkdir(path, want=want)

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> None:
        await self._service.remove(path, want=want)

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        await self._service.rename(old, new, want=want)


class _ReadOnlyHandle(ViewHandle):
    async def write(self, data: bytes, offset: int) -> int:
        raise error(errno.EROFS)

    async def truncate(self, size: int) -> None:
        raise error(errno.EROFS)


class ReadOnly(View):
    """The service without its write bits: whatever would change it is EROFS."""

    async def stat(self, path: Path) -> Stat:
        return _unwritable(await super().stat(path))

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        return [_unwritable(entry) for entry in await super().list(path, after, limit)]

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        if mode & _WRITES:
            raise error(errno.EROFS, path)
        return _ReadOnlyHandle(await super().open(path, mode, want=want))

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> NoReturn:
        raise error(errno.EROFS, path)

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> NoReturn:
        raise error(errno.EROFS, path)

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> NoReturn:
        raise error(errno.EROFS, path)

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> NoReturn:
        raise error(errno.EROFS, old)


def _unwritable(stat: Stat) -> Stat:
    return replace(stat, mode=stat.mode & ~0o222) if stat.mode & 0o222 else stat


class NamedHandle(ViewHandle):
    """A handle whose errors name *path*, as the caller knows the file, whatever the service below calls it."""

    def __init__(self, handle: FileHandle, path: Path) -> None:
        super().__init__(handle)
        self._path = path

    async def read(self, size: int, offset: int) -> bytes:
        try:
            return await self._handle.read(size, offset)
        except OSError as exc:
            raise named(exc, self._path) from None

    async def write(self, data: bytes, offset: int) -> int:
        try:
            return await self._handle.write(data, offset)
        except OSError as exc:
            raise named(exc, self._path) from None

    async def truncate(self, size: int) -> None:
        try:
            await self._handle.truncate(size)
        except OSError as exc:
            raise named(exc, self._path) from None

    async def flush(self, *, final: bool = False) -> None:
        try:
            await self._handle.flush(final=final)
        except OSError as exc:
            raise named(exc, self._path) from None

    async def next(self) -> Record | None:
        try:
            return await self._handle.next()
        except OSError as exc:
            raise named(exc, self._path) from None


def named(exc: OSError, path: Path) -> OSError:
    """*exc*, now naming *path*."""
    exc.filename = path
    return exc


class Below(View):
    """Only the subtree *root* of a service. Errors name the caller's path; the inner one is never shown in them."""

    def __init__(self, service: FileService, root: Path) -> None:
        super().__init__(service)
        self._root = clean(root)

    async def _named(self, call: Awaitable[T], path: Path, new: Path | None = None) -> T:
        try:
            return await call
        except OSError as exc:
            is_new = new is not None and exc.filename == join(self._root, new)
            raise named(exc, new if is_new and new is not None else path) from None

    async def stat(self, path: Path) -> Stat:
        found = await self._named(self._service.stat(join(self._root, path)), path)
        return found if path else replace(found, name="")

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        return await self._named(self._service.list(join(self._root, path), after, limit), path)

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        call = self._service.open(join(self._root, path), mode, want=want)
        return NamedHandle(await self._named(call, path), path)

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        self._refuse_root(path)
        call = self._service.create(join(self._root, path), mode, want=want)
        return NamedHandle(await self._named(call, path), path)

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> None:
        self._refuse_root(path)
        await self._named(self._service.mkdir(join(self._root, path), want=want), path)

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> None:
        self._refuse_root(path)
        await self._named(self._service.remove(join(self._root, path), want=want), path)

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        self._refuse_root(old)
        self._refuse_root(new)
        call = self._service.rename(join(self._root, old), join(self._root, new), want=want)
        await self._named(call, old, new)

    def _refuse_root(self, path: Path) -> None:
        if path == ROOT:  # its name belongs to the tree above, which the caller does not have
            raise error(errno.EBUSY, path, "the root cannot be made, removed or renamed")


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
        except Exception as exc:  # noqa: BLE001  # `checked` logs it
            raise checked(exc, "read", self._path) from exc
        if len(data) > size:
            raise _faulty("read", self._path, f"{len(data)} bytes for {size}")
        return data

    async def write(self, data: bytes, offset: int) -> int:
        self._check(Mode.WRITE, offset)
        try:
            taken = await self._handle.write(data, offset)
        except Exception as exc:  # noqa: BLE001  # `checked` logs it
            raise checked(exc, "write", self._path) from exc
        if not 0 <= taken <= len(data):
            raise _faulty("write", self._path, f"{taken} bytes taken of {len(data)}")
        return taken

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
        except Exception:
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
    except Exception as exc:  # noqa: BLE001  # `checked` logs it
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
        except Exception as exc:  # noqa: BLE001  # `checked` logs it
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
