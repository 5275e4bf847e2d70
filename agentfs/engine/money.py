"""`Money`: the ledger, the journal and the approvals of one engine, and what a program may spend in a tick.

Files over it are in `agentfs.services`; limits come from the mount tables.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import msgspec

from agentfs.budget import next_day_ns
from agentfs.engine.approvals import Approvals
from agentfs.engine.core import Core
from agentfs.engine.journal import DONE, FAILED, UNKNOWN, UNKNOWN_OUTCOME, Intent, Journal, hash_of
from agentfs.engine.purse import Account, Grants, Tick, charges, unlimited, unpack
from agentfs.engine.settings import cap_of
from agentfs.engine.timers import Timers
from agentfs.errors import error
from agentfs.fault import point
from agentfs.grants import Grant
from agentfs.ports import Change, Ledger
from agentfs.rows import AgentRow, EffectRow, HoldRow
from agentfs.types import DAY, Path, Principal

COMPUTE = "compute"
CONTAINERS = "containers"
EFFECTS = "effects"
"""The services whose mounts pay for what models answer, and for what programs do outside."""


@dataclass(frozen=True, slots=True)
class Done:
    """What came of an outside call: any JSON value, and what it cost (None: not reported, so all that was reserved)."""

    receipt: Any = None
    cost_usd: int | None = None


class Refused(Exception):  # noqa: N818  # not a fault: the provider's answer
    """Raised by a call to say that nothing happened outside: the reservation is released, the step may come again."""


Call: TypeAlias = Callable[[str], Awaitable[Done]]
Ask: TypeAlias = Callable[[str], Awaitable[Done | None]]
Begin: TypeAlias = Callable[[], Awaitable[tuple[EffectRow, bool]]]
STEP = "step"  # what the journal calls a program's own doings
OWN: Final = frozenset({COMPUTE, CONTAINERS, STEP})
"""Providers in the journal that are the engine's: no caller may take their name, or tell what came of them."""


def check_provider(name: str) -> None:
    """EINVAL for a provider's name that is the engine's own."""
    if name in OWN:
        raise error(errno.EINVAL, detail=f"provider: {name!r} is the runtime's own")


async def _never(key: str) -> None:
    """What can be done twice may count as not done."""


class Money:
    """What all spending of one engine goes through. ``grants``: the mount tables; without any, nothing is limited."""

    def __init__(self, core: Core, timers: Timers, ledger: Ledger, tick: Tick) -> None:
        self._core, self.ledger, self._tick = core, ledger, tick
        self.grants: Grants = unlimited
        self._timers = timers
        self.approvals, self.journal = Approvals(core, timers), Journal(core, timers, ledger)

    def account(self, row: AgentRow, service: str, principal: Principal, at: Path) -> Account:
        """The account of *service* mounted at *at*, as *principal* spends from it. EACCES: mounted without one."""
        grant = self.grants(row, service)
        if grant is None or grant.policy is None:
            raise error(errno.EACCES, at, f"{service} is not mounted budgeted")
        policy, cap = grant.policy, cap_of(row.config) if service == COMPUTE else None
        if cap is not None:
            policy = replace(policy, per_tick_usd=min(cap, cap if policy.per_tick_usd is None else policy.per_tick_usd))
        return Account(self._core, self.ledger, self.approvals, row.id, service, policy, principal, at, self._tick)

    async def begin(
        self, account: Account, intent: Intent, path: Path, doc: bytes, *also: Change
    ) -> tuple[EffectRow, bool]:
        """`Journal.begin`, with the approval that *account* asks for *doc* at *path*; a replay needs none.

        *also* is committed along with a new entry.

        EPERM while it waits for approval.
        """
        self.journal.check(intent)  # before anybody is asked to approve it
        known = await self.journal.get(intent.agent, intent.id)
        is_fresh = known is None or known.state == FAILED
        clear = await account.clear(path, doc, intent.max_cost_usd) if is_fresh else ()
        return await self.journal.begin(intent, *clear, *also)

    async def restore(self) -> None:
        """Take up what a process that died left: prices on hold are spent, the rest looks after its own."""
        await self._new_day()
        await self.approvals.restore()
        for agent in await self._core.store.agents(HoldRow):
            await self._settle(agent, is_over=False)
        await self.journal.sweep()

    async def _new_day(self) -> None:
        """Every account of a day begins anew, which is no commit."""
        self._core.versions.bump(*DAY)
        self._timers.set(DAY, next_day_ns(self._core.clock.now_ns()), self._new_day)

    async def close(self, agent: str) -> None:
        """*agent* is about to be removed: what it holds open is spent, so that no token's budget stays held."""
        await self._settle(agent, is_over=True)

    async def _settle(self, agent: str, *, is_over: bool) -> None:
        for hold in await self._core.store.scan(HoldRow, agent):
            row = await self.journal.get(agent, hold.id)
            if row is None:
                await self.ledger.settle(agent, hold.id, hold.amount_usd)
            elif is_over:
                await self.journal.give_up(row)


