"""A plain `FileService` for tests: a dict of paths to bytes (files) or None (directories). It never really waits."""

from __future__ import annotations

import errno
import stat as _stat
from collections.abc import Sequence

from agentfs.errors import error
from agentfs.service import FileHandle, FileService
from agentfs.types import NO_WANT, OPERATOR, ROOT, Kind, Mode, Path, Principal, Qid, Stat, Want, join, split


class DictHandle(FileHandle):
    """Random access straight to the dict."""

    def __init__(self, files: dict[Path, bytes | None], path: Path, mode: Mode) -> None:
        self._files, self._path, self._mode = files, path, mode

    def _bytes(self) -> bytes:
        held = self._files.get(self._path)
        if held is None:
            raise error(errno.ESTALE, self._path)
        return held

    async def read(self, size: int, offset: int) -> bytes:
        return self._bytes()[offset : offset + size]

    async def write(self, data: bytes, offset: int) -> int:
        held = self._bytes()
        self._files[self._path] = held[:offset].ljust(offset, b"\0") + data + held[offset + len(data) :]
        return len(data)


class DictService(FileService):
    """Files in a dict. ``writable`` False refuses changes with EACCES; ``page`` makes listings come in short pages."""

    def __init__(self, files: dict[str, bytes | None] | None = None, *, writable: bool = True, page: int = 0) -> None:
        self.files: dict[Path, bytes | None] = {ROOT: None}
        for path, data in (files or {}).items():
            for depth in range(path.count("/")):
                self.files[Path("/".join(path.split("/")[: depth + 1]))] = None
            self.files[Path(path)] = data
        self.writable, self.page, self.principal, self.attached = writable, page, OPERATOR, 0

    def attach(self, principal: Principal) -> DictService:
        seen = DictService(writable=self.writable, page=self.page)
        seen.files, seen.principal = self.files, principal
        self.attached += 1
        return seen

    def _entry(self, path: Path) -> bytes | None:
        top = path
        while top != ROOT:
            top = split(top)[0]
            if self.files.get(top) is not None:
                raise error(errno.ENOTDIR, path)
        if path not in self.files:
            raise error(errno.ENOENT, path)
        return self.files[path]

    def _parent(self, path: Path) -> None:
        if self._entry(split(path)[0]) is not None:
            raise error(errno.ENOTDIR, path)

    def _change(self, path: Path) -> None:
        if not self.writable:
            raise error(errno.EACCES, path)

    async def stat(self, path: Path) -> Stat:
        data, bits = self._entry(path), 0o666 if self.writable else 0o444
        number = sum(ord(c) * 31**i for i, c in enumerate(path)) % 1000
        if data is None:
            return Stat(split(path)[1], _stat.S_IFDIR | bits | 0o111, 0, 0, Qid(number), Kind.DIR)
        return Stat(split(path)[1], _stat.S_IFREG | bits, len(data), 0, Qid(number), Kind.DATA)

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        if self._entry(path) is not None:
            raise error(errno.ENOTDIR, path)
        names = sorted(split(p)[1] for p in self.files if p != ROOT and split(p)[0] == path)
        names = [name for name in names if name > after][: min(limit, self.page or limit)]
        return [await self.stat(join(path, name)) for name in names]

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        if self._entry(path) is None:
            raise error(errno.EISDIR, path)
        if Mode.WRITE in mode:
            self._change(path)
        return DictHandle(self.files, path, mode)

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        self._parent(path)
        if path in self.files and (want.exclusive or self.files[path] is None):
            raise error(errno.EEXIST, path)
        self._change(path)
        self.files.setdefault(path, b"")
        return DictHandle(self.files, path, mode)

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> None:
        self._parent(path)
        if path in self.files:
            raise error(errno.EEXIST, path)
        self._change(path)
        self.files[path] = None

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> None:
        if self._entry(path) is None and any(split(p)[0] == path for p in self.files if p != ROOT):
            raise error(errno.ENOTEMPTY, path)
        self._change(path)
        del self.files[path]

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        self._entry(old)
        self._parent(new)
        self._change(old)
        if want.exclusive and new in self.files:
            raise error(errno.EEXIST, new)
        moved = {p: d for p, d in self.files.items() if p == old or p.startswith(f"{old}/")}
        for path, data in moved.items():
            del self.files[path]
            self.files[Path(new + path[len(old) :])] = data
