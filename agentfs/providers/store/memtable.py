"""One table in memory: rows by key, with the key order and each index order kept sorted.

It checks nothing and undoes nothing; that is `memory`'s.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from itertools import islice
from typing import Any

from agentfs.providers.store.shape import Key, Shape
from agentfs.rows import Row

Entry = tuple[str, Any, Key]
"""One place in an index: agent, value, key."""


class MemoryTable:
    """Rows of one shape. Reads cost their depth and what they return; a write moves pointers only."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.rows: dict[Key, Row] = {}
        self._keys: list[Key] = []
        self._index: dict[str, list[Entry]] = {column: [] for column in shape.index}

    def set(self, key: Key, row: Row | None) -> Row | None:
        """Store *row* at *key*, or remove what is there; what was there before."""
        old = self.rows.get(key)
        if old is not None:
            for column, entries in self._index.items():
                del entries[bisect_left(entries, (key[0], getattr(old, column), key))]
        if row is None:
            if self.rows.pop(key, None) is not None:
                del self._keys[bisect_left(self._keys, key)]
            return old
        if old is None:
            insort(self._keys, key)
        self.rows[key] = row
        for column, entries in self._index.items():
            insort(entries, (key[0], getattr(row, column), key))
        return old

    def holder(self, agent: str, seq: int) -> Key | None:
        """The key of the row of *agent* that has the number *seq*."""
        entries = self._index["seq"]
        at = bisect_left(entries, (agent, seq, ()))
        if at < len(entries) and entries[at][:2] == (agent, seq):
            return entries[at][2]
        return None

    def below(self, prefix: Key) -> range:
        """The places in key order of the keys that start with *prefix*."""
        depth = len(prefix)
        low = bisect_left(self._keys, prefix)
        return range(low, bisect_right(self._keys, prefix, lo=low, key=lambda key: key[:depth]))

    def keys(self, prefix: Key) -> list[Key]:
        """The keys that start with *prefix*, in order."""
        places = self.below(prefix)
        return self._keys[places.start : places.stop]

    def oldest(self, agent: str, count: int) -> list[Key]:
        """The keys of the *count* rows of *agent* with the lowest numbers."""
        entries = self._index["seq"]
        low = bisect_left(entries, (agent,))
        return [entry[2] for entry in entries[low : low + count]]

    def scan(self, prefix: Key, by: str, after: Any, limit: int, newest: bool) -> list[Row]:
        """Rows below *prefix* behind *after*, ordered by the index *by* or the rest of the key."""
        keys = self._by_index(prefix, by, after, newest) if by else self._by_key(prefix, after, newest)
        return [self.rows[key] for key in (keys if limit < 0 else islice(keys, limit))]

    def _by_key(self, prefix: Key, after: Any, newest: bool) -> Iterable[Key]:
        places, depth = self.below(prefix), len(prefix)
        if after is not None:
            low, high = places.start, places.stop
            side = bisect_left if newest else bisect_right
            at = side(self._keys, after, lo=low, hi=high, key=lambda key: key[depth])
            places = range(low, at) if newest else range(at, high)
        order = reversed(places) if newest else places
        return (self._keys[place] for place in order)

    def _by_index(self, prefix: Key, by: str, after: Any, newest: bool) -> Iterable[Key]:
        entries = self._index[by]
        if prefix:
            low = bisect_left(entries, prefix[:1])
            high = bisect_right(entries, prefix[0], lo=low, key=lambda entry: entry[0])
        else:
            entries = sorted(entries, key=lambda entry: entry[1:])
            low, high = 0, len(entries)
        if after is not None:
            side = bisect_left if newest else bisect_right
            at = side(entries, after, lo=low, hi=high, key=lambda entry: entry[1])
            low, high = (low, at) if newest else (at, high)
        order = reversed(range(low, high)) if newest else range(low, high)
        depth = len(prefix)
        return (entries[place][2] for place in order if entries[place][2][:depth] == prefix)
