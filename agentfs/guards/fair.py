"""`Fair`: what one principal may take of the runtime, whatever the face: handles, operations and bytes a second.

Also the place where what was refused to an agent or a token is reported.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import closing
from typing import Any, Final, TypeAlias, TypeVar

from agentfs.errors import error
from agentfs.limits import Limits
from agentfs.ports import Clock
from agentfs.service import FileHandle, FileService
from agentfs.types import NO_WANT, Mode, Path, Principal, Record, Stat, Want
from agentfs.views import View, ViewHandle

T = TypeVar("T")
Report: TypeAlias = Callable[[Principal, str, Path, OSError], None]
"""Told of every refusal: who, which operation, where, and why."""

_TOLD: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.EMFILE, errno.ENOBUFS, errno.EINVAL}
)
_HELD: Final = 4096


class Bucket:
    """So many a second, and up to a second's worth at once (a token bucket)."""

    def __init__(self, rate: int, clock: Clock) -> None:
        self._rate, self._clock = rate, clock
        self._left, self._at_ns = float(rate), clock.monotonic_ns()

    def take(self, count: int, path: Path, code: int) -> None:
        """Take *count*, or raise *code*: EAGAIN at an open, ENOBUFS within a write or change."""
        now_ns = self._clock.monotonic_ns()
        self._left = min(self._rate, self._left + (now_ns - self._at_ns) * self._rate / 1e9)
        self._at_ns = now_ns
        if min(count, self._rate) > self._left:  # one that is larger than a second's worth waits for a full bucket
            raise error(code, path, f"over {self._rate} a second")
        self._left -= count

    @property
    def is_full(self) -> bool:
        """Whether nothing was taken for a second."""
        return self._left >= self._rate or self._clock.monotonic_ns() - self._at_ns >= 1_000_000_000


class Share:
    """What one principal has taken."""

    def __init__(self, clock: Clock, limits: Limits) -> None:
        self.handles = 0
        self.operations, self.bytes = Bucket(limits.agent_rate, clock), Bucket(limits.agent_write_bytes, clock)


class Shares:
    """The shares of all principals; one that uses nothing is forgotten when there are many."""

    def __init__(self, clock: Clock, limits: Limits) -> None:
        self._clock, self.limits = clock, limits
        self._held: OrderedDict[Principal, Share] = OrderedDict()

    def of(self, principal: Principal) -> Share:
        """The share of *principal*, which every token made from its own has part in."""
        principal = principal.bearer
        share = self._held.get(principal)
        if share is None:
            for other in list(self._held)[: max(0, len(self._held) - _HELD)]:
                if not self._held[other].handles and self._held[other].operations.is_full:
                    del self._held[other]
            share = self._held[principal] = Share(self._clock, self.limits)
        self._held.move_to_end(principal)
        return share


class FairHandle(ViewHandle):
    """One of a principal's open handles."""

    def __init__(self, handle: FileHandle, path: Path, fair: Fair) -> None:
        super().__init__(handle)
        self._path, self._fair, self._is_open = path, fair, True

    @property
    def content(self) -> bytes | None:
        return None  # each opening counts

    async def write(self, data: bytes, offset: int) -> int:
        return await self._fair.told("write", self._path, self._write(data, offset))

    async def _write(self, data: bytes, offset: int) -> int:
        share = self._fair.share
        share.operations.take(1, self._path, errno.ENOBUFS)
        share.bytes.take(len(data), self._path, errno.ENOBUFS)
        return await super().write(data, offset)

    def write_nowait(self, data: bytes, offset: int) -> bool:
        return False  # each write counts

    async def read(self, size: int, offset: int) -> bytes:
        return await self._fair.told("read", self._path, super().read(size, offset))

    async def next(self) -> Record | None:
        return await self._fair.told("read", self._path, super().next())

    async def flush(self, *, final: bool = False) -> None:
        await self._fair.told("flush", self._path, super().flush(final=final))

    async def aclose(self) -> None:
        if self._is_open:
            self._is_open = False
            self._fair.share.handles -= 1
        await super().aclose()


class Fair(View):
    """*service* for one *principal*: past its handles EMFILE, past its rates EAGAIN at open, ENOBUFS in a change.

    *is_known* tells whether the first name of a path is anything to this principal: what is not is reported too.
    """

    def __init__(
        self, service: FileService, principal: Principal, shares: Shares, report: Report,
        is_known: Callable[[str], bool] = lambda name: True,
    ) -> None:  # fmt: skip
        super().__init__(service)
        self._who, self.share, self._report, self._is_known = principal, shares.of(principal), report, is_known
        self._limits = shares.limits

    def attach(self, principal: Principal) -> Fair:
        raise error(errno.EPERM, detail="this tree belongs to one principal")

    async def told(self, op: str, path: Path, call: Awaitable[T]) -> T:
        """*call*; its refusal is reported."""
        try:
            return await call
        except OSError as exc:
            top = path.partition("/")[0]
            is_outside = exc.errno == errno.ENOENT and not top.startswith(".") and not self._is_known(top)
            if exc.errno in _TOLD or is_outside:
                self._report(self._who, op, path, exc)
            raise

    async def stat(self, path: Path) -> Stat:
        return await self.told("stat", path, super().stat(path))

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        return await self.told("list", path, super().list(path, after, limit))

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        return await self.told("open", path, self._counted(path, super().open(path, mode, want=want)))

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        return await self.told("create", path, self._counted(path, super().create(path, mode, want=want)))

    async def _counted(self, path: Path, opening: Coroutine[Any, Any, FileHandle]) -> FairHandle:
        """What *opening* gives as one of the handles; counted from now on, for many may be opened at a time."""
        with closing(opening):
            if self.share.handles >= self._limits.agent_handles:
                raise error(errno.EMFILE, path, f"{self._limits.agent_handles} open handles")
            self.share.operations.take(1, path, errno.EAGAIN)
            self.share.handles += 1
            try:
                return FairHandle(await opening, path, self)
            except BaseException:
                self.share.handles -= 1
                raise

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> None:
        await self.told("mkdir", path, self._mkdir(path, want))

    async def _mkdir(self, path: Path, want: Want) -> None:
        self.share.operations.take(1, path, errno.ENOBUFS)
        await super().mkdir(path, want=want)

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> None:
        await self.told("remove", path, self._remove(path, want))

    async def _remove(self, path: Path, want: Want) -> None:
        self.share.operations.take(1, path, errno.ENOBUFS)
        await super().remove(path, want=want)

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        await self.told("rename", old, self._rename(old, new, want))

    async def _rename(self, old: Path, new: Path, want: Want) -> None:
        self.share.operations.take(1, old, errno.ENOBUFS)
        await super().rename(old, new, want=want)
