"""`Granted`: one mount with its access level, its rate and, where it has them, the account that pays and who confirms.

Levels are those of `agentfs.grants`; whether money is left, and what is allowed, is decided elsewhere.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Self, TypeAlias

import msgspec

from agentfs.errors import error
from agentfs.grants import Grant
from agentfs.guards.fair import Bucket
from agentfs.guards.lease import Lease, LeasedHandle
from agentfs.service import FileHandle, FileService, Selective
from agentfs.types import NO_WANT, OPERATOR, Confirm, Kind, Mode, Path, Principal, Purse, Stat, Want
from agentfs.views import View

Pay: TypeAlias = Callable[[Principal], Awaitable[Purse]]
Hold: TypeAlias = Callable[[Principal], Confirm]


class GrantedHandle(LeasedHandle):
    """A handle whose writes count against the mount's rate."""

    def __init__(self, handle: FileHandle, path: Path, mode: Mode, lease: Lease, bucket: Bucket | None) -> None:
        super().__init__(handle, path, mode, lease)
        self._bucket = bucket

    async def write(self, data: bytes, offset: int) -> int:
        if self._bucket is not None:
            self._bucket.take(1, self._path, errno.ENOBUFS)
        return await super().write(data, offset)

    def write_nowait(self, data: bytes, offset: int) -> bool:
        return self._bucket is None and super().write_nowait(data, offset)


class Granted(Selective, View):
    """*service* as *grant* allows it, until *lease* is revoked.

    ``read_only``: what would change something is EROFS. ``sign_only``: calls are allowed, other writes EACCES.
    ``disabled``: EACCES for everything but looking. ``budgeted``: every operation that may change something carries
    the purse that *pay* gives. Past the rate an open is EAGAIN, a write or change ENOBUFS. Where each use is confirmed,
    calls carry what *hold* gives and wait in their reads; whatever else would change something is EACCES.
    """

    def __init__(
        self, service: FileService, grant: Grant, lease: Lease, bucket: Bucket | None = None, pay: Pay | None = None,
        hold: Hold | None = None,
    ) -> None:  # fmt: skip
        super().__init__(service)
        self._grant, self.lease, self._bucket, self._pay, self._hold = grant, lease, bucket, pay, hold
        self._only_calls = "sign_only" if grant.level == "sign_only" else "with confirm" if grant.confirm else ""
        self._hidden = {"read_only": 0o222, "disabled": 0o777}.get(grant.level, 0)
        self._principal = OPERATOR

    def attach(self, principal: Principal) -> Self:
        view = super().attach(principal)
        view._principal = principal
        return view

    def _masked(self, st: Stat) -> Stat:
        hidden = self._hidden or (0o222 if self._only_calls and st.kind is not Kind.CALL else 0)
        if not hidden:
            return st
        lists = st.lists and hidden != 0o777  # nor may what was listed before
        return msgspec.structs.replace(st, mode=st.mode & ~hidden, lists=lists)

    def lacks(self, name: str, *, is_change: bool) -> bool:
        is_refused = is_change and (self._hidden or self._only_calls)
        is_more = is_refused or self.lease.is_revoked or self._hidden == 0o777 or self._bucket is not None
        return not is_more and isinstance(self._service, Selective) and self._service.lacks(name, is_change=is_change)

    async def stat(self, path: Path) -> Stat:
        return self._masked(await self._service.stat(path))

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        self._check(path)
        return [self._masked(st) for st in await self._service.list(path, after, limit)]

    def _check(self, path: Path) -> None:
        self.lease.check(path)
        if self._grant.level == "disabled":
            raise error(errno.EACCES, path, "mounted disabled")

    def _change(self, path: Path) -> None:
        self._check(path)
        if self._grant.level == "read_only":
            raise error(errno.EROFS, path, "mounted read_only")
        if self._only_calls:
            raise error(errno.EACCES, path, f"mounted {self._only_calls}")
        if self._bucket is not None:
            self._bucket.take(1, path, errno.ENOBUFS)

    def _confirmed(self, want: Want) -> Want:
        if not self._grant.confirm:
            return want
        if self._hold is None:
            raise error(errno.EACCES, detail="nobody is there to confirm it")
        return replace(want, confirm=self._hold(self._principal))

    async def _paying(self, want: Want) -> Want:
        if self._grant.level != "budgeted" or self._pay is None:
            return want
        return replace(want, purse=await self._pay(self._principal))

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        self._check(path)
        if mode.is_change:
            if self._grant.level == "read_only":
                raise error(errno.EROFS, path, "mounted read_only")
            if self._only_calls and (await self._service.stat(path)).kind is not Kind.CALL:
                raise error(errno.EACCES, path, f"mounted {self._only_calls}")
            want = self._confirmed(await self._paying(want))
        if self._bucket is not None:
            self._bucket.take(1, path, errno.EAGAIN)
        return await self._held(await self._service.open(path, mode, want=want), path, mode)

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        self._change(path)
        return await self._held(await super().create(path, mode, want=await self._paying(want)), path, mode)

    async def _held(self, handle: FileHandle, path: Path, mode: Mode) -> FileHandle:
        try:
            return GrantedHandle(handle, path, mode, self.lease, self._bucket)
        except OSError:
            handle.discard()
            await handle.aclose()
            raise

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> None:
        self._change(path)
        await super().mkdir(path, want=await self._paying(want))

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> None:
        self._change(path)
        await super().remove(path, want=await self._paying(want))

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        self._change(old)
        await super().rename(old, new, want=await self._paying(want))
