"""The idempotency journal: an outside effect's intent is durable before it is called, its outcome once it is known.

It calls nothing itself and decides no policy; who pays comes with the intent.
"""

from __future__ import annotations

import errno
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from agentfs.budget import check_usd
from agentfs.engine.core import Core
from agentfs.engine.timers import Timers
from agentfs.errors import error
from agentfs.ports import Append, AtMost, Change, Charge, Delete, Expect, Insert, Ledger, Put
from agentfs.rows import AccountRow, AgentRow, DeadRow, EffectRow, EnvelopeRow, HoldRow
from agentfs.types import check_name

log = logging.getLogger(__name__)
OPEN, DONE, FAILED, UNKNOWN = "open", "done", "failed", "unknown"
UNKNOWN_OUTCOME = "failed: unknown_outcome"
_KEY_MAX = 300


@dataclass(frozen=True, slots=True)
class Intent:
    """What is about to be done outside, and who pays.

    *key* is unique for *provider* in *agent*; *hash* is of the whole request. *envelope*: the tick's, "" for none.
    *deadline_ns*: when an outcome that nobody reported counts as unknown.
    """

    agent: str
    provider: str
    key: str
    hash: str
    max_cost_usd: int
    charges: tuple[Charge, ...]
    source: str
    envelope: str = ""
    deadline_ns: int | None = None

    @property
    def id(self) -> str:
        """The entry's name: a hash of provider and key."""
        return hashlib.sha256(f"{self.provider}\0{self.key}".encode()).hexdigest()[:32]


def hash_of(request: Any) -> str:
    """SHA-256 of any JSON value, whatever the order of its fields."""
    return hashlib.sha256(msgspec.json.encode(request, order="sorted")).hexdigest()


