"""Record logs with epochs and cursors: what every stream, watch and trace reads from.

`Log` is the reading side, `RingLog` one kept in memory, `Follow` a watcher's place in either. No file handles here.
"""

from __future__ import annotations

import bisect
import errno
import os
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

import anyio
import msgspec

from agentfs.errors import error
from agentfs.ports import Clock, Line, LogHead
from agentfs.types import Record

_CURSOR = re.compile(r"([0-9a-f]+)-([0-9]{1,18})\Z")
OLDEST = "0"
"""The cursor before the oldest record held."""


class Pulse:
    """A change that any number of tasks can wait for without missing one."""

    def __init__(self) -> None:
        self.count = 0
        self._event: anyio.Event | None = None

    def fire(self) -> None:
        """Wake every waiter."""
        self.count += 1
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self, seen: int) -> None:
        """Return once `count` differs from *seen*."""
        if self.count != seen:
            return
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()


class Log(ABC):
    """The reading side of a record log: at most two generations, sequence numbers going on across them."""

    is_finished: bool = False
    """True when nothing more will be appended (a job's stream, say): followers then end, and late ones replay it."""

    is_finite: bool = False
    """True when it is one answer (a job's stream), of which a watcher wants the first record too."""

    def __init__(self) -> None:
        self.pulse = Pulse()

    def finish(self) -> None:
        """Nothing more will come."""
        self.is_finished = True
        self.pulse.fire()

    @abstractmethod
    async def heads(self) -> Sequence[LogHead]:
        """The generations held, oldest first; empty when nothing was ever appended."""

    @abstractmethod
    async def lines(self, generation: int, *, seq: int = 0, offset: int = 0, limit: int = 256) -> Sequence[Line]:
        """Records of *generation* numbered >= *seq* that end behind *offset*, in order; empty if it is gone."""

    def recent(self, seq: int) -> Sequence[tuple[int, Record]] | None:
        """Every record numbered >= *seq*, when they are at hand; None: only `heads` and `lines` know."""
        return None

    async def read(self, generation: int, size: int, offset: int) -> bytes:
        """Up to *size* bytes of one generation at *offset*; bytes never change."""
        out = bytearray()
        while len(out) < size:
            lines = await self.lines(generation, offset=offset + len(out), limit=min(256, size // 64 + 1))
            for line in lines:
                begin = line.end - len(line.line)
                out += line.line[offset + len(out) - begin :]
                if len(out) >= size:
                    break
            if not lines:
                break
        return bytes(out[:size])


def compose(seq: int, doc: bytes, prev: str | None = None) -> bytes:
    """The exact line of a record: *doc* (a JSON object) with its number, and its predecessor's hash, in front."""
    head = b'{"seq":%d' % seq if prev is None else b'{"seq":%d,"prev":"%s"' % (seq, prev.encode())
    return head + (b"}\n" if doc == b"{}" else b"," + doc[1:] + b"\n")


class _Generation:
    def __init__(self, number: int, first: int) -> None:
        self.epoch, self.number, self.first = os.urandom(8).hex(), number, first
        self.lines: list[bytes] = []
        self.ends: list[int] = []
        self.changed_at_ns = 0

    @property
    def size(self) -> int:
        return self.ends[-1] if self.ends else 0

    def head(self) -> LogHead:
        return LogHead(self.epoch, self.number, self.first, self.first + len(self.lines), self.size, self.changed_at_ns)


class RingLog(Log):
    """A log in memory that holds at most two generations of *limit* bytes each. Single event loop only."""

    def __init__(self, clock: Clock, limit: int) -> None:
        super().__init__()
        self._clock, self._limit = clock, limit
        self._generations = [_Generation(1, 1)]

    def append(self, doc: bytes) -> Record:
        """Append the JSON object *doc*; never blocks."""
        current = self._generations[-1]
        if current.size >= self._limit:
            current = _Generation(current.number + 1, current.first + len(current.lines))
            self._generations = [self._generations[-1], current]
        seq = current.first + len(current.lines)
        line = compose(seq, doc)
        current.ends.append(current.size + len(line))
        current.lines.append(line)
        current.changed_at_ns = self._clock.now_ns()
        self.pulse.fire()
        return Record(f"{current.epoch}-{seq}", line)

    async def heads(self) -> Sequence[LogHead]:
        return [g.head() for g in self._generations]

    async def lines(self, generation: int, *, seq: int = 0, offset: int = 0, limit: int = 256) -> Sequence[Line]:
        for g in self._generations:
            if g.number == generation:
                at = max(seq - g.first, bisect.bisect_right(g.ends, offset))
                stop = min(len(g.lines), at + limit)
                return [Line(g.first + i, g.ends[i], g.lines[i]) for i in range(at, stop)]
        return []


class Follow:
    """A watcher's place in a log: every record after its cursor, in order, once, or one ``gap`` record.

    Pull-based: a slow watcher holds nothing back; when the log has dropped what it had not read it gets a gap with
    the reason ``lagged``. Cancelling `next` loses nothing.
    """

    def __init__(self, log: Log, seq: int) -> None:
        self._log, self._seq = log, seq
        self._cursor = OLDEST
        self._ready: deque[Record] = deque()

    @classmethod
    async def start(cls, log: Log, cursor: str | None) -> Follow:
        """Begin behind *cursor*; None: with the next record, or with the first of one that is finished or finite.

        EINVAL for a malformed cursor. A cursor of another epoch, or one the log never gave, begins with a gap.
        """
        heads = await log.heads()
        if cursor is None:
            return cls(log, heads[-1].next if heads and not (log.is_finished or log.is_finite) else 0)
        if cursor == OLDEST:
            return cls(log, 0)
        parts = _CURSOR.match(cursor)
        if parts is None:
            raise error(errno.EINVAL, detail=f"cursor {cursor[:60]!r}: want <epoch>-<seq>")
        epoch, seq = parts[1], int(parts[2])
        for head in heads:
            if head.epoch == epoch and head.first - 1 <= seq < head.next:
                return cls(log, seq + 1)
        follow = cls(log, 0)
        oldest = heads[0] if heads else None
        follow._note_gap(cursor, "epoch", oldest.epoch if oldest else "", oldest.first if oldest else 1)
        return follow

    def is_ready(self) -> bool:
        """True when records lie ready to be taken without asking the log."""
        return bool(self._ready) or self._log.is_finished

    async def fill(self) -> bool:
        """Fetch what the log has behind this place; True when `next` will not block."""
        if not self._ready:
            await self._fetch()
        return self.is_ready()

    async def next(self) -> Record | None:
        """The next record, waiting for it; None at the end of a finished log."""
        while not self._ready:
            seen, finished = self._log.pulse.count, self._log.is_finished
            await self._fetch()
            if self._ready:
                break
            if finished:
                return None
            await self._log.pulse.wait(seen)
        return self._ready.popleft()

    def next_nowait(self) -> Record | None:
        """The next record if it has been fetched already, else None."""
        return self._ready.popleft() if self._ready else None

    async def wait(self) -> None:
        """Return when the log has changed since the last `fill` found nothing."""
        seen = self._log.pulse.count
        if not await self.fill():
            await self._log.pulse.wait(seen)
            await self.fill()

    async def _fetch(self) -> None:
        if (recent := self._log.recent(self._seq)) is not None:
            self._ready.extend(record for _, record in recent)
            if recent:
                self._seq, self._cursor = recent[-1][0] + 1, self._ready[-1].cursor
            return
        heads = await self._log.heads()
        for head in heads:
            if head.next <= max(self._seq, head.first):
                continue
            lines = await self._log.lines(head.generation, seq=self._seq)
            if not lines:
                continue
            if self._ready:  # another caller of this handle fetched while we waited
                return
            if 0 < self._seq < lines[0].seq:
                self._note_gap(self._cursor, "lagged", head.epoch, lines[0].seq)
            self._ready.extend(Record(f"{head.epoch}-{line.seq}", line.line) for line in lines)
            self._seq = lines[-1].seq + 1
            self._cursor = self._ready[-1].cursor
            return

    def _note_gap(self, cursor: str, reason: str, epoch: str, first: int) -> None:
        doc = {"type": "gap", "from": cursor, "to": f"{epoch}-{first}" if epoch else OLDEST, "reason": reason}
        resume = f"{epoch}-{first - 1}" if epoch else OLDEST
        self._ready.append(Record(resume, msgspec.json.encode(doc) + b"\n"))
