"""`AgentContext`: what a program sees during one tick; its writes are collected as effects and read back by it.

Nothing here is durable: `commit` stores the effects when the tick ends well.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

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
)  # fmt: skip
from agentfs.errors import error
from agentfs.rows import KvRow, SeenRow
from agentfs.types import check_name

if TYPE_CHECKING:
    from agentfs.engine.core import Core
    from agentfs.engine.money import Ask, Call, Spender
    from agentfs.engine.secrets import Secrets
    from agentfs.engine.trigger import Trigger
    from agentfs.ports import Store
    from agentfs.service import FileService

_FEW = 32
_NEEDS: dict[type[AnyEffect], str] = {
    PutKv: "kv", SetAlarm: "schedule", CancelAlarm: "schedule", Remember: "memory",
}  # fmt: skip


class Kv:
    """The agent's own values within a tick: reads see its own writes, then what is committed."""

    def __init__(self, core: Core, agent: str, add: Callable[[PutKv], None], check: Callable[[], None]) -> None:
        self._core, self._agent, self._add, self._check = core, agent, add, check
        self._own: dict[str, bytes | None] = {}

    async def get(self, key: str) -> bytes | None:
        """The value of *key*, or None. EACCES where the mount table does not grant all of kv."""
        self._check()
        if key in self._own:
            return self._own[key]
        row = await self._core.store.get(KvRow, self._agent, key)
        return row.value if row else None

    def put(self, key: str, value: bytes | str | None) -> None:
        """Set *key*; None removes it. EINVAL for the name, EFBIG for the value."""
        check_name(key, f"kv/{key}")
        data = value.encode() if isinstance(value, str) else value
        if data is not None and not isinstance(data, bytes):
            raise error(errno.EINVAL, f"kv/{key}", "value: want text, or null to remove")
        if data is not None and len(data) > self._core.limits.kv_value_bytes:
            raise error(errno.EFBIG, f"kv/{key}", f"value over {self._core.limits.kv_value_bytes} bytes")
        self._add(PutKv(key=key, value=data))
        self._own[key] = data

    async def keys(self) -> Sequence[str]:
        """All keys, sorted. EACCES as for `get`."""
        self._check()
        stored = {row.key for row in await kv_rows(self._core.store, self._agent)}
        return sorted({*stored, *self._own} - {k for k, v in self._own.items() if v is None})


async def kv_rows(store: Store, agent: str, after: str = "", limit: int = -1) -> Sequence[KvRow]:
    """Values behind the key *after*, without their bytes: few are held at a time, for each may be large."""
    found: list[KvRow] = []
    while limit < 0 or len(found) < limit:
        page = await store.scan(KvRow, agent, after=after or None, limit=_FEW)
        found += [msgspec.structs.replace(row, value=b"") for row in page]
        if not page:
            break
        after = page[-1].key
    return found[:limit] if limit >= 0 else found


