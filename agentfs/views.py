"""Composable wrappers: `View ReadOnly Below`, each takes a `FileService` and is one; `Checked` is beside them.

Whatever a view does not change it forwards, so no wrapper loses a capability. No policy about agents lives here.
"""

from __future__ import annotations

import copy
import errno
from collections.abc import Awaitable, Sequence
from typing import Final, NoReturn, Self, TypeVar

from msgspec.structs import replace

from agentfs.errors import error
from agentfs.service import FileHandle, FileService
from agentfs.types import NO_WANT, ROOT, Mode, Path, Principal, Record, Stat, Want, clean, join

T = TypeVar("T")
_WRITES: Final = Mode.WRITE | Mode.TRUNCATE | Mode.APPEND


class ViewHandle(FileHandle):
    """Forwards every method to the handle it was given; views subclass it.

    One whose reads do more must hide content and descriptor, one whose writes do more `write_nowait`: these go around.
    """

    def __init__(self, handle: FileHandle) -> None:
        self._handle = handle

    async def read(self, size: int, offset: int) -> bytes:
        return await self._handle.read(size, offset)

    async def write(self, data: bytes, offset: int) -> int:
        return await self._handle.write(data, offset)

    def write_nowait(self, data: bytes, offset: int) -> bool:
        return self._handle.write_nowait(data, offset)

    async def truncate(self, size: int) -> None:
        await self._handle.truncate(size)

    async def flush(self, *, final: bool = False) -> None:
        await self._handle.flush(final=final)

    def discard(self) -> None:
        self._handle.discard()

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

    @property
    def content(self) -> bytes | None:
        return self._handle.content

    @property
    def descriptor(self) -> int | None:
        return self._handle.descriptor


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

    def write_nowait(self, data: bytes, offset: int) -> bool:
        return False

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

    def _inner(self, path: Path) -> Path:
        return join(self._root, path)

    async def _named(self, call: Awaitable[T], path: Path, new: Path | None = None) -> T:
        try:
            return await call
        except OSError as exc:
            is_new = new is not None and exc.filename == self._inner(new)
            raise named(exc, new if is_new and new is not None else path) from None

    async def stat(self, path: Path) -> Stat:
        found = await self._named(self._service.stat(self._inner(path)), path)
        return found if path else replace(found, name="")

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        return await self._named(self._service.list(self._inner(path), after, limit), path)

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        call = self._service.open(self._inner(path), mode, want=want)
        return NamedHandle(await self._named(call, path), path)

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        self._refuse_root(path)
        call = self._service.create(self._inner(path), mode, want=want)
        return NamedHandle(await self._named(call, path), path)

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> None:
        self._refuse_root(path)
        await self._named(self._service.mkdir(self._inner(path), want=want), path)

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> None:
        self._refuse_root(path)
        await self._named(self._service.remove(self._inner(path), want=want), path)

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        self._refuse_root(old)
        self._refuse_root(new)
        call = self._service.rename(self._inner(old), self._inner(new), want=want)
        await self._named(call, old, new)

    def _refuse_root(self, path: Path) -> None:
        if path == ROOT:  # its name belongs to the tree above, which the caller does not have
            raise error(errno.EBUSY, path, "the root cannot be made, removed or renamed")
