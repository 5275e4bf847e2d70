"""One log in memory: at most two generations of exact lines, and a way back for each append.

It takes no care of units; that is `memory`'s.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator

import msgspec

from agentfs.ports import Append, Line, LogHead
from agentfs.record import compose
from agentfs.types import Record

ZEROS = "0" * 64
KEEP = 2


class _Generation:
    def __init__(self, number: int, first: int, tail: str, now: int) -> None:
        self.epoch, self.number, self.first = os.urandom(8).hex(), number, first
        self.lines: list[bytes] = []
        self.ends: list[int] = []
        self.tails: list[str] = [tail]
        self.changed: list[int] = [now]

    @property
    def size(self) -> int:
        return self.ends[-1] if self.ends else 0

    @property
    def next(self) -> int:
        return self.first + len(self.lines)

    def head(self) -> LogHead:
        """What `Store.log` says of it."""
        tail, changed = self.tails[-1], self.changed[-1]
        return LogHead(self.epoch, self.number, self.first, self.next, self.size, changed, tail)


class MemoryLog:
    """The generations of one log, oldest first."""

    def __init__(self, now: int) -> None:
        self._generations = [_Generation(1, 1, ZEROS, now)]

    def append(self, change: Append, now: int) -> Record:
        """Write one record, rotating first when the generation is full."""
        last = self._generations[-1]
        if last.size and last.size >= change.limit:
            last = _Generation(last.number + 1, last.next, last.tails[-1], now)
            self._generations = [*self._generations, last][-KEEP:]
        seq = last.next
        line = compose(seq, change.doc, last.tails[-1] if change.chain else None)
        last.ends.append(last.size + len(line))
        last.lines.append(line)
        last.tails.append(hashlib.sha256(line).hexdigest())
        last.changed.append(now)
        return Record(f"{last.epoch}-{seq}", line)

    def mark(self) -> tuple[list[_Generation], int]:
        """A place to go back to."""
        return self._generations, len(self._generations[-1].lines)

    def restore(self, mark: tuple[list[_Generation], int]) -> None:
        """Undo every append since *mark*."""
        self._generations, kept = mark  # a rotation makes a new list
        last = self._generations[-1]
        del last.lines[kept:], last.ends[kept:], last.tails[kept + 1 :], last.changed[kept + 1 :]

    def heads(self) -> list[LogHead]:
        """Oldest first."""
        return [generation.head() for generation in self._generations]

    def lines(self, number: int, seq: int, offset: int, limit: int) -> list[Line]:
        """As `Store.lines`."""
        for g in self._generations:
            if g.number == number:
                low = max(seq - g.first, bisect_right(g.ends, offset) if offset > 0 else 0, 0)
                high = len(g.lines) if limit < 0 else min(len(g.lines), low + limit)
                return [Line(g.first + at, g.ends[at], g.lines[at]) for at in range(low, high)]
        return []

    def size(self) -> int:
        """Bytes of all lines held."""
        return sum(generation.size for generation in self._generations)

    def faults(self) -> Iterator[str]:
        """Every line that is no JSON object, and every head that does not go on where the one before ended."""
        for before, after in zip(self._generations, self._generations[1:], strict=False):
            if before.next != after.first or before.number + 1 != after.number:
                yield f"generation {after.number} does not go on where {before.number} ends"
        for g in self._generations:
            for at, line in enumerate(g.lines):
                try:
                    msgspec.json.decode(line, type=dict[str, object])
                except msgspec.DecodeError:
                    yield f"record {g.first + at} is no JSON object"
