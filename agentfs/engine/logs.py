"""The logs of agents: durable ones read from the store, traces in memory rings, one object per log while it is in use.

Reading and waking only; appending to a durable log is a change in a commit.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence

from agentfs.limits import Limits
from agentfs.ports import Clock, Line, LogHead, Store
from agentfs.record import Log, RingLog
from agentfs.types import Record

_RINGS_HELD = 256
_TAIL_BYTES = 65_536


class StoreLog(Log):
    """A log in the store; `Logs.touch` wakes its followers after each commit that appended.

    What was appended last is kept at hand while anybody follows: who is near the end asks no store.
    """

    def __init__(self, store: Store, agent: str, name: str) -> None:
        super().__init__()
        self._store, self._agent, self._name = store, agent, name
        self._tail: deque[tuple[int, Record]] = deque()
        self._held, self._epoch = 0, ""

    def appended(self, records: Sequence[Record]) -> None:
        """*records* were committed (none: something else became of the log). Answers of commits come in any order."""
        if not records:
            self._forget()
        for record in records:
            epoch, _, number = record.cursor.rpartition("-")
            seq = int(number)
            if self._tail and (epoch != self._epoch or seq > self._tail[-1][0] + 1):
                self._forget()
            if self._tail and seq <= self._tail[-1][0]:
                continue
            self._tail.append((seq, record))
            self._epoch, self._held = epoch, self._held + len(record.line)
        while self._held > _TAIL_BYTES:
            self._held -= len(self._tail.popleft()[1].line)
        self.pulse.fire()

    def _forget(self) -> None:
        self._tail.clear()
        self._held = 0

    def recent(self, seq: int) -> Sequence[tuple[int, Record]] | None:
        if not self._tail or not self._tail[0][0] <= max(seq, 1) <= self._tail[-1][0] + 1:
            return None
        return [held for held in self._tail if held[0] >= seq]

    async def heads(self) -> Sequence[LogHead]:
        return await self._store.log(self._agent, self._name)

    async def lines(self, generation: int, *, seq: int = 0, offset: int = 0, limit: int = 256) -> Sequence[Line]:
        return await self._store.lines(self._agent, self._name, generation, seq=seq, offset=offset, limit=limit)


class Logs:
    """One object per log that anybody reads or follows; rings of the most recent agents are kept beside."""

    def __init__(self, store: Store, clock: Clock, limits: Limits) -> None:
        self._store, self._clock, self._limits = store, clock, limits
        self._durable: weakref.WeakValueDictionary[tuple[str, str], StoreLog] = weakref.WeakValueDictionary()
        self._rings: weakref.WeakValueDictionary[str, RingLog] = weakref.WeakValueDictionary()
        self._recent: OrderedDict[str, RingLog] = OrderedDict()

    def durable(self, agent: str, name: str) -> StoreLog:
        """The log *name* of *agent* in the store."""
        log = self._durable.get((agent, name))
        if log is None:
            log = self._durable[agent, name] = StoreLog(self._store, agent, name)
        return log

    def ring(self, agent: str) -> RingLog:
        """The trace of *agent*; a watched one lives as long as its watchers, others among the most recent."""
        ring = self._rings.get(agent)
        if ring is None:
            ring = self._rings[agent] = RingLog(self._clock, self._limits.ring_bytes)
        self._recent[agent] = ring
        self._recent.move_to_end(agent)
        if len(self._recent) > _RINGS_HELD:
            self._recent.popitem(last=False)
        return ring

    def drop(self, agent: str) -> None:
        """The agent is gone: its followers end, and one of the same name begins logs of its own."""
        ring = self._rings.pop(agent, None)
        self._recent.pop(agent, None)
        logs: list[Log] = [self._durable.pop(key) for key in list(self._durable) if key[0] == agent]
        for log in [*logs, *([ring] if ring is not None else [])]:
            log.finish()

    def finish(self, agent: str, name: str) -> None:
        """Nothing more comes in this log: its followers end. One of the same name may begin anew."""
        if (log := self._durable.pop((agent, name), None)) is not None:
            log.finish()

    def touch(self, agent: str, name: str, records: Sequence[Record]) -> None:
        """*records* were appended: wake the followers."""
        if (log := self._durable.get((agent, name))) is not None:
            log.appended(records)
