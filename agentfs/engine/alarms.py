"""`Alarms`: scheduled triggers that survive restarts: one-shot (``at``) and repeating (``every_ms``).

The rows are the truth; timers are set from them. A fired alarm becomes an envelope in the same commit.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from agentfs.engine.core import Core
from agentfs.engine.effects import SetAlarm
from agentfs.engine.envelope import Envelope, Metadata, encode
from agentfs.engine.settings import settings_of
from agentfs.engine.timers import Timers
from agentfs.errors import error
from agentfs.ports import Change, Delete, Expect, Insert, Put
from agentfs.rows import AgentRow, AlarmRow, EnvelopeRow
from agentfs.types import check_name, parse_time, rfc3339

log = logging.getLogger(__name__)
SOURCE = "schedule"
_MISSED_ALL_MAX = 100
_RETRY_NS = 1_000_000_000
_FAR_MS = 100 * 366 * 86_400_000


class Spec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is written to ``schedule/<name>``; ``reply_to`` and ``origin`` are filled in for alarms set in a tick.

    Exactly one of ``at`` (RFC 3339), ``in_ms`` and ``every_ms``. ``missed`` says what happens to firings that fell
    into a downtime: ``skip``, ``once`` (one trigger for all) or ``all`` (one each, at most 100).
    """

    at: str | None = None
    in_ms: int | None = None
    every_ms: int | None = None
    payload: Any = None
    missed: Literal["skip", "once", "all"] = "once"
    origin: str = ""
    reply_to: str = ""


def parse_spec(doc: bytes) -> Spec:
    """A schedule document. EINVAL naming the field."""
    try:
        return msgspec.json.decode(doc, type=Spec)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise error(errno.EINVAL, detail=f"schedule: {exc}") from exc


def row_of(agent: str, name: str, spec: Spec, now_ns: int, purses: str = "") -> AlarmRow:
    """A new alarm; ``in_ms`` becomes ``at``. EINVAL for the name or the times."""
    check_name(name, f"schedule/{name}")
    given = [k for k in ("at", "in_ms", "every_ms") if getattr(spec, k) is not None]
    if len(given) != 1:
        raise error(errno.EINVAL, f"schedule/{name}", f"want exactly one of at, in_ms, every_ms; got {given or 'none'}")
    if spec.in_ms is not None and not 0 <= spec.in_ms <= _FAR_MS:
        raise error(errno.EINVAL, f"schedule/{name}", "in_ms: want 0 to 100 years")
    if spec.every_ms is not None and not 100 <= spec.every_ms <= _FAR_MS:
        raise error(errno.EINVAL, f"schedule/{name}", "every_ms: want 100 ms to 100 years")
    if spec.every_ms is not None:
        next_at_ns = now_ns + spec.every_ms * 1_000_000
    else:
        next_at_ns = parse_time(spec.at) if spec.at else now_ns + (spec.in_ms or 0) * 1_000_000
        spec = msgspec.structs.replace(spec, at=rfc3339(next_at_ns), in_ms=None)
    return AlarmRow(
        agent=agent, name=name, spec=encode(spec), next_at_ns=next_at_ns, changed_at_ns=now_ns, purses=purses
    )


def spec_of(effect: SetAlarm, origin: str, reply_to: str) -> Spec:
    """The document an effect stands for. EINVAL naming the field."""
    fields = {k: getattr(effect, k) for k in ("at", "in_ms", "every_ms", "payload", "missed")}
    try:
        return msgspec.convert({**fields, "origin": origin, "reply_to": reply_to}, Spec)
    except msgspec.ValidationError as exc:
        raise error(errno.EINVAL, f"schedule/{effect.name}", str(exc)) from exc