class AgentContext:
    """One tick as its program sees it. Calls on it have no effect outside until the tick has committed."""

    def __init__(
        self, core: Core, trigger: Trigger, fs: FileService, spender: Spender, secrets: Secrets, *, is_first: bool,
        is_woken: bool, schema: int,
    ) -> None:  # fmt: skip
        self._core, self.trigger, self.fs, self._spender, self._secrets = core, trigger, fs, spender, secrets
        self.agent, self.tick_id, self.state, self.schema = trigger.agent, trigger.tick_id, trigger.state, schema
        self.is_first, self.is_woken = is_first, is_woken
        self.effects: list[AnyEffect] = []
        self.kv = Kv(core, self.agent, self.add, self._check_kv)
        self._seen: set[str] = set()

    @property
    def purses(self) -> str:
        """The token budgets that pay for this tick, packed: what it sends on is paid by them too."""
        return self._spender.purses

    @property
    def now_ns(self) -> int:
        """The runtime's clock, ns since the epoch."""
        return self._core.clock.now_ns()

    def add(self, effect: AnyEffect) -> None:
        """Collect one effect; ENOBUFS past the limit, EACCES where the mount table does not grant writing.

        What has side conditions goes through the methods below.
        """
        needs = _NEEDS.get(type(effect))
        grant = self._spender.grant(needs) if needs else None
        if needs and (grant is None or not grant.is_writable):
            raise error(errno.EACCES, needs, "not mounted for writing")
        if needs and grant is not None and grant.policy is not None and grant.policy.price_usd:
            raise error(errno.EACCES, needs, "each write has a price: write the file instead")
        if len(self.effects) >= self._core.limits.effects:
            raise error(errno.ENOBUFS, detail=f"more than {self._core.limits.effects} effects in one tick")
        self.effects.append(effect)

    def _check_kv(self) -> None:
        grant = self._spender.grant("kv")
        if grant is None or not grant.is_readable:
            raise error(errno.EACCES, "kv", "not mounted as a whole")

    def take(self, effect: AnyEffect) -> None:
        """One effect as an exec program printed it: the same checks as the methods."""
        match effect:
            case PutKv():
                self.kv.put(effect.key, effect.value)
            case SetState():
                self.set_state(effect.state, effect.schema)
            case MarkSeen():
                self.mark_seen(effect.key)
            case Remember():
                self.remember(effect.conversation, effect.records)
            case _:
                self.add(effect)

    def reply(self, payload: Any, **extra: Any) -> None:
        """Answer the sender of the trigger; for an alarm, whoever's message set it."""
        self.add(Reply(payload=payload, extra=extra))

    def send(self, to: str, payload: Any, *, id: str = "", priority: int = 0, expires_at: str | None = None) -> None:
        """Send *payload* to the agent *to*, after the commit, through the outbox."""
        self.add(Send(to=to, payload=payload, id=id, priority=priority, expires_at=expires_at))

    def set_state(self, state: Any, schema: int = 0) -> None:
        """Replace the state; *schema* is its version."""
        self.add(SetState(state=state, schema=schema))
        self.state = state

    def alarm(
        self, name: str, *, at: str | None = None, in_ms: int | None = None, every_ms: int | None = None,
        payload: Any = None, missed: str = "once",
    ) -> None:  # fmt: skip
        """Set or replace an alarm: exactly one of *at* (RFC 3339), *in_ms*, *every_ms*."""
        self.add(SetAlarm(name=name, at=at, in_ms=in_ms, every_ms=every_ms, payload=payload, missed=missed))

    def cancel_alarm(self, name: str) -> None:
        """Remove an alarm; absent is no error."""
        self.add(CancelAlarm(name=name))

    async def seen(self, key: str) -> bool:
        """Whether *key* was marked, in this tick or a committed one (the oldest marks are forgotten first)."""
        return key in self._seen or await self._core.store.get(SeenRow, self.agent, key) is not None

    def mark_seen(self, key: str) -> None:
        """Remember *key*. EINVAL when it is empty or over 255 characters."""
        if not 0 < len(key) <= 255:
            raise error(errno.EINVAL, detail="seen: key of 1-255 characters")
        self.add(MarkSeen(key=key))
        self._seen.add(key)

    async def effect(
        self, provider: str, request: Any, call: Call, *, max_cost_usd: int = 0, key: str = "", ask: Ask | None = None
    ) -> Any:
        """Do something outside once: the receipt, from *call* or, when this step was done before, from the journal.

        *call* gets the full idempotency key to hand on, and gives a `Done` with the receipt and the cost; it raises
        `Refused` when nothing happened, and any other error leaves the outcome open. An attempt that was cut off is
        looked up with *ask* (a `Done`, or None: it never happened); without it the outcome counts as unknown and is
        never called again. *key* is the step's number within the envelope unless given. The reservation of
        *max_cost_usd* micro-USD and the intent are durable before the call, whatever becomes of the tick.
        EDQUOT past a budget, EPERM while it needs approval, EEXIST for a key of another request, EREMOTEIO.
        """
        return await self._spender.run(provider, request, call, max_cost_usd=max_cost_usd, key=key, ask=ask)

    async def step(self, key: str, request: Any, call: Call, *, is_repeatable: bool = False) -> Any:
        """Do something on the agent's own files once within this envelope: its receipt, in a retry the one it had.

        As `effect`, but free, and of no mount's budget. One that was cut off is called again when it *is_repeatable*;
        else its outcome is unknown for good: EREMOTEIO. EEXIST for a *key* of another request.
        """
        return await self._spender.step(key, request, call, is_repeatable=is_repeatable)

    async def secret(self, text: str) -> str:
        """The secret that ``secret:NAME`` stands for; any other *text* is itself. No effect may hold it. ENOENT."""
        return await self._secrets.use(self.agent, text)

    def remember(self, conversation: str, records: Sequence[dict[str, Any]]) -> None:
        """Append *records* to ``memory/conversations/<conversation>``. EINVAL for the name, EACCES as for `add`."""
        check_name(conversation, f"memory/conversations/{conversation}")
        self.add(Remember(conversation=conversation, records=list(records)))

    def log(self, text: str) -> None:
        """Add a line to the trajectory."""
        self.add(LogLine(text=text))

    def note(self, kind: str, /, **fields: object) -> None:
        """Put a record into the live trace at once, whether or not the tick commits."""
        self._core.trace(self.agent, kind, tick_id=self.tick_id, envelope_id=self.trigger.id, **fields)
