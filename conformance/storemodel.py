"""The naive model of a store: dicts copied whole for each unit. Slow, obvious, and right by inspection.

It knows the port's rules and no provider.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec

from agentfs.errors import error
from agentfs.ports import Append, AtMost, Change, Delete, DropLogs, Expect, Insert, Put, Store, Trim, Unit
from agentfs.rows import TABLES, Row

Place = tuple[str, tuple[str, ...]]


@dataclass
class ModelLog:
    """Generations as lists of lines; ``rotations`` counts those begun."""

    generations: list[list[bytes]] = field(default_factory=lambda: [[]])
    rotations: int = 1
    next: int = 1
    tail: str = "0" * 64


@dataclass
class Model:
    """What a store must hold after the units given to `commit`."""

    rows: dict[Place, Row] = field(default_factory=dict)
    logs: dict[tuple[str, str], ModelLog] = field(default_factory=dict)
    seq: int = 1

    def commit(self, unit: Unit) -> list[Row]:
        """Apply *unit*, or raise and change nothing; the rows stored."""
        after = Model(dict(self.rows), {name: self._copy(log) for name, log in self.logs.items()}, self.seq)
        stored = [row for change in unit.changes for row in after._apply(change)]
        self.rows, self.logs, self.seq = after.rows, after.logs, after.seq
        return stored

    @staticmethod
    def _copy(log: ModelLog) -> ModelLog:
        return replace(log, generations=[list(lines) for lines in log.generations])

    def below(self, table: type[Row], prefix: Sequence[str]) -> list[tuple[str, ...]]:
        """The keys of *table* that start with *prefix*, sorted."""
        depth = len(prefix)
        return sorted(key for name, key in self.rows if name == table.TABLE and key[:depth] == tuple(prefix))

    def _apply(self, change: Change) -> list[Row]:
        if isinstance(change, Insert | Put):
            return [self._store(change)]
        if isinstance(change, Delete):
            for key in self.below(change.table, change.key):
                del self.rows[change.table.TABLE, key]
        elif isinstance(change, Trim):
            held = [(self._seq((change.table.TABLE, key)), key) for key in self.below(change.table, [change.agent])]
            for _, key in sorted(held)[: max(0, len(held) - change.keep)]:
                del self.rows[change.table.TABLE, key]
        elif isinstance(change, Append):
            self._append(change)
        elif isinstance(change, DropLogs):
            gone = [n for n in self.logs if n[0] == change.agent and change.log in ("", n[1])]
            self.logs = {name: log for name, log in self.logs.items() if name not in gone}
        else:
            self._require(change)
        return []

    def _seq(self, place: Place) -> int:
        return int(getattr(self.rows[place], "seq", 0))

    def _store(self, change: Insert | Put) -> Row:
        row = change.row
        table = type(row)
        key = tuple(getattr(row, name) for name in table.KEY)
        place = (table.TABLE, key)
        if isinstance(change, Insert) and place in self.rows:
            raise error(change.errno)
        seq = getattr(row, "seq", None)
        if seq == 0:
            row, self.seq = msgspec.structs.replace(row, seq=self.seq), self.seq + 1
        elif seq is not None:
            if any(self._seq((table.TABLE, k)) == seq for k in self.below(table, key[:1]) if k != key):
                raise error(errno.EINVAL)
            self.seq = max(self.seq, seq + 1)
        self.rows[place] = row
        return row

    def _require(self, change: Expect | AtMost) -> None:
        if isinstance(change, AtMost):
            if len(self.below(change.table, change.prefix)) > change.limit:
                raise error(change.errno)
            return
        row = self.rows.get((change.table.TABLE, change.key))
        if row is None or (change.column and getattr(row, change.column) != change.value):
            raise error(change.errno)

    def _append(self, change: Append) -> None:
        log = self.logs.setdefault((change.agent, change.log), ModelLog())
        size = sum(map(len, log.generations[-1]))
        if size and size >= change.limit:
            log.generations = [log.generations[-1], []]
            log.rotations += 1
        front = f'{{"seq":{log.next},"prev":"{log.tail}"' if change.chain else f'{{"seq":{log.next}'
        rest = "" if change.doc == b"{}" else ","
        line = f"{front}{rest}".encode() + change.doc[1:] + b"\n"
        json.loads(line)
        log.generations[-1].append(line)
        log.tail, log.next = hashlib.sha256(line).hexdigest(), log.next + 1


async def differences(store: Store, model: Model) -> list[str]:
    """Everything in which *store* differs from *model*, read through every way there is to read it."""
    found: list[str] = []
    for table in TABLES:
        keys = model.below(table, [])
        wanted = [model.rows[table.TABLE, key] for key in keys]
        if list(await store.scan(table)) != wanted:
            found.append(f"{table.TABLE}: scan gives other rows than were stored")
        if await store.count(table) != len(keys):
            found.append(f"{table.TABLE}: count is wrong")
        firsts = sorted({key[0] for key in keys})
        if list(await store.agents(table)) != firsts:
            found.append(f"{table.TABLE}: agents are wrong")
        for first in firsts:
            found += await _part(store, model, table, first)
    for (agent, log), held in model.logs.items():
        found += await _log(store, agent, log, held)
    return found + [f"check: {fault}" for fault in await store.check()]


async def _part(store: Store, model: Model, table: type[Row], first: str) -> list[str]:
    found = []
    wanted = [model.rows[table.TABLE, key] for key in model.below(table, [first])]
    if list(await store.scan(table, first)) != wanted or await store.count(table, first) != len(wanted):
        found.append(f"{table.TABLE} {first}: scan or count below an agent is wrong")
    if "seq" in table.INDEX:
        by_seq = sorted(wanted, key=lambda row: int(getattr(row, "seq", 0)))
        if list(await store.scan(table, first, by="seq")) != by_seq:
            found.append(f"{table.TABLE} {first}: scan by seq is wrong")
        if list(await store.scan(table, first, by="seq", newest=True)) != by_seq[::-1]:
            found.append(f"{table.TABLE} {first}: scan of the newest is wrong")
    got = [await store.get(table, *(getattr(row, name) for name in table.KEY)) for row in wanted]
    return found if got == wanted else [*found, f"{table.TABLE} {first}: get is wrong"]


async def _log(store: Store, agent: str, log: str, held: ModelLog) -> list[str]:
    heads = await store.log(agent, log)
    name = f"log {agent}/{log}"
    if [head.size for head in heads] != [sum(map(len, lines)) for lines in held.generations]:
        return [f"{name}: generations or sizes are wrong"]
    if heads and (heads[-1].generation, heads[-1].next) != (held.rotations, held.next):
        return [f"{name}: head is wrong"]
    found = []
    for head, lines in zip(heads, held.generations, strict=True):
        got = await store.lines(agent, log, head.generation, limit=-1)
        if [line.line for line in got] != lines:
            found.append(f"{name}: lines are wrong")
        if [line.seq for line in got] != list(range(head.first, head.next)):
            found.append(f"{name}: numbers are not contiguous")
    return found