class Journal:
    """The entries of every agent. Entries go when their time is over; an open one is never forgotten."""

    def __init__(self, core: Core, timers: Timers, ledger: Ledger) -> None:
        self._core, self._timers, self.ledger = core, timers, ledger
        self.live: set[tuple[str, str]] = set()  # agent and id of what a tick or a hook is calling right now

    async def begin(self, intent: Intent, *also: Change) -> tuple[EffectRow, bool]:
        """The entry of *intent*, and whether it is new: only then may, and must, the caller act.

        The entry, the reservation and *also* are one commit. EEXIST: the key stands for another request; EDQUOT past
        a limit; ENOSPC for too many entries; EINVAL for names and amounts.
        """
        self.check(intent)
        found = await self.get(intent.agent, intent.id)
        if found is not None and (found.hash != intent.hash or found.key != intent.key):
            raise error(errno.EEXIST, detail=f"key {intent.key!r} stands for another request")
        if found is not None and found.state != FAILED:
            return found, False
        now_ns = self._core.clock.now_ns()
        row = EffectRow(
            agent=intent.agent, id=intent.id, provider=intent.provider, key=intent.key, hash=intent.hash,
            source=intent.source, envelope=intent.envelope, reserved_usd=intent.max_cost_usd, at_ns=now_ns,
            deadline_ns=intent.deadline_ns, version=found.version + 1 if found else 1,
        )  # fmt: skip
        try:
            await self._reserve(intent, row, found, also)
        except FileExistsError:  # another begin of this key won the race
            again = await self.get(intent.agent, intent.id)
            if again is None or again.version == (found.version if found else 0):
                raise
            return await self.begin(intent, *also)
        self._watch(row.deadline_ns or now_ns + self._ttl_ns)
        return row, True

    async def _reserve(self, intent: Intent, row: EffectRow, found: EffectRow | None, also: Sequence[Change]) -> None:
        key, full = (row.agent, row.id), self._core.limits.effects_held
        alive = Expect(AgentRow, (row.agent,), "terminated_at_ns", None, errno.EPERM)
        if found is None:
            changes: list[Change] = [alive, Insert(row), AtMost(EffectRow, (row.agent,), full, errno.ENOSPC)]
        else:
            changes = [alive, Expect(EffectRow, key, "version", found.version, errno.EEXIST), Put(row)]
        record = self._record(row, "intent")
        await self.ledger.reserve(row.agent, row.id, row.reserved_usd, intent.charges, *changes, record, *also)

    def check(self, intent: Intent) -> None:
        """EINVAL for a provider, key or amount that no entry can have."""
        check_name(intent.provider, "provider")
        if not 0 < len(intent.key) <= _KEY_MAX or not intent.key.isprintable():
            raise error(errno.EINVAL, detail=f"key: want 1-{_KEY_MAX} printable characters")
        check_usd("max_cost_usd", intent.max_cost_usd)

    def _record(self, row: EffectRow, event: str, **fields: object) -> Change:
        about: dict[str, object] = {"event": event, "id": row.id, "provider": row.provider, "key": row.key}
        about |= {"envelope_id": row.envelope or None, **fields}
        return Append(row.agent, "trajectory", self._core.record(row.agent, "effect", about), chain=True)

    async def get(self, agent: str, effect: str) -> EffectRow | None:
        """One entry, or None."""
        return await self._core.store.get(EffectRow, agent, effect)

    async def finish(
        self, agent: str, effect: str, state: str, *also: Change, receipt: Any = None, reason: str = "",
        cost_usd: int | None = None,
    ) -> EffectRow:  # fmt: skip
        """Record the outcome and settle: *cost_usd* None is "not reported", so all that was reserved is spent.

        What a provider took over the reservation is recorded as overrun. EEXIST: another outcome is recorded;
        the same outcome again changes nothing. *also* is committed along with it. ENOENT, EFBIG, EINVAL.
        """
        row = await self.get(agent, effect)
        if row is None:
            raise error(errno.ENOENT, detail=f"no effect {effect!r}")
        cost = check_usd("cost_usd", row.reserved_usd if cost_usd is None else cost_usd)
        text = msgspec.json.encode(receipt).decode()
        if len(text) > self._core.limits.document_bytes:
            raise error(errno.EFBIG, detail=f"receipt over {self._core.limits.document_bytes} bytes")
        now_ns = self._core.clock.now_ns()
        done = msgspec.structs.replace(
            row, state=state, receipt=text, error=reason, spent_usd=min(cost, row.reserved_usd),
            overrun_usd=max(0, cost - row.reserved_usd), done_at_ns=now_ns, deadline_ns=None, version=row.version + 1,
            expires_ns=None if row.envelope else now_ns + self._ttl_ns,
        )  # fmt: skip
        if row.state != OPEN:
            return self._again(row, done)
        fields = {"state": state, "cost_usd": done.spent_usd, "overrun_usd": done.overrun_usd or None}
        record = self._record(done, "outcome", **fields, error=reason or None, is_reported=cost_usd is not None)
        still = Expect(EffectRow, (agent, effect), "version", row.version, errno.EEXIST)
        try:
            await self.ledger.settle(agent, effect, done.spent_usd, still, Put(done), record, *also)
        except (FileExistsError, FileNotFoundError):  # somebody else recorded an outcome meanwhile
            return self._again(await self.get(agent, effect) or row, done)
        self._watch(now_ns + self._ttl_ns)
        return done

    def _again(self, row: EffectRow, done: EffectRow) -> EffectRow:
        if (row.state, row.receipt, row.spent_usd) != (done.state, done.receipt, done.spent_usd):
            raise error(errno.EEXIST, detail=f"effect is {row.state} already")
        return row

    async def give_up(self, row: EffectRow, *also: Change) -> EffectRow:
        """Nobody can tell what became of *row*: it counts as spent and is never called again by itself."""
        return await self.finish(row.agent, row.id, UNKNOWN, *also, reason=UNKNOWN_OUTCOME)

    # -- time ------------------------------------------------------------------------------------------------------

    @property
    def _ttl_ns(self) -> int:
        return self._core.limits.effect_ttl_seconds * 1_000_000_000

    def _watch(self, at_ns: int | None) -> None:
        """Sweep at *at_ns* at the latest."""
        known = self._timers.next_at("journal")
        if at_ns is not None and (known is None or at_ns < known):
            self._timers.set("journal", at_ns, self.sweep)

    async def sweep(self) -> None:
        """End what is over: open entries past their deadline, entries and accounts past their time."""
        now_ns = self._core.clock.now_ns()
        for agent in await self._core.store.agents(EffectRow):
            async for row in self._core.every(EffectRow, agent):
                try:
                    await self._sweep_one(row, now_ns)
                except OSError:
                    log.exception("effect %s of %s", row.id, agent)
        for agent in await self._core.store.agents(AccountRow):
            await self._forget_accounts(agent, now_ns)
        if await self._core.store.agents(EffectRow):
            self._watch(now_ns + self._ttl_ns)

    async def _is_waited_for(self, row: EffectRow) -> bool:
        """Whether its envelope is pending, or a dead letter whose replay must not do again what was done."""
        if not row.envelope:
            return False
        where = (row.agent, row.envelope)
        if await self._core.store.get(EnvelopeRow, *where) is not None:
            return True
        return row.state != OPEN and await self._core.store.get(DeadRow, *where) is not None

    async def _sweep_one(self, row: EffectRow, now_ns: int) -> None:
        key = (row.agent, row.id)
        if key in self.live or await self._is_waited_for(row):
            return  # its tick is tried again and takes the step up
        same = Expect(EffectRow, key, "version", row.version)
        if row.state == OPEN:
            if row.envelope or (row.deadline_ns is not None and row.deadline_ns <= now_ns):
                await self.give_up(row)
            else:
                self._watch(row.deadline_ns)
        elif row.expires_ns is None:  # its envelope is gone: from now on it has the TTL
            later = msgspec.structs.replace(row, expires_ns=now_ns + self._ttl_ns, version=row.version + 1)
            await self._core.commit(same, Put(later))
        elif row.expires_ns <= now_ns:
            await self._core.commit(same, Delete(EffectRow, key))
        else:
            self._watch(row.expires_ns)

    async def _forget_accounts(self, agent: str, now_ns: int) -> None:
        """Accounts of ticks that are over, and of days long past, when nothing is held on them."""
        old_ns = now_ns - self._core.limits.account_days * 86_400_000_000_000
        if await self._core.store.count(HoldRow, agent):
            return
        for row in await self._core.store.scan(AccountRow, agent):
            tick = row.period.removeprefix("tick:")
            is_tick = tick != row.period and await self._core.store.get(EnvelopeRow, agent, tick) is None
            is_over = is_tick and row.changed_at_ns <= now_ns - self._ttl_ns
            is_old = agent != "" and not is_tick and row.changed_at_ns <= old_ns
            is_empty = not row.spent_usd and row.changed_at_ns <= now_ns - self._ttl_ns  # a token's too
            if (is_over or is_old or is_empty) and not row.reserved_usd:
                key = (agent, row.account, row.period)
                same = Expect(AccountRow, key, "version", row.version)
                await self._core.commit(same, Delete(AccountRow, key))
