"""From the effects of a tick to the changes of its one commit, and to the records and timers that follow it.

Pure construction over the core's store reads; `tick` commits.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Any

from agentfs.engine.alarms import row_of, spec_of
from agentfs.engine.context import AgentContext
from agentfs.engine.core import Core
from agentfs.engine.effects import (
    AnyEffect,
    CancelAlarm,
    LogLine,
    MarkSeen,
    PutKv,
    Remember,
    Reply,
    Send,
    SetAlarm,
    SetState,
)
from agentfs.engine.envelope import Envelope, Metadata, check, decode, digest, encode
from agentfs.engine.memory import remembered
from agentfs.errors import error
from agentfs.ports import Append, AtMost, Change, Delete, Put, Trim
from agentfs.rows import AgentRow, AlarmRow, DeadRow, DeliveryRow, KvRow, SeenRow
from agentfs.types import parse_time, rfc3339


@dataclass(slots=True)
class Outcome:
    """What a tick's effects come to."""

    changes: list[Change] = field(default_factory=list)
    sent: list[Envelope] = field(default_factory=list)
    armed: list[AlarmRow] = field(default_factory=list)
    disarmed: list[str] = field(default_factory=list)
    state: SetState | None = None


class Draft:
    """Builds the `Outcome` of one tick. EINVAL, EFBIG, ENOSPC for effects that cannot be stored."""

    def __init__(self, core: Core, ctx: AgentContext) -> None:
        self._core, self._ctx, self._agent = core, ctx, ctx.agent
        self._out = Outcome()

    async def build(self) -> Outcome:
        """All effects, in order."""
        for effect in self._ctx.effects:
            await self._take(effect)
        kinds = {type(effect) for effect in self._ctx.effects}
        limits, out = self._core.limits, self._out.changes
        if MarkSeen in kinds:
            out.append(Trim(SeenRow, self._agent, limits.seen_keys))
        if PutKv in kinds:
            out.append(AtMost(KvRow, (self._agent,), limits.kv_keys, errno.ENOSPC))
        if SetAlarm in kinds:
            out.append(AtMost(AlarmRow, (self._agent,), limits.alarms, errno.ENOSPC))
        return self._out

    async def _take(self, effect: AnyEffect) -> None:
        match effect:
            case Reply():
                await self._emit(self._reply(effect))
            case Send():
                await self._emit(self._send(effect))
            case SetState():
                self._out.state = effect
            case PutKv():
                self._out.changes.append(self._kv(effect))
            case SetAlarm():
                self._set_alarm(effect)
            case CancelAlarm():
                self._out.changes.append(Delete(AlarmRow, (self._agent, effect.name)))
                self._out.disarmed.append(effect.name)
            case MarkSeen():
                self._out.changes.append(Put(SeenRow(agent=self._agent, key=effect.key, at_ns=self._ctx.now_ns)))
            case Remember():
                self._out.changes += await remembered(self._core, self._ctx.trigger.id, self._agent, effect)
            case LogLine():
                self.record("log", text=effect.text)

    def record(self, kind: str, /, **fields: object) -> None:
        """A record of the trajectory, committed with the tick."""
        ids = {"tick_id": self._ctx.tick_id, "envelope_id": self._ctx.trigger.id}
        doc = self._core.record(self._agent, kind, {**ids, **fields})
        self._out.changes.append(Append(self._agent, "trajectory", doc, chain=True))

    def _kv(self, effect: PutKv) -> Change:
        value: bytes | None = effect.value
        if value is None:
            return Delete(KvRow, (self._agent, effect.key))
        size, now_ns = len(value), self._ctx.now_ns
        return Put(KvRow(agent=self._agent, key=effect.key, value=value, size=size, changed_at_ns=now_ns))

    def _set_alarm(self, effect: SetAlarm) -> None:
        target, reply_to = self._asker()
        row = row_of(self._agent, effect.name, spec_of(effect, target, reply_to), self._ctx.now_ns)
        self._out.changes.append(Put(row))
        self._out.armed.append(row)

    # -- messages --------------------------------------------------------------------------------------------------

    def _asker(self) -> tuple[str, str]:
        """Whom a reply goes to and which message it answers."""
        trigger = self._ctx.trigger
        if trigger.kind == "alarm":
            return str(trigger.metadata.extra.get("origin", "operator")), trigger.metadata.reply_to or trigger.id
        return trigger.source, trigger.id

    def _reply(self, effect: Reply) -> Envelope:
        target, reply_to = self._asker()
        return self._envelope(target, effect.payload, Metadata(reply_to=reply_to, extra=effect.extra))

    def _send(self, effect: Send) -> Envelope:
        if effect.expires_at:
            parse_time(effect.expires_at)
        meta = Metadata(priority=effect.priority, expires_at=effect.expires_at, extra=effect.extra)
        return self._envelope(effect.to, effect.payload, meta, effect.id)

    def _envelope(self, to: str, payload: Any, meta: Metadata, envelope_id: str = "") -> Envelope:
        trigger = self._ctx.trigger
        meta.trace_id = trigger.metadata.trace_id or trigger.id
        meta.parent_id, meta.hops = trigger.id, trigger.metadata.hops + 1
        envelope = Envelope(
            id=envelope_id or self._core.new_id(), timestamp=rfc3339(self._ctx.now_ns), source=self._agent, to=to,
            payload=payload, metadata=meta,
        )  # fmt: skip
        check(envelope)
        if not to:
            raise error(errno.EINVAL, detail="send: to: empty")
        return envelope

    async def _emit(self, envelope: Envelope) -> None:
        body = encode(envelope)
        if len(body) > self._core.limits.document_bytes:
            raise error(errno.EFBIG, detail=f"message over {self._core.limits.document_bytes} bytes")
        if await self._is_waiting(envelope):
            return
        self._out.sent.append(envelope)
        self._out.changes.append(Append(self._agent, "outbox", body.encode()))
        self.record("message_out", id=envelope.id, to=envelope.to)
        row = DeliveryRow(
            agent=self._agent, id=envelope.id, to=envelope.to, at_ns=self._ctx.now_ns, body=body,
            purses=self._ctx.purses,
        )  # fmt: skip
        if envelope.metadata.hops > self._core.limits.hops:
            self._out.changes.append(Put(undeliverable(row, "hops", self._ctx.now_ns)))
        elif await self._core.store.get(AgentRow, envelope.to) is not None:
            self._out.changes.append(Put(row))

    async def _is_waiting(self, envelope: Envelope) -> bool:
        """Whether the very same message leaves in this tick or waits in the outbox. EEXIST: another of its id does."""
        row = await self._core.store.get(DeliveryRow, self._agent, envelope.id)
        known = [sent for sent in self._out.sent if sent.id == envelope.id] or ([decode(row.body)] if row else [])
        if known and digest(known[0]) != digest(envelope):
            raise error(errno.EEXIST, detail=f"send: id: {envelope.id!r} is another message's")
        return bool(known)


def undeliverable(row: DeliveryRow, reason: str, now_ns: int) -> DeadRow:
    """An emitted envelope as a dead letter of its sender."""
    return DeadRow(
        agent=row.agent, id=row.id, source=row.agent, reason=f"undeliverable: {reason}", attempts=row.attempts,
        at_ns=now_ns, body=row.body, purses=row.purses,
    )  # fmt: skip
