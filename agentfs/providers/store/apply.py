"""Applies the changes of one unit to the tables, in order, inside a transaction its caller owns.

It begins, commits and rolls back nothing; that is `writer`'s.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, Final

import msgspec

from agentfs.ports import Append, AtMost, Clock, Committed, Delete, DropLogs, Expect, Insert, Put, Trim, Unit
from agentfs.providers.store import sql
from agentfs.providers.store.appends import Appends
from agentfs.providers.store.shape import Key, Shape, doubled, numbered, over, shape_of, taken, unmet
from agentfs.rows import Row
from agentfs.types import Record, names_of

_COUNTED: Final = 16384
Counted = tuple[Shape, Key]


class Tables:
    """The writer's view of the tables: next number, log heads and row counts, cached between units.

    After `apply` the caller says `keep` (the unit stands) or `forget` (it was rolled back).
    """

    def __init__(self, conn: sqlite3.Connection, clock: Clock) -> None:
        self._conn = conn
        self._logs = Appends(conn, clock)
        self._counts: dict[Counted, int] = {}
        self._touched: set[Counted] = set()
        self._saved_seq = self._mark = self._seq = self._load_seq()
        self._rows: list[Row] = []
        self._records: list[Record] = []
        self._facets: set[tuple[str, str]] = set()
        self._verbs: dict[type, Callable[[Any], None]] = {
            Insert: self._insert, Put: self._put, Delete: self._delete, Append: self._append, Trim: self._trim,
            Expect: self._expect, AtMost: self._at_most, DropLogs: self._drop_logs,
        }  # fmt: skip

    def apply(self, unit: Unit) -> Committed:
        """Do all of *unit* (already checked); the first failed change's error ends it half-way."""
        self._mark = self._seq
        self._rows, self._records, self._facets = [], [], set()
        for change in unit.changes:
            self._verbs[type(change)](change)
        self._logs.save()
        return Committed(tuple(self._rows), tuple(self._records), frozenset(self._facets))

    def keep(self) -> None:
        """The unit stands."""
        self._logs.keep()
        self._touched.clear()
        if len(self._counts) > _COUNTED:
            self._counts.clear()

    def forget(self) -> None:
        """The unit was rolled back; what earlier units of the transaction did stands."""
        self._seq = self._mark
        self._logs.forget()
        for counted in self._touched:
            self._counts.pop(counted, None)
        self._touched.clear()

    def forget_all(self) -> None:
        """The whole transaction was rolled back."""
        self._seq = self._saved_seq
        self._logs.forget(everything=True)
        self._counts.clear()
        self._touched.clear()

    def save(self) -> None:
        """Write the next number, so that a restart never gives one twice; last thing before COMMIT."""
        if self._seq != self._saved_seq:
            self._conn.execute("UPDATE meta SET value = ? WHERE name = 'seq'", (self._seq,))

    def saved(self) -> None:
        """The COMMIT stands."""
        self._saved_seq = self._seq

    def _load_seq(self) -> int:
        return int(self._conn.execute("SELECT value FROM meta WHERE name = 'seq'").fetchone()[0])

    def _number(self, shape: Shape, row: Row) -> Row:
        seq = row.seq if shape.has_seq else -1  # type: ignore[attr-defined]
        if seq == 0:
            row = numbered(row, self._seq)
            self._seq += 1
        elif seq >= self._seq:
            self._seq = seq + 1
        return row

    def _store(self, statement: str, shape: Shape, row: Row) -> bool:
        try:
            done = self._conn.execute(statement, msgspec.structs.astuple(row))
        except sqlite3.IntegrityError as exc:
            if exc.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_UNIQUE and shape.has_seq:
                raise doubled(shape, row.seq) from exc  # type: ignore[attr-defined]
            raise
        return done.rowcount == 1

    def _stored(self, shape: Shape, key: Key, row: Row, *, is_new: bool) -> None:
        self._rows.append(row)
        self._touch(shape, shape.agent_of(key), names=is_new)

    def _touch(self, shape: Shape, agent: str, *, names: bool) -> None:
        facet = (agent, shape.name)
        self._facets |= {facet, names_of(facet)} if names else {facet}

    def _insert(self, change: Insert) -> None:
        shape = shape_of(type(change.row))
        row, key = self._number(shape, change.row), shape.key_of(change.row)
        if not self._store(sql.insert(shape), shape, row):
            raise taken(shape, key, change.errno)
        self._add(shape, key, 1)
        self._stored(shape, key, row, is_new=True)

    def _put(self, change: Put) -> None:
        shape = shape_of(type(change.row))
        row, key = self._number(shape, change.row), shape.key_of(change.row)
        is_new = self._conn.execute(sql.pick(shape, shape.key[0]), key).fetchone() is None
        if is_new:
            self._add(shape, key, 1)
        self._store(sql.put(shape), shape, row)
        self._stored(shape, key, row, is_new=is_new)

    def _delete(self, change: Delete) -> None:
        shape, key = shape_of(change.table), change.key
        agents = [shape.agent_of(key)] if key else self._agents(shape)
        gone = self._conn.execute(sql.delete(shape, len(key)), key).rowcount
        if gone:
            for agent in agents:
                self._touch(shape, agent, names=True)
            self._add(shape, key, -gone)

    def _agents(self, shape: Shape) -> list[str]:
        if shape.key[0] != "agent":
            return [""]
        return [row[0] for row in self._conn.execute(sql.firsts(shape))]

    def _append(self, change: Append) -> None:
        self._records.append(self._logs.append(change))
        self._facets.add((change.agent, change.log))

    def _trim(self, change: Trim) -> None:
        shape, key = shape_of(change.table), (change.agent,)
        extra = self._count(shape, key) - max(change.keep, 0)
        if extra > 0:
            self._conn.execute(sql.trim(shape), (change.agent, extra))
            self._touch(shape, change.agent, names=True)
            self._add(shape, key, -extra)

    def _expect(self, change: Expect) -> None:
        shape, column = shape_of(change.table), change.column
        row = self._conn.execute(sql.pick(shape, column or shape.key[0]), change.key).fetchone()
        if row is None or (column and row[0] != change.value):
            raise unmet(shape, change.key, column, change.errno)

    def _at_most(self, change: AtMost) -> None:
        shape = shape_of(change.table)
        if self._count(shape, change.prefix) > change.limit:
            raise over(shape, change.prefix, change.limit, change.errno)

    def _drop_logs(self, change: DropLogs) -> None:
        self._facets |= {(change.agent, log) for log in self._logs.drop(change.agent, change.log)}

    def _count(self, shape: Shape, prefix: Key) -> int:
        """Rows below *prefix*: counted once, then kept (counting 100,000 receipts a commit costs milliseconds)."""
        known = self._counts.get((shape, prefix))
        if known is None:
            known = int(self._conn.execute(sql.count(shape, len(prefix)), prefix).fetchone()[0])
            if len(prefix) < 2:
                self._counts[shape, prefix] = known
                self._touched.add((shape, prefix))
        return known

    def _add(self, shape: Shape, key: Key, by: int) -> None:
        """Keep the counts that rows at *key* came to or went from."""
        if not key:
            for counted in [c for c in self._counts if c[0] is shape]:
                del self._counts[counted]
            return
        for prefix in ((), key[:1]):
            if (shape, prefix) in self._counts:
                self._counts[shape, prefix] += by
                self._touched.add((shape, prefix))
