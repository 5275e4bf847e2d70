"""The writing side of the logs: composes exact lines, keeps the heads it wrote, rotates.

One connection, one thread, always inside a transaction that its caller owns.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from dataclasses import dataclass
from typing import Final

from agentfs.ports import Append, Clock
from agentfs.providers.store.sql import HEADS
from agentfs.record import compose
from agentfs.types import Record

ZEROS: Final = "0" * 64
KEEP: Final = 2
_NEW: Final = (
    "INSERT INTO logs (agent, log, generation, epoch, first, next, size, changed_at_ns, tail_hash, is_chained)"
    " VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?, 1)"
)
_SAVE: Final = 'UPDATE logs SET "next" = ?, size = ?, changed_at_ns = ?, tail_hash = ?, is_chained = ? WHERE id = ?'
_ADD: Final = 'INSERT INTO records (log, seq, "end", line) VALUES (?, ?, ?, ?)'
_CACHED: Final = 4096
Name = tuple[str, str]


@dataclass(slots=True)
class _Head:
    """The current generation of one log as the writer left it."""

    id: int
    epoch: str
    generation: int
    next: int
    size: int
    changed_at_ns: int
    tail_hash: str
    is_chained: bool


class Appends:
    """Heads are cached between units; `keep` ends a unit that stood, `forget` one that was rolled back."""

    def __init__(self, conn: sqlite3.Connection, clock: Clock) -> None:
        self._conn, self._clock = conn, clock
        self._heads: dict[Name, _Head] = {}
        self._touched: set[Name] = set()

    def append(self, change: Append) -> Record:
        """Write one record; its cursor and exact line."""
        name = (change.agent, change.log)
        self._touched.add(name)
        head = self._heads.get(name) or self._load(name)
        if head is None:
            head = self._begin(name, 1, 1, ZEROS)
        elif head.size and head.size >= change.limit:
            head = self._begin(name, head.generation + 1, head.next, head.tail_hash)
        self._heads[name] = head
        seq = head.next
        line = compose(seq, change.doc, head.tail_hash if change.chain else None)
        head.next, head.size = seq + 1, head.size + len(line)
        head.changed_at_ns, head.tail_hash = self._clock.now_ns(), hashlib.sha256(line).hexdigest()
        head.is_chained = head.is_chained and change.chain
        self._conn.execute(_ADD, (head.id, seq, head.size, line.decode()))
        return Record(f"{head.epoch}-{seq}", line)

    def drop(self, agent: str, log: str) -> list[str]:
        """Remove the log *log* of *agent*, or for "" every one; their names."""
        named, key = ("agent = ? AND log = ?", (agent, log)) if log else ("agent = ?", (agent,))
        rows = self._conn.execute(f"SELECT id, log FROM logs WHERE {named}", key).fetchall()
        for number, name in rows:
            self._conn.execute("DELETE FROM records WHERE log = ?", (number,))
            self._touched.discard((agent, name))
            self._heads.pop((agent, name), None)
            self._conn.execute("DELETE FROM logs WHERE id = ?", (number,))
        return sorted({name for _, name in rows})

    def save(self) -> None:
        """Write the heads this unit moved; part of the unit."""
        for name in self._touched:
            self._save(self._heads[name])

    def keep(self) -> None:
        """The unit stands."""
        self._touched.clear()
        if len(self._heads) > _CACHED:
            self._heads.clear()

    def forget(self, *, everything: bool = False) -> None:
        """The unit, or all since the last COMMIT, was rolled back."""
        for name in self._touched:
            self._heads.pop(name, None)
        self._touched.clear()
        if everything:
            self._heads.clear()

    def _load(self, name: Name) -> _Head | None:
        rows = self._conn.execute(HEADS, name).fetchall()
        if not rows:
            return None
        epoch, generation, _, following, size, changed, tail, number, is_chained = rows[-1]
        return _Head(number, epoch, generation, following, size, changed, tail, bool(is_chained))

    def _begin(self, name: Name, generation: int, first: int, tail: str) -> _Head:
        """A new generation; the one two before it goes."""
        if generation > KEEP:
            gone = (*name, generation - KEEP)
            old = "SELECT id FROM logs WHERE agent = ? AND log = ? AND generation <= ?"
            self._conn.execute(f"DELETE FROM records WHERE log IN ({old})", gone)
            self._conn.execute("DELETE FROM logs WHERE agent = ? AND log = ? AND generation <= ?", gone)
        if name in self._heads:
            self._save(self._heads[name])
        epoch, now = os.urandom(8).hex(), self._clock.now_ns()
        done = self._conn.execute(_NEW, (*name, generation, epoch, first, first, now, tail))
        return _Head(int(done.lastrowid or 0), epoch, generation, first, 0, now, tail, is_chained=True)

    def _save(self, h: _Head) -> None:
        self._conn.execute(_SAVE, (h.next, h.size, h.changed_at_ns, h.tail_hash, h.is_chained, h.id))
