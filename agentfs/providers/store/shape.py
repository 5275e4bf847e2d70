"""What a store must know of a row struct, and the one gate for units: both providers refuse the same things.

It touches no storage; SQL text is `sql`'s.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from agentfs.errors import BY_ERRNO, error
from agentfs.ports import Append, AtMost, Change, Delete, DropLogs, Expect, Insert, Put, Trim, Unit
from agentfs.rows import TABLES, Row

Key = tuple[str, ...]
SEQ_MAX: Final = 1 << 62
_INT64: Final = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """One table: ``kinds`` are the Python types of ``names``, both in column order; ``key`` as in `Row.KEY`."""

    row: type[Row]
    name: str
    names: tuple[str, ...]
    kinds: tuple[type, ...]
    optional: frozenset[str]
    key: tuple[str, ...]
    index: tuple[str, ...]

    @property
    def has_seq(self) -> bool:
        """True when the writer numbers the rows."""
        return "seq" in self.names

    def key_of(self, row: Row) -> Key:
        """The full key of *row*."""
        return tuple([getattr(row, name) for name in self.key])

    def agent_of(self, key: Key) -> str:
        """The agent whose facet a row with *key* belongs to; empty for none."""
        return key[0] if self.key[0] == "agent" else ""


@functools.cache
def shape_of(table: type[Row]) -> Shape:
    """The shape of *table*; EINVAL when the store has no such table."""
    if table not in TABLES:
        raise error(errno.EINVAL, detail=f"table {table.__name__}: not one of the store's")
    kinds, optional = [], set()
    columns = msgspec.structs.fields(table)
    for column in columns:
        parts = [part for part in getattr(column.type, "__args__", (column.type,)) if part is not type(None)]
        kinds.append(parts[0])
        if parts != [column.type]:
            optional.add(column.encode_name)
    names = tuple(column.encode_name for column in columns)
    return Shape(table, table.TABLE, names, tuple(kinds), frozenset(optional), table.KEY, table.INDEX)


def _is_plain(value: object) -> bool:
    """Whether *value* needs no closer look to be stored as text; nearly all keys are such."""
    return type(value) is str and value.isascii()


def check_text(value: object, what: str) -> None:
    """EINVAL unless *value* is a str, EILSEQ when it holds lone surrogates."""
    if not isinstance(value, str):
        raise error(errno.EINVAL, detail=f"{what}: want str, not {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise error(errno.EILSEQ, detail=what) from exc


def check_key(shape: Shape, key: tuple[object, ...], *, full: bool = False) -> None:
    """EINVAL when *key* has too many columns for *shape* (or too few, with *full*) or one that is no text."""
    if len(key) > len(shape.key) or (full and len(key) < len(shape.key)):
        raise error(errno.EINVAL, detail=f"{shape.name} key: want {'' if full else 'at most '}{len(shape.key)} columns")
    for name, value in zip(shape.key, key, strict=False):
        if not _is_plain(value):
            check_text(value, f"{shape.name}.{name}")


def check_column(shape: Shape, column: str, allowed: Iterable[str]) -> None:
    """EINVAL unless *column* is one of *allowed*."""
    if column not in allowed:
        raise error(errno.EINVAL, detail=f"{shape.name}: no such column {column[:60]!r} here")


def _check_value(shape: Shape, name: str, kind: type, value: Any) -> None:
    if kind is str and _is_plain(value):
        return
    what = f"{shape.name}.{name}"
    if value is None:
        if name not in shape.optional:
            raise error(errno.EINVAL, detail=f"{what}: may not be null")
    elif kind is str:
        check_text(value, what)
    elif kind is int:
        if type(value) is not int or value not in _INT64:
            raise error(errno.EINVAL, detail=f"{what}: want an int of 64 bits")
    elif type(value) is not kind:
        raise error(errno.EINVAL, detail=f"{what}: want {kind.__name__}, not {type(value).__name__}")


def check_row(row: Row) -> None:
    """EINVAL or EILSEQ naming the first column of *row* that no store can keep."""
    shape = shape_of(type(row))
    for name, kind, value in zip(shape.names, shape.kinds, msgspec.structs.astuple(row), strict=True):
        _check_value(shape, name, kind, value)
    if shape.has_seq and not 0 <= getattr(row, "seq") < SEQ_MAX:  # noqa: B009 (not every Row has it)
        raise error(errno.EINVAL, detail=f"{shape.name}.seq: out of range")


def _check_append(change: Append) -> None:
    check_text(change.agent, "log agent")
    check_text(change.log, "log name")
    doc = change.doc
    is_object = isinstance(doc, bytes) and (doc == b"{}" or (doc.startswith(b'{"') and doc.endswith(b"}")))
    if not is_object or b"\n" in doc:
        raise error(errno.EINVAL, detail=f"log {change.log}: want one JSON object without newline")
    if not doc.isascii():
        try:
            doc.decode()
        except UnicodeDecodeError as exc:
            raise error(errno.EILSEQ, detail=f"log {change.log}") from exc


def _check_reads(change: Expect | AtMost | Delete | Trim) -> None:
    shape = shape_of(change.table)
    if isinstance(change, Expect):
        check_key(shape, change.key, full=True)
        if change.column:
            check_column(shape, change.column, shape.names)
    elif isinstance(change, AtMost):
        check_key(shape, change.prefix)
    elif isinstance(change, Delete):
        check_key(shape, change.key)
    else:
        check_text(change.agent, "agent")
        check_column(shape, "agent", shape.names)
        check_column(shape, "seq", shape.index)


def check_change(change: Change) -> None:
    """EINVAL or EILSEQ for a change no store may take, whatever it holds."""
    if isinstance(change, Insert | Put):
        check_row(change.row)
    elif isinstance(change, Append):
        _check_append(change)
    elif isinstance(change, DropLogs):
        check_text(change.agent, "agent")
        check_text(change.log, "log")
    else:
        _check_reads(change)
    code = getattr(change, "errno", errno.EINVAL)
    if code not in BY_ERRNO:
        raise error(errno.EINVAL, detail=f"errno {code!r}: not in the error table")


def check_unit(unit: Unit) -> None:
    """`check_change` for every change of *unit*, before any of them is tried."""
    for change in unit.changes:
        check_change(change)


def numbered(row: Row, seq: int) -> Row:
    """*row* with the number *seq*."""
    return msgspec.structs.replace(row, seq=seq)


def taken(shape: Shape, key: Key, code: int) -> OSError:
    """The refusal of an Insert whose key is taken."""
    return error(code, detail=f"{shape.name} {'/'.join(key)[:200]} is already there")


def unmet(shape: Shape, key: Key, column: str, code: int) -> OSError:
    """The refusal of an Expect."""
    return error(code, detail=f"{shape.name} {'/'.join(key)[:200]}: {column or 'row'} is not as expected")


def over(shape: Shape, prefix: Key, limit: int, code: int) -> OSError:
    """The refusal of an AtMost."""
    return error(code, detail=f"{shape.name} {'/'.join(prefix)[:200]}: over {limit} rows")


def doubled(shape: Shape, seq: int) -> OSError:
    """The refusal of a row whose explicit number another row of its agent has."""
    return error(errno.EINVAL, detail=f"{shape.name}.seq: {seq} is another row's")


def check_scan(shape: Shape, prefix: Key, by: str, after: object) -> str:
    """The column a scan is ordered by first ("": the prefix is a full key); EINVAL for arguments no index serves."""
    check_key(shape, prefix)
    if by:
        check_column(shape, by, shape.index)
    column = by or (*shape.key, "")[len(prefix)]
    if after is not None:
        check_column(shape, column, shape.names)
        _check_value(shape, column, shape.kinds[shape.names.index(column)], after)
    return column


def check_total(shape: Shape, prefix: Key, column: str) -> None:
    """EINVAL unless *column* holds integers."""
    check_key(shape, prefix)
    kinds = zip(shape.names, shape.kinds, strict=True)
    check_column(shape, column, (name for name, kind in kinds if kind is int))