class Spender:
    """One tick's way to act outside: each step is journalled before it is called, and replayed in a retry."""

    def __init__(self, core: Core, money: Money, about: AgentRow, envelope: str, purses: str) -> None:
        self._core, self._money, self._about = core, money, about
        self._envelope, self.purses = envelope, purses
        self._steps = 0

    def grant(self, service: str) -> Grant | None:
        """What the agent's mount table grants it on *service*."""
        return self._money.grants(self._about, service)

    async def run(
        self, provider: str, request: Any, call: Call, *, max_cost_usd: int, key: str, ask: Ask | None
    ) -> Any:
        """See `AgentContext.effect`."""
        self._steps += 0 if key else 1
        key = key or f"{self._envelope}/{self._steps}"
        intent = self._intent(provider, request, max_cost_usd, key)
        return await self._alone(intent, lambda: self._begin(intent, request), call, ask)

    async def step(self, key: str, request: Any, call: Call, *, is_repeatable: bool) -> Any:
        """See `AgentContext.step`."""
        intent = Intent(
            agent=self._about.id, provider=STEP, key=f"{self._envelope}/{key}", hash=hash_of(request), max_cost_usd=0,
            charges=(), source=self._about.id, envelope=self._envelope,
        )  # fmt: skip
        begin = self._money.journal.begin
        return await self._alone(intent, lambda: begin(intent), call, _never if is_repeatable else None)

    async def _alone(self, intent: Intent, begin: Begin, call: Call, ask: Ask | None) -> Any:
        live, own = self._money.journal.live, (intent.agent, intent.id)
        if own in live:
            raise error(errno.EBUSY, detail=f"effect: key {intent.key!r} is being called right now")
        live.add(own)
        try:
            return await self._once(begin, call, ask)
        finally:
            live.discard(own)

    async def _once(self, begin: Begin, call: Call, ask: Ask | None) -> Any:
        row, is_new = await begin()
        if row.state == DONE:
            return msgspec.json.decode(row.receipt)
        if row.state == UNKNOWN:
            raise error(errno.EREMOTEIO, detail=f"effect {row.key!r}: {UNKNOWN_OUTCOME}")
        full = f"{row.agent}:{row.provider}:{row.key}"
        done = None if is_new else await self._learn(row, full, ask)
        return await self._act(row, full, call) if done is None else await self._finish(row, done)

    def _intent(self, provider: str, request: Any, max_cost_usd: int, key: str) -> Intent:
        check_provider(provider)
        agent = self._about.id
        policy = self._account().policy
        intent = Intent(
            agent=agent, provider=provider, key=key, hash=hash_of(request), max_cost_usd=max_cost_usd,
            charges=charges(self._core, agent, EFFECTS, policy, self._envelope, unpack(self.purses)),
            source=agent, envelope=self._envelope,
        )  # fmt: skip
        self._money.journal.check(intent)  # before its id is taken
        return intent

    def _account(self) -> Account:
        return self._money.account(self._about, EFFECTS, Principal("agent", self._about.id), Path(EFFECTS))

    async def _begin(self, intent: Intent, request: Any) -> tuple[EffectRow, bool]:
        asked = {
            "provider": intent.provider, "key": intent.key, "request": request, "max_cost_usd": intent.max_cost_usd
        }  # fmt: skip
        doc = msgspec.json.encode(asked, order="sorted")
        return await self._money.begin(self._account(), intent, Path("new"), doc)

    async def _learn(self, row: EffectRow, full: str, ask: Ask | None) -> Done | None:
        """What became of a call that was cut off; None when the provider never saw it. EREMOTEIO: nobody can tell."""
        if ask is None:
            await self._money.journal.give_up(row)
            raise error(errno.EREMOTEIO, detail=f"effect {row.key!r}: {UNKNOWN_OUTCOME}")
        return await ask(full)

    async def _act(self, row: EffectRow, full: str, call: Call) -> Any:
        point("effect.reserved")
        try:
            done = await call(full)
        except (Refused, ConnectionRefusedError) as exc:
            await self._money.journal.finish(row.agent, row.id, FAILED, reason=_printable(exc), cost_usd=0)
            raise error(errno.EREMOTEIO, detail=f"effect {row.key!r}: {exc}") from exc
        point("effect.called")
        return await self._finish(row, done)

    async def _finish(self, row: EffectRow, done: Done) -> Any:
        finished = await self._money.journal.finish(
            row.agent, row.id, DONE, receipt=done.receipt, cost_usd=done.cost_usd
        )
        point("effect.finished")
        if finished.overrun_usd:
            self._core.trace(row.agent, "budget", event="overrun", hold=row.id, overrun_usd=finished.overrun_usd)
        return msgspec.json.decode(finished.receipt)


def _printable(exc: Exception) -> str:
    return str(exc)[:1000].encode(errors="replace").decode()  # a lone surrogate could not be stored
