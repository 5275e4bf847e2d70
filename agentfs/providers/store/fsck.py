"""The full check of a store file: SQLite's own, then the invariants of rows and logs.

It reads one snapshot on a connection of its own and repairs nothing.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec

from agentfs.providers.store.appends import KEEP, ZEROS
from agentfs.providers.store.schema import connect
from agentfs.providers.store.shape import shape_of
from agentfs.providers.store.sql import columns, examine, quote
from agentfs.rows import TABLES, Row

MOST: Final = 100
"""Faults listed before the check gives up: a badly damaged file would have one a row."""
_HEADS: Final = (
    'SELECT id, agent, log, generation, epoch, "first", "next", size, tail_hash, is_chained FROM logs'
    " ORDER BY agent, log, generation"
)
_ORPHANS: Final = "SELECT count(*) FROM records WHERE log NOT IN (SELECT id FROM logs)"


def faults_of(path: Path) -> list[str]:
    """Every fault of the store at *path*, at most `MOST`. Blocks for as long as reading the whole file takes."""
    faults: list[str] = []
    with closing(connect(path)) as conn:
        conn.execute("PRAGMA query_only = ON")
        conn.execute("BEGIN")
        try:
            for fault in _all(conn):
                faults.append(fault)
                if len(faults) == MOST:
                    break
        except sqlite3.Error as exc:
            faults.append(f"file: {exc}")
    return faults


def _all(conn: sqlite3.Connection) -> Iterator[str]:
    for (text,) in conn.execute("PRAGMA integrity_check"):
        if text != "ok":
            yield f"file: {text}"
    (following,) = conn.execute("SELECT value FROM meta WHERE name = 'seq'").fetchone() or (None,)
    if following is None:
        yield "meta: the next sequence number is missing"
    for table in TABLES:
        yield from _rows(conn, table, following or 0)
    yield from _logs(conn)


def _rows(conn: sqlite3.Connection, table: type[Row], following: int) -> Iterator[str]:
    shape = shape_of(table)
    for values in conn.execute(f"SELECT {columns(shape)} FROM {quote(shape.name)}"):
        try:
            examine(table, values)
        except msgspec.ValidationError as exc:
            yield f"{shape.name} {values[:2]!r}: {exc}"
    if shape.has_seq:
        statement = (
            f"SELECT seq, count(*) FROM {quote(shape.name)} GROUP BY agent, seq"
            " HAVING count(*) > 1 OR seq <= 0 OR seq >= ?"
        )
        for seq, count in conn.execute(statement, (following,)):
            yield f"{shape.name}: sequence number {seq} (next is {following}) on {count} rows of one agent"


def _logs(conn: sqlite3.Connection) -> Iterator[str]:
    before: Any = None
    held = 0
    for head in conn.execute(_HEADS):
        is_same = before is not None and before[1:3] == head[1:3]
        held = held + 1 if is_same else 1
        name = f"log {head[1]}/{head[2]} generation {head[3]}"
        if held > KEEP:
            yield f"{name}: more than {KEEP} generations held"
        if is_same and (before[3] + 1, before[6]) != (head[3], head[5]):
            yield f"{name}: does not go on where generation {before[3]} ends"
        prev = before[8] if is_same else ZEROS if head[5] == 1 else ""
        yield from (f"{name}: {fault}" for fault in _generation(conn, head, prev))
        before = head
    (orphans,) = conn.execute(_ORPHANS).fetchone()
    if orphans:
        yield f"records: {orphans} belong to no log"


def _generation(conn: sqlite3.Connection, head: Any, prev: str) -> Iterator[str]:
    """Faults of one generation whose first record must name *prev* (empty: what it named is no longer held)."""
    number, _, _, _, epoch, first, following, size, tail_hash, is_chained = head
    seq, end = first, 0
    if len(epoch) != 16:
        yield f"epoch {epoch!r}"
    for at, stop, text in conn.execute('SELECT seq, "end", line FROM records WHERE log = ? ORDER BY seq', (number,)):
        line = text.encode()
        if at != seq:
            yield f"record {seq} is missing, {at} follows"
        if stop != end + len(line):
            yield f"record {at} ends at {stop}, not {end + len(line)}"
        if not _is_line(line, at):
            yield f"record {at} is no line of its number"
        if is_chained and prev and not line.startswith(b'{"seq":%d,"prev":"%s"' % (at, prev.encode())):
            yield f"record {at} does not name the hash of the line before it"
        seq, end, prev = at + 1, stop, hashlib.sha256(line).hexdigest()
    if (seq, end) != (following, size):
        yield f"head says next {following}, size {size}; records say {seq}, {end}"
    if prev and prev != tail_hash:
        yield "head's hash is not that of the last line"


def _is_line(line: bytes, seq: int) -> bool:
    if not line.startswith(b'{"seq":%d' % seq) or not line.endswith(b"}\n"):
        return False
    try:
        return isinstance(msgspec.json.decode(line), dict)
    except msgspec.DecodeError:
        return False
