"""`Names`: the sorted names of directories, a page at a time; those of big ones are kept between their pages.

Names that are not UTF-8 have no path and are left out. What a name stands for is not known here.
"""

from __future__ import annotations

import bisect
import heapq
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

_MOST: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Kept:
    mtime_ns: int
    names: Sequence[str]


class Names:
    """At most *most* names are kept, of all directories together. Its methods block; threads may share it."""

    def __init__(self, most: int = _MOST) -> None:
        self._most, self._kept, self._lock = most, OrderedDict[tuple[int, int], _Kept](), threading.Lock()

    def page(self, fd: int, after: str, limit: int) -> Sequence[str]:
        """Up to *limit* names of the directory *fd* behind *after*, by code point.

        A first page is read anew; a later one is cut from what was read for it, if nothing changed since.
        """
        about = os.fstat(fd)
        key = about.st_dev, about.st_ino
        with self._lock:
            held = self._kept.get(key) if after else None
        is_same = held is not None and held.mtime_ns == about.st_mtime_ns
        names = held.names if held is not None and is_same else self._read(fd)
        if names is None:  # too many to hold
            return heapq.nsmallest(limit, (name for name in _each(fd) if name > after))
        begin = bisect.bisect_right(names, after) if after else 0
        is_more = len(names) > limit and begin < len(names)  # who pages asks once more behind the end
        self._keep(key, _Kept(about.st_mtime_ns, names) if is_more else None)
        return names[begin : begin + limit]

    def _read(self, fd: int) -> Sequence[str] | None:
        names = list(islice(_each(fd), self._most + 1))
        return sorted(names) if len(names) <= self._most else None

    def _keep(self, key: tuple[int, int], kept: _Kept | None) -> None:
        with self._lock:
            self._kept.pop(key, None)
            if kept is not None:
                self._kept[key] = kept
            while sum(len(held.names) for held in self._kept.values()) > self._most:
                self._kept.popitem(last=False)


def _each(fd: int) -> Iterator[str]:
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.name.isascii() or _is_utf8(entry.name):
                yield entry.name


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