class Alarms:
    """Sets, fires and restores the alarms of all agents."""

    def __init__(self, core: Core, timers: Timers, accepted: Callable[[str, Sequence[EnvelopeRow]], None]) -> None:
        self._core, self._timers, self._accepted = core, timers, accepted

    async def restore(self) -> None:
        """Set the timers of all stored alarms: once, at start."""
        for agent in await self._core.store.agents(AlarmRow):
            for row in await self._core.store.scan(AlarmRow, agent):
                self.arm(row)

    def arm(self, row: AlarmRow) -> None:
        """Set the timer of a committed row."""

        async def fire() -> None:
            await self._fire(row.agent, row.name)

        key = ("alarm", row.agent, row.name)
        if row.next_at_ns is None:
            self._timers.cancel(key)
        else:
            self._timers.set(key, row.next_at_ns, fire)

    def disarm(self, agent: str, name: str) -> None:
        """Forget the timer of a removed row."""
        self._timers.cancel(("alarm", agent, name))

    async def _fire(self, agent: str, name: str) -> None:
        try:
            await self._fire_once(agent, name)
        except OSError as exc:
            log.warning("alarm %s of %s waits: %s", name, agent, exc)

            async def again() -> None:
                await self._fire(agent, name)

            self._timers.set(("alarm", agent, name), self._core.clock.now_ns() + _RETRY_NS, again)

    async def _fire_once(self, agent: str, name: str) -> None:
        row = await self._core.store.get(AlarmRow, agent, name)
        about = await self._core.store.get(AgentRow, agent)
        now_ns = self._core.clock.now_ns()
        if row is None or row.next_at_ns is None or about is None or about.terminated_at_ns is not None:
            return
        if row.next_at_ns > now_ns:  # replaced while this firing waited
            self.arm(row)
            return
        spec = msgspec.json.decode(row.spec, type=Spec)
        due = self._due(row.next_at_ns, spec, now_ns)
        due = due[: await self._room(about, due, is_once=spec.every_ms is None)]
        key = (agent, name)
        changes: list[Change] = [Expect(AlarmRow, key, "next_at_ns", row.next_at_ns)]
        changes += [Insert(self._envelope(row, spec, at_ns)) for at_ns in due]
        later = self._later(row, spec, now_ns, fired=len(due))
        changes.append(Put(later) if later else Delete(AlarmRow, key))
        done = await self._core.commit(*changes)
        self._accepted(agent, [r for r in done.rows if isinstance(r, EnvelopeRow)])
        if later:
            self.arm(later)

    async def _room(self, about: AgentRow, due: Sequence[int], *, is_once: bool) -> int:
        """How many firings the inbox has room for; the rest of a repeating alarm's is missed. ENOBUFS: try later."""
        depth = settings_of(about.config).overflow.max_depth
        room = max(0, depth - await self._core.store.count(EnvelopeRow, about.id))
        if due and is_once and not room:
            raise error(errno.ENOBUFS, detail=f"inbox holds {depth}")
        return room

    def _due(self, first_ns: int, spec: Spec, now_ns: int) -> list[int]:
        """The firings that *missed* lets through, oldest first; one that is late by less than its period is on time."""
        if spec.every_ms is None:
            is_late = now_ns - first_ns > _RETRY_NS * 60
            return [] if is_late and spec.missed == "skip" else [first_ns]
        period = spec.every_ms * 1_000_000
        count = (now_ns - first_ns) // period + 1
        if count == 1 or spec.missed == "once":
            return [first_ns + (count - 1) * period]
        if spec.missed == "skip":
            return []
        return [first_ns + i * period for i in range(max(0, count - _MISSED_ALL_MAX), count)]

    def _later(self, row: AlarmRow, spec: Spec, now_ns: int, fired: int) -> AlarmRow | None:
        assert row.next_at_ns is not None
        if spec.every_ms is None:
            return None
        period = spec.every_ms * 1_000_000
        count = (now_ns - row.next_at_ns) // period + 1
        return msgspec.structs.replace(
            row, next_at_ns=row.next_at_ns + count * period, last_at_ns=now_ns if fired else row.last_at_ns,
            missed=row.missed + count - fired, changed_at_ns=now_ns,
        )  # fmt: skip

    def _envelope(self, row: AlarmRow, spec: Spec, at_ns: int) -> EnvelopeRow:
        now_ns = self._core.clock.now_ns()
        extra = {"alarm": row.name, **({"origin": spec.origin} if spec.origin else {})}
        envelope = Envelope(
            id=self._core.new_id(), timestamp=rfc3339(at_ns), source=SOURCE, to=row.agent, payload=spec.payload,
            metadata=Metadata(reply_to=spec.reply_to or None, extra=extra),
        )  # fmt: skip
        return EnvelopeRow(
            agent=row.agent, id=envelope.id, kind="alarm", source=SOURCE, accepted_at_ns=now_ns, body=encode(envelope),
            purses=row.purses,
        )  # fmt: skip
