"""`Mailbox`: which pending envelope of one agent is next: order per source, priority between sources, retries waiting.

Pure state in memory, rebuilt from the rows whenever it is needed; it decides nothing about storing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import anyio

from agentfs.record import Pulse
from agentfs.rows import EnvelopeRow


@dataclass(frozen=True, slots=True)
class Slot:
    """What choosing needs of one pending envelope."""

    id: str
    seq: int
    source: str
    priority: int
    not_before_ns: int


class Mailbox:
    """The pending envelopes of one agent. ``reserved`` counts places held by open handles; ``running`` is in a tick."""

    def __init__(self) -> None:
        self.loaded, self.is_loaded = Pulse(), False
        self.reserved = 0
        self.displacing = anyio.Lock()  # under drop_oldest one at a time: it must see what came before
        self.running: str | None = None
        self.purses = ""  # of the running envelope
        self._sources: dict[str, dict[str, Slot]] = {}
        self._ids: dict[str, str] = {}

    @property
    def is_needed(self) -> bool:
        """Whether somebody counts on this very object."""
        return bool(self.reserved) or self.running is not None or self.displacing.locked()

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, envelope_id: str) -> bool:
        return envelope_id in self._ids

    def add(self, row: EnvelopeRow) -> None:
        """*row* is pending: new ones go behind all of their source, a known one (a retry) keeps its place."""
        slot = Slot(row.id, row.seq, row.source, row.priority, row.not_before_ns)
        self._sources.setdefault(row.source, {})[row.id] = slot
        self._ids[row.id] = row.source

    def load(self, rows: Iterable[EnvelopeRow]) -> None:
        """Take in what the store holds, in its order, beside what came in meanwhile."""
        for row in rows:
            if row.id not in self._ids:
                self.add(row)
        for source, slots in self._sources.items():
            self._sources[source] = {s.id: s for s in sorted(slots.values(), key=lambda s: s.seq)}
        self.is_loaded = True

    def remove(self, envelope_id: str) -> None:
        """It is pending no more; unknown is no error."""
        source = self._ids.pop(envelope_id, None)
        if source is not None:
            slots = self._sources[source]
            del slots[envelope_id]
            if not slots:
                del self._sources[source]

    def oldest(self) -> str | None:
        """The first accepted envelope that is not in a running tick."""
        slots = [s for group in self._sources.values() for s in group.values() if s.id != self.running]
        return min(slots, key=lambda s: s.seq).id if slots else None

    def next(self, now_ns: int) -> tuple[Slot | None, int | None]:
        """The envelope to run now, else when the first waiting one may run; (None, None) when nothing is pending."""
        heads = [next(iter(group.values())) for group in self._sources.values()]
        ready = [s for s in heads if s.not_before_ns <= now_ns]
        if ready:
            return min(ready, key=lambda s: (-s.priority, s.seq)), None
        return None, min((s.not_before_ns for s in heads), default=None)
