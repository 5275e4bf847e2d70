"""`Core`: what every part of the engine shares: store, clock, limits, logs, versions, and the one way to commit."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

import anyio
import msgspec

from agentfs.engine.logs import Logs
from agentfs.limits import Limits
from agentfs.ports import Append, Change, Clock, Committed, Store, Unit
from agentfs.record import Pulse, RingLog
from agentfs.rows import Row
from agentfs.types import Facet, Record, new_id, rfc3339

R = TypeVar("R", bound=Row)
_VERSIONS_HELD = 65_536
FEW: Final = 32
"""Rows at a time where each may be large."""


class Versions:
    """When each facet last changed, as ns that only rise: a derived file's version and mtime."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = self._floor = clock.now_ns()
        self._at: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._told: list[Callable[[Facet], None]] = []

    def bump(self, agent: str, facet: str) -> None:
        """*facet* of *agent* changed now."""
        self._last = max(self._clock.now_ns(), self._last + 1)
        self._at[agent, facet] = self._last
        self._at.move_to_end((agent, facet))
        if len(self._at) > _VERSIONS_HELD:
            self._floor = self._at.popitem(last=False)[1]
        for tell in self._told:
            tell((agent, facet))

    def latest(self, facets: Sequence[Facet]) -> int:
        """The latest change of any of *facets*, of whichever agents."""
        return max(self.of(*facet) for facet in facets)

    @contextmanager
    def telling(self, tell: Callable[[Facet], None]) -> Iterator[None]:
        """For the body: *tell* is called at each change with its facet, before whoever made it goes on."""
        self._told.append(tell)
        try:
            yield
        finally:
            self._told.remove(tell)

    def of(self, agent: str, *facets: str) -> int:
        """The latest change of any of *facets*."""
        return max(self._at.get((agent, facet), self._floor) for facet in facets)


class Every(AsyncIterator[R]):
    """See `Core.every`. No generator: one that is left half-way must not wait to be closed."""

    def __init__(self, store: Store, table: type[R], prefix: tuple[str, ...]) -> None:
        self._store, self._table, self._prefix = store, table, prefix
        self._page: deque[R] = deque()
        self._after: str | None = None

    async def __anext__(self) -> R:
        if not self._page:
            self._page.extend(await self._store.scan(self._table, *self._prefix, after=self._after, limit=FEW))
        if not self._page:
            raise StopAsyncIteration
        row = self._page.popleft()
        self._after = getattr(row, self._table.KEY[len(self._prefix)])
        return row


class Core:
    """The shared ground of one engine; its parts hold nothing else in common."""

    def __init__(self, store: Store, clock: Clock, limits: Limits) -> None:
        self.store, self.clock, self.limits = store, clock, limits
        self.logs = Logs(store, clock, limits)
        self.versions = Versions(clock)
        self.errors = RingLog(clock, limits.ring_bytes)
        self.in_flight = 0  # commits handed to the store and not answered yet
        self.rests = Pulse()  # fires when the last of them is answered, and when an agent falls asleep

    async def commit(self, *changes: Change) -> Committed:
        """Commit *changes* as one unit, then wake followers and raise versions of what it touched."""
        with anyio.CancelScope(shield=True):  # a unit handed over is stored: its followers must learn of it
            self.in_flight += 1
            try:
                done = await self.store.commit(Unit(changes))
            finally:
                self.in_flight -= 1
                if not self.in_flight:
                    self.rests.fire()
        appends = (change for change in changes if isinstance(change, Append))
        appended: dict[tuple[str, str], list[Record]] = {}
        for change, record in zip(appends, done.records, strict=True):
            appended.setdefault((change.agent, change.log), []).append(record)
        for agent, facet in done.facets:
            self.versions.bump(agent, facet)
            self.logs.touch(agent, facet, appended.get((agent, facet), ()))
        return done

    def every(self, table: type[R], *prefix: str) -> Every[R]:
        """Every row of *table* below *prefix*, a few at a time: each may be large."""
        return Every(self.store, table, prefix)

    def trace(self, agent: str, kind: str, /, **fields: object) -> None:
        """Put an event of *kind* into the trace of *agent*; fields that are None are left out."""
        self.logs.ring(agent).append(self.record(agent, kind, fields))

    def record(self, agent: str, kind: str, fields: Mapping[str, object]) -> bytes:
        """One record of a trace or trajectory as JSON, without its sequence number."""
        known = {k: v for k, v in fields.items() if v is not None}
        return msgspec.json.encode({"at": rfc3339(self.clock.now_ns()), "agent": agent, "type": kind, **known})

    def new_id(self) -> str:
        """A fresh time-ordered id."""
        return new_id(self.clock.now_ns())
