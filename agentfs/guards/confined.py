"""`Confined`: a tree as a capability token or a grant shows it: what every link of a chain allows, and nothing else.

Whether a token is genuine is decided before; expiry and revocation come through the leases.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Final

from msgspec.structs import replace

from agentfs.errors import error
from agentfs.guards.lease import Lease, LeasedHandle
from agentfs.service import FileHandle, FileService
from agentfs.types import NO_WANT, Caveat, Kind, Mode, Path, Principal, Stat, Want
from agentfs.views import View

READ: Final = "read"
WRITE: Final = "write"
MANAGE: Final = "manage"
_WRITES: Final = Mode.WRITE | Mode.TRUNCATE | Mode.APPEND
_ANSWERS: Final = frozenset({Kind.CALL, Kind.QUEUE})


def is_below(path: str, top: str) -> bool:
    """Whether *path* is *top* or beneath it. A stream's twin (``X@follow``) belongs to it."""
    return not top or path == top or path.startswith((f"{top}/", f"{top}@"))


def allows(caveats: Sequence[Caveat], path: Path, operation: str) -> bool:
    """Whether every link allows *operation* at *path*."""
    return all(
        caveat.allow is None or any(operation in ops and is_below(path, top) for top, ops in caveat.allow)
        for caveat in caveats
    )


def leads(caveats: Sequence[Caveat], path: Path) -> bool:
    """Whether *path* is on the way to something that every link allows, or is such a thing."""
    return all(
        caveat.allow is None or any(is_below(path, top) or is_below(top, path) for top, _ in caveat.allow)
        for caveat in caveats
    )


class ConfinedHandle(LeasedHandle):
    """A handle opened by *right*; one that may only write reads nothing but the answer to what it wrote."""

    def __init__(
        self, handle: FileHandle, path: Path, mode: Mode, leases: Sequence[Lease], right: str, *, may_read: bool
    ) -> None:
        super().__init__(handle, path, mode, *leases)
        self._right, self._may_read = right, may_read

    async def write(self, data: bytes, offset: int) -> int:
        taken = await super().write(data, offset)
        self._may_read = self._may_read or taken > 0
        return taken

    def write_nowait(self, data: bytes, offset: int) -> bool:
        return self._may_read and super().write_nowait(data, offset)

    async def read(self, size: int, offset: int) -> bytes:
        if not self._may_read:
            raise error(errno.EACCES, self._path, f"{self._right} allows to write here, not to read")
        return await super().read(size, offset)


class Confined(View):
    """*service* with the rights of *caveats*, as long as every one of *leases*, which is asked for at each open.

    What no link leads to is ENOENT; what it leads to but does not allow is EACCES. *right* is what errors call it.
    """

    def __init__(
        self, service: FileService, caveats: tuple[Caveat, ...], leases: Callable[[], Sequence[Lease]],
        right: str = "the token",
    ) -> None:  # fmt: skip
        super().__init__(service)
        self._caveats, self._leases, self._right = caveats, leases, right

    def attach(self, principal: Principal) -> Confined:
        raise error(errno.EPERM, detail="this tree belongs to one principal")

    def _check(self, path: Path, operation: str = "") -> None:
        for lease in self._leases():
            lease.check(path)
        if not leads(self._caveats, path):
            raise error(errno.ENOENT, path)
        if operation and not allows(self._caveats, path, operation):
            raise error(errno.EACCES, path, f"{self._right} does not allow to {operation} here")

    def _masked(self, st: Stat, path: Path) -> Stat:
        mode = st.mode
        if st.is_dir:
            may_change = allows(self._caveats, path, MANAGE) or allows(self._caveats, path, WRITE)
            mode &= ~0 if may_change else ~0o222
        else:
            can_read, can_write = allows(self._caveats, path, READ), allows(self._caveats, path, WRITE)
            mode &= ~(0 if can_read or (can_write and st.kind in _ANSWERS) else 0o444) & ~(0 if can_write else 0o222)
        return replace(st, mode=mode, until=None, named=None, lists=False)  # what it is allowed ends at any time

    async def stat(self, path: Path) -> Stat:
        self._check(path)
        return self._masked(await super().stat(path), path)

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        self._check(path)
        shown: list[Stat] = []
        while len(shown) < limit:
            page = await super().list(path, after, limit)
            for st in page:
                below = Path(f"{path}/{st.name}" if path else st.name)
                if leads(self._caveats, below):
                    shown.append(self._masked(st, below))
            if len(page) < limit:
                break
            after = page[-1].name
        return shown[:limit]

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        self._check(path)
        if mode & _WRITES:
            self._check(path, WRITE)
        may_read = Mode.READ not in mode or allows(self._caveats, path, READ)
        if not may_read and (not mode & _WRITES or (await self._service.stat(path)).kind not in _ANSWERS):
            self._check(path, READ)
        return await self._held(await super().open(path, mode, want=want), path, mode, may_read=may_read)

    async def _held(self, handle: FileHandle, path: Path, mode: Mode, *, may_read: bool) -> FileHandle:
        try:
            return ConfinedHandle(handle, path, mode, self._leases(), self._right, may_read=may_read)
        except OSError:
            handle.discard()
            await handle.aclose()
            raise

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        self._check(path, WRITE)
        if Mode.READ in mode:  # what is there already is opened
            self._check(path, READ)
        return await self._held(await super().create(path, mode, want=want), path, mode, may_read=True)

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> None:
        self._check(path, MANAGE)
        await super().mkdir(path, want=want)

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> None:
        self._check(path, MANAGE)
        await super().remove(path, want=want)

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        self._check(old, MANAGE)
        self._check(new, MANAGE)
        await super().rename(old, new, want=want)
