"""`Kept`: answers that the store gave and that still hold, so that the same question is not asked of SQLite again.

It asks nothing itself. What a unit under way may change is not kept: of that only the file knows what is committed.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from agentfs.ports import Append, Delete, DropLogs, Insert, Put, Trim, Unit
from agentfs.providers.store.shape import Key, Shape, shape_of
from agentfs.types import Facet

Touched: TypeAlias = Collection[Facet] | None
"""The facets that a unit may change; None: any."""

KEPT_BYTES: Final = 8 << 20
ANSWER_BYTES: Final = 4096
_ROWS: Final = 32
_OWN_BYTES: Final = 512  # roughly what an answer takes beside its values


def facet_of(shape: Shape, prefix: Key) -> Facet | None:
    """The facet that holds all rows below *prefix*; None when they are of several."""
    return None if not prefix and shape.key[0] == "agent" else (shape.agent_of(prefix), shape.name)


def _of_row(change: Insert | Put) -> Facet | None:
    shape = shape_of(type(change.row))
    return facet_of(shape, shape.key_of(change.row))


_CHANGED: Final[Mapping[type, Callable[[Any], Facet | None]]] = {
    Insert: _of_row,
    Put: _of_row,
    Delete: lambda change: facet_of(shape_of(change.table), change.key),
    Trim: lambda change: facet_of(shape_of(change.table), (change.agent,)),
    Append: lambda change: (change.agent, change.log),
    DropLogs: lambda change: (change.agent, change.log) if change.log else None,
}


def touched(unit: Unit) -> Touched:
    """The facets that *unit* (already checked) may change."""
    found = {_CHANGED[type(change)](change) for change in unit.changes if type(change) in _CHANGED}
    return None if None in found else found  # type: ignore[return-value]  # no None is left


def weight(rows: Sequence[Sequence[object]]) -> int:
    """Roughly the bytes of the values of *rows*."""
    return sum([len(value) for row in rows for value in row if isinstance(value, str | bytes)])


class Kept:
    """Answers by question, at most *limit* bytes of them; all of it on one thread, that of the reads.

    An answer is a tuple of values that never change. It is given up before a unit that may change it is handed over,
    and not kept again until that unit is done: whatever became of it, no reader sees an older state than the file's.
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit, self._size = limit, 0
        self._answers: dict[Hashable, tuple[Any, ...]] = {}
        self._asked: OrderedDict[Facet, dict[Hashable, int]] = OrderedDict()  # with what each answer weighs
        self._under_way: Counter[Facet | None] = Counter()
        self.get = self._answers.get

    def keep(self, question: Hashable, facet: Facet, rows: Sequence[Sequence[object]], answer: tuple[Any, ...]) -> None:
        """Keep *answer*, which was made of *rows* and changes with *facet* alone, unless it is large."""
        if facet in self._under_way or None in self._under_way or len(rows) > _ROWS:
            return
        size = weight(rows)
        if size > ANSWER_BYTES:
            return
        asked = self._asked.setdefault(facet, {})
        self._answers[question], asked[question] = answer, size + _OWN_BYTES
        self._size += asked[question]
        while self._size > self._limit:
            self._drop(next(iter(self._asked)))

    def begin(self, facets: Touched) -> None:
        """A unit that may change *facets* is handed over."""
        for facet in (None,) if facets is None else facets:
            self._under_way[facet] += 1
            if facet is None:
                self.clear()
            else:
                self._drop(facet)

    def end(self, facets: Touched) -> None:
        """It is done: committed, refused or failed."""
        for facet in (None,) if facets is None else facets:
            self._under_way[facet] -= 1
            if not self._under_way[facet]:
                del self._under_way[facet]

    def clear(self) -> None:
        """Give everything up."""
        self._answers.clear()
        self._asked.clear()
        self._size = 0

    def _drop(self, facet: Facet) -> None:
        for question, size in self._asked.pop(facet, {}).items():
            del self._answers[question]
            self._size -= size
