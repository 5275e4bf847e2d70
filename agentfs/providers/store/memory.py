"""The store that lives and dies with its process: the same rules as the durable one, in plain Python.

A unit applies at once on the loop's thread; every step leaves its inverse, so a failed unit is undone backwards.
Others have their turn at some commits only, as a switch of tasks costs more than a small unit.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from agentfs.errors import error
from agentfs.ports import (
    Append,
    AtMost,
    Clock,
    Committed,
    Delete,
    DropLogs,
    Expect,
    Insert,
    Line,
    LogHead,
    Put,
    Trim,
    Unit,
)  # fmt: skip
from agentfs.providers.store.memlog import MemoryLog
from agentfs.providers.store.memtable import MemoryTable
from agentfs.providers.store.shape import (
    Key,
    Shape,
    check_key,
    check_scan,
    check_text,
    check_total,
    check_unit,
    doubled,
    numbered,
    over,
    shape_of,
    taken,
    unmet,
)  # fmt: skip
from agentfs.rows import TABLES, Row
from agentfs.types import Record, names_of

R = TypeVar("R", bound=Row)
FREE: Final = 1 << 40
"""What `usage` says is free: memory has no limit of its own here."""
_TURN: Final = 64  # commits and rows of them, after which somebody else must have had a turn


class MemoryStore:
    """A `Store` without a file. Single event loop only; nothing outlives it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tables = {table: MemoryTable(shape_of(table)) for table in TABLES}
        self._logs: dict[tuple[str, str], MemoryLog] = {}
        self._seq = 1
        self._is_closed = False
        self._steps = 0
        self._undo: list[Callable[[], object]] = []
        self._rows: list[Row] = []
        self._records: list[Record] = []
        self._facets: set[tuple[str, str]] = set()
        self._verbs: dict[type, Callable[[Any], None]] = {
            Insert: self._insert, Put: self._put, Delete: self._delete, Append: self._append, Trim: self._trim,
            Expect: self._expect, AtMost: self._at_most, DropLogs: self._drop_logs,
        }  # fmt: skip

    async def commit(self, unit: Unit) -> Committed:
        """See `Store.commit`."""
        check_unit(unit)
        self._steps += 1 + len(self._undo)  # which is what the unit before did
        if self._steps < _TURN:
            await checkpoint_if_cancelled()
        else:
            self._steps = 0
            await checkpoint()
        self._live()
        seq = self._seq
        self._undo, self._rows, self._records, self._facets = [], [], [], set()
        try:
            for change in unit.changes:
                self._verbs[type(change)](change)
        except BaseException:
            for step in reversed(self._undo):
                step()
            self._seq = seq
            raise
        return Committed(tuple(self._rows), tuple(self._records), frozenset(self._facets))

    async def get(self, table: type[R], *key: str) -> R | None:
        """See `Store.get`."""
        check_key(shape_of(table), key, full=True)
        row: Any = self._table(table).rows.get(key)
        return row  # type: ignore[no-any-return]

    async def scan(
        self, table: type[R], *prefix: str, by: str = "", after: object = None, limit: int = -1, newest: bool = False
    ) -> Sequence[R]:
        """See `Store.scan`."""
        check_scan(shape_of(table), prefix, by, after)
        rows: Any = self._table(table).scan(prefix, by, after, limit, newest)
        return rows  # type: ignore[no-any-return]

    async def count(self, table: type[Row], *prefix: str) -> int:
        """See `Store.count`."""
        check_key(shape_of(table), prefix)
        return len(self._table(table).below(prefix))

    async def total(self, table: type[Row], column: str, *prefix: str) -> int:
        """See `Store.total`."""
        check_total(shape_of(table), prefix, column)
        held = self._table(table)
        return sum(getattr(held.rows[key], column) or 0 for key in held.keys(prefix))

    async def agents(self, table: type[Row]) -> Sequence[str]:
        """See `Store.agents`; of a table without that column, its ids."""
        return sorted({key[0] for key in self._table(table).rows})

    async def log(self, agent: str, log: str) -> Sequence[LogHead]:
        """See `Store.log`."""
        found = self._log(agent, log)
        return found.heads() if found else []

    async def lines(
        self, agent: str, log: str, generation: int, *, seq: int = 0, offset: int = 0, limit: int = 256
    ) -> Sequence[Line]:
        """See `Store.lines`."""
        found = self._log(agent, log)
        return found.lines(generation, seq, offset, limit) if found else []

    async def usage(self) -> tuple[int, int]:
        """Roughly the bytes of what is held, and a large number."""
        self._live()
        rows = sum(len(msgspec.msgpack.encode(row)) for held in self._tables.values() for row in held.rows.values())
        return rows + sum(log.size() for log in self._logs.values()), FREE

    async def check(self) -> Sequence[str]:
        """See `Store.check`."""
        self._live()
        return [f"log {agent}/{log}: {text}" for (agent, log), held in self._logs.items() for text in held.faults()]

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        self._is_closed = True

    def _live(self) -> None:
        if self._is_closed:
            raise error(errno.ENOTCONN, detail="store is closed")

    def _table(self, table: type[Row]) -> MemoryTable:
        self._live()
        return self._tables[table]

    def _log(self, agent: str, log: str) -> MemoryLog | None:
        self._live()
        check_text(agent, "log agent")
        check_text(log, "log name")
        return self._logs.get((agent, log))

    def _set(self, table: MemoryTable, key: Key, row: Row | None) -> None:
        old = table.set(key, row)
        self._undo.append(lambda: table.set(key, old))

    def _touch(self, shape: Shape, key: Key, *, names: bool) -> None:
        facet = (shape.agent_of(key), shape.name)
        self._facets |= {facet, names_of(facet)} if names else {facet}

    def _store(self, table: MemoryTable, row: Row) -> None:
        shape, key = table.shape, table.shape.key_of(row)
        seq = row.seq if shape.has_seq else -1  # type: ignore[attr-defined]
        if seq == 0:
            row = numbered(row, self._seq)
            self._seq += 1
        elif seq > 0:
            if table.holder(key[0], seq) not in (None, key):
                raise doubled(shape, seq)
            self._seq = max(self._seq, seq + 1)
        self._touch(shape, key, names=key not in table.rows)
        self._set(table, key, row)
        self._rows.append(row)

    def _insert(self, change: Insert) -> None:
        table = self._tables[type(change.row)]
        key = table.shape.key_of(change.row)
        if key in table.rows:
            raise taken(table.shape, key, change.errno)
        self._store(table, change.row)

    def _put(self, change: Put) -> None:
        self._store(self._tables[type(change.row)], change.row)

    def _remove(self, table: MemoryTable, keys: Sequence[Key]) -> None:
        for key in keys:
            self._set(table, key, None)
            self._touch(table.shape, key, names=True)

    def _delete(self, change: Delete) -> None:
        table = self._tables[change.table]
        self._remove(table, table.keys(change.key))

    def _trim(self, change: Trim) -> None:
        table = self._tables[change.table]
        extra = len(table.below((change.agent,))) - max(change.keep, 0)
        if extra > 0:
            self._remove(table, table.oldest(change.agent, extra))

    def _expect(self, change: Expect) -> None:
        table = self._tables[change.table]
        row = table.rows.get(change.key)
        if row is None or (change.column and getattr(row, change.column) != change.value):
            raise unmet(table.shape, change.key, change.column, change.errno)

    def _at_most(self, change: AtMost) -> None:
        table = self._tables[change.table]
        if len(table.below(change.prefix)) > change.limit:
            raise over(table.shape, change.prefix, change.limit, change.errno)

    def _append(self, change: Append) -> None:
        name = (change.agent, change.log)
        log = self._logs.get(name)
        if log is None:
            log = self._logs[name] = MemoryLog(self._clock.now_ns())
            self._undo.append(lambda: self._logs.pop(name))
        mark = log.mark()
        self._undo.append(lambda: log.restore(mark))
        self._records.append(log.append(change, self._clock.now_ns()))
        self._facets.add(name)

    def _drop_logs(self, change: DropLogs) -> None:
        named = [(change.agent, change.log)] if change.log else [name for name in self._logs if name[0] == change.agent]
        for name in self._logs.keys() & named:
            self._undo.append(partial(self._logs.__setitem__, name, self._logs.pop(name)))
            self._facets.add(name)
