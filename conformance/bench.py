"""What one run of the file suite works on: a service, what its way expresses, and the files a walk found in it.

It checks nothing itself; rules are declared in the sibling modules with `rule`.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import anyio

from agentfs.service import FileHandle, FileService
from agentfs.types import NO_WANT, ROOT, Kind, Mode, Path, Principal, Stat, Want, join
from agentfs.views import View

TIERS: Final = ("READ", "CTL", "WRITE", "STREAM")
READ_WRITE: Final = Mode.READ | Mode.WRITE
FRESH: Final = Mode.WRITE | Mode.TRUNCATE
FOREVER_S: Final = 30.0
WALK_MAX: Final = 2_000


@dataclass(slots=True)
class Bench:
    """A service to test. ``expresses`` as in `conformance.drivers`; the bytes of ``samples`` are valid documents.

    ``samples``: by path, for files that take documents; for directories, what a file created there takes.
    ``stir``: make every stream of the service grow by at least one record. ``value_bytes``: the limit of a value.
    ``notes`` collects what could not be checked, and why.
    """

    service: FileService
    expresses: Collection[str]
    samples: Mapping[str, bytes] = field(default_factory=dict)
    stir: Callable[[], Awaitable[None]] | None = None
    value_bytes: int = 1 << 20
    found: list[tuple[Path, Stat]] = field(default_factory=list)
    data_dirs: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    async def walk(self) -> None:
        """Find every file; a listing longer than one page is followed."""
        self.found = [(ROOT, await self.service.stat(ROOT))]
        for path, st in self.found:
            if st.is_dir and len(self.found) < WALK_MAX:
                self.found += [(join(path, child.name), child) for child in await self.entries(path)]

    async def entries(self, path: Path, limit: int = 100) -> list[Stat]:
        """All of a directory, in pages of *limit*."""
        found: list[Stat] = []
        while page := await self.service.list(path, found[-1].name if found else "", limit):
            found += page
            assert len(found) <= WALK_MAX, f"{path or '/'}: the listing goes on after {len(found)} names"
        return found

    async def find_data(self) -> None:
        """Find the directories in which new names become values."""
        for path, st in self.found:
            if st.is_dir and st.mode & 0o200:
                name = join(path, "conformance-probe")
                try:
                    await self.make(name, b"x")
                    found = await self.service.stat(name)
                    await self.service.remove(name)
                except OSError:
                    continue  # what may be created here is not a value; documents need a sample
                if found.kind is Kind.DATA:
                    self.data_dirs.append(path)

    async def read(self, path: Path) -> bytes:
        """The whole content by one handle."""
        async with await self.service.open(path, Mode.READ) as handle:
            return await read_all(handle)

    async def put(self, path: Path, data: bytes, mode: Mode = FRESH, want: Want = NO_WANT) -> None:
        """Open, write all of *data*, commit; the first error of any of it."""
        async with await self.service.open(path, mode, want=want) as handle:
            await fill(handle, data)

    async def make(self, path: Path, data: bytes = b"", *, exclusive: bool = False) -> None:
        """Create, write all of *data*, commit."""
        async with await self.service.create(path, FRESH, want=Want(exclusive=exclusive)) as handle:
            await fill(handle, data)

    async def gone(self, path: Path) -> None:
        """Remove *path* if it is there."""
        try:
            await self.service.remove(path)
        except FileNotFoundError:
            return


Check: TypeAlias = Callable[[Bench, Path], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that holds of every file of some *kinds*; without kinds of the service, with DATA of values' places."""

    name: str
    tier: str
    kinds: frozenset[Kind]
    needs: frozenset[str]
    check: Check


def rule(tier: str, *kinds: Kind, needs: str = "") -> Callable[[Check], Rule]:
    """Declare a rule; *needs* are words of `conformance.drivers.EXPRESSES`."""

    def declare(check: Check) -> Rule:
        name = getattr(check, "__name__", str(check))
        return Rule(name, tier, frozenset(kinds), frozenset(needs.split()), check)

    return declare


LEAVES: Final = (Kind.FILE, Kind.CTL, Kind.CALL, Kind.QUEUE, Kind.STREAM, Kind.DATA)


async def read_all(handle: FileHandle, piece: int = 1 << 17) -> bytes:
    """Everything up to the end of file, in pieces. Fails when there is no end."""
    whole = bytearray()
    with anyio.fail_after(FOREVER_S):
        while part := await handle.read(piece, len(whole)):
            assert len(part) <= piece, f"{len(part)} bytes for {piece}"
            whole += part
    return bytes(whole)


async def fill(handle: FileHandle, data: bytes) -> None:
    """Write all of *data*, continuing after short counts, and commit it."""
    done = 0
    while done < len(data):
        taken = await handle.write(data[done:], done)
        assert 0 < taken <= len(data) - done, f"a write of {len(data) - done} bytes took {taken}"
        done += taken
    await handle.flush(final=True)


async def refused(call: Awaitable[Any], *codes: int) -> OSError:
    """The error of *call*, which must have one of *codes*."""
    want = " or ".join(errno.errorcode[code] for code in codes)
    try:
        answer = await call
    except OSError as exc:
        assert exc.errno in codes, f"want {want}, got {errno.errorcode.get(exc.errno or 0, exc.errno)}: {exc}"
        return exc
    if isinstance(answer, FileHandle):
        await answer.aclose()
    raise AssertionError(f"want {want}, but it was done ({answer!r:.60})")


class Only(View):
    """A service of which the root shows the names *names* only, and no other can be walked."""

    def __init__(self, service: FileService, names: Collection[str]) -> None:
        super().__init__(service)
        self._names = frozenset(names)

    def attach(self, principal: Principal) -> Only:
        return Only(self._service.attach(principal), self._names)

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        if path != ROOT:
            return await super().list(path, after, limit)
        found = [st for st in await super().list(path) if st.name in self._names and st.name > after]
        return found[:limit]
