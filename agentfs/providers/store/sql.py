"""Statement text made from row shapes; every identifier is quoted, every value is a parameter.

It runs nothing.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import msgspec

from agentfs.providers.store.shape import Shape, shape_of
from agentfs.rows import Row

LINES: Final = 'SELECT "seq", "end", "line" FROM records WHERE log = ? AND seq >= ? ORDER BY seq LIMIT ?'
END: Final = 'SELECT "end" FROM records WHERE log = ? AND seq = ?'
HEADS: Final = (
    "SELECT epoch, generation, first, next, size, changed_at_ns, tail_hash, id, is_chained FROM logs"
    " WHERE agent = ? AND log = ? ORDER BY generation"
)


def quote(name: str) -> str:
    """*name* as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def columns(shape: Shape) -> str:
    """The column list in the struct's order, which `decode` relies on."""
    return ", ".join(map(quote, shape.names))


def under(shape: Shape, count: int, *more: str) -> str:
    """WHERE clause: the first *count* key columns are parameters, and *more* conditions hold."""
    terms = [f"{quote(name)} = ?" for name in shape.key[:count]] + list(more)
    return f" WHERE {' AND '.join(terms)}" if terms else ""


def _store(shape: Shape) -> str:
    return f"INSERT INTO {quote(shape.name)} ({columns(shape)}) VALUES ({', '.join('?' * len(shape.names))})"


@functools.cache
def insert(shape: Shape) -> str:
    """Adds one row; touches no row when the key is taken."""
    return f"{_store(shape)} ON CONFLICT ({', '.join(map(quote, shape.key))}) DO NOTHING"


@functools.cache
def put(shape: Shape) -> str:
    """Adds or replaces one row by its key alone: never by another unique index, as INSERT OR REPLACE would."""
    key = ", ".join(map(quote, shape.key))
    sets = ", ".join(f"{quote(n)} = excluded.{quote(n)}" for n in shape.names if n not in shape.key)
    return f"{_store(shape)} ON CONFLICT ({key}) DO UPDATE SET {sets}"


@functools.cache
def pick(shape: Shape, column: str = "") -> str:
    """One row by its full key: all columns, or *column*."""
    what = quote(column) if column else columns(shape)
    return f"SELECT {what} FROM {quote(shape.name)}{under(shape, len(shape.key))}"


@functools.cache
def delete(shape: Shape, count: int) -> str:
    """Removes the rows below *count* key columns."""
    return f"DELETE FROM {quote(shape.name)}{under(shape, count)}"


@functools.cache
def trim(shape: Shape) -> str:
    """Removes the oldest rows of an agent; parameters: agent, how many."""
    table = quote(shape.name)
    return (
        f"DELETE FROM {table} WHERE rowid IN"
        f" (SELECT rowid FROM {table} INDEXED BY {quote(f'{shape.name}_by_seq')}"
        ' WHERE "agent" = ? ORDER BY "seq" LIMIT ?)'
    )


@functools.cache
def count(shape: Shape, prefix: int) -> str:
    """How many rows lie below *prefix* key columns."""
    return f"SELECT count(*) FROM {quote(shape.name)}{under(shape, prefix)}"


@functools.cache
def total(shape: Shape, column: str, prefix: int) -> str:
    """The sum of *column* below *prefix* key columns."""
    return f"SELECT coalesce(sum({quote(column)}), 0) FROM {quote(shape.name)}{under(shape, prefix)}"


@functools.cache
def firsts(shape: Shape) -> str:
    """The distinct values of the first key column, in order, by one index seek a value."""
    table, column = quote(shape.name), quote(shape.key[0])
    return (
        f"WITH RECURSIVE f(v) AS (SELECT min({column}) FROM {table} UNION ALL"
        f" SELECT (SELECT min({column}) FROM {table} WHERE {column} > v) FROM f WHERE v IS NOT NULL)"
        " SELECT v FROM f WHERE v IS NOT NULL"
    )


@functools.cache
def scan(shape: Shape, prefix: int, by: str, has_after: bool, newest: bool) -> str:
    """Rows in order; parameters: *prefix* key columns, the bound when *has_after*, the limit (-1: none)."""
    order = [by] if by else []
    order += shape.key[prefix:]
    way = " DESC" if newest else ""
    bound = [f"{quote(order[0])} {'<' if newest else '>'} ?"] if has_after else []
    by_text = f" ORDER BY {', '.join(quote(name) + way for name in order)}" if order else ""
    return f"SELECT {columns(shape)} FROM {quote(shape.name)}{under(shape, prefix, *bound)}{by_text} LIMIT ?"


@functools.cache
def _bools(table: type[Row]) -> tuple[str, ...]:
    shape = shape_of(table)
    return tuple(name for name, kind in zip(shape.names, shape.kinds, strict=True) if kind is bool)


def decode(table: type[Row], values: tuple[Any, ...]) -> Any:
    """A stored row as its struct; the types are those of the STRICT table."""
    fields = dict(zip(table.__struct_fields__, values, strict=True))
    for name in _bools(table):
        fields[name] = bool(fields[name])
    return table(**fields)


def examine(table: type[Row], values: tuple[Any, ...]) -> None:
    """`msgspec.ValidationError` when *values* are no row of *table*."""
    fields = dict(zip(table.__struct_fields__, values, strict=True))
    for name in _bools(table):
        if fields[name] in (0, 1):
            fields[name] = bool(fields[name])
    msgspec.convert(fields, table)
