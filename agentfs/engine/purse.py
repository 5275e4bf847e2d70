"""`Purses` and `Account`: who pays for one operation on a budgeted mount, and whether it may go on.

The sums are the ledger's, the decisions the approvals'; this puts the two together for services and programs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import anyio
import msgspec

from agentfs.budget import Policy, day_of
from agentfs.engine.approvals import Approvals, Request
from agentfs.engine.core import Core
from agentfs.grants import Grant
from agentfs.ports import Change, Charge, Ledger
from agentfs.rows import AgentRow
from agentfs.types import Path, Principal, join

Grants: TypeAlias = Callable[[AgentRow, str], Grant | None]
"""What an agent's mount table grants it on a service by name; None when that is not mounted."""

Tick: TypeAlias = Callable[[str], tuple[str, str]]
"""The envelope that an agent's running tick is about, and the token budgets that pay for it; "" and "" for none."""


def unlimited(row: AgentRow, service: str) -> Grant:
    """The grants of an engine without mount tables: everything, and no limit."""
    return Grant("budgeted", Policy())


def token_charges(purses: Sequence[tuple[str, int]]) -> tuple[Charge, ...]:
    """The charges on budgets of tokens, as (id, limit)."""
    return tuple(Charge("", f"token:{token}", "total", limit) for token, limit in purses)


def pack(purses: Sequence[tuple[str, int]]) -> str:
    """Token budgets as an envelope's row holds them."""
    return msgspec.json.encode(purses).decode() if purses else ""


def unpack(purses: str) -> tuple[tuple[str, int], ...]:
    """The reverse of `pack`."""
    return msgspec.json.decode(purses, type=tuple[tuple[str, int], ...]) if purses else ()


@dataclass(frozen=True, slots=True)
class Account:
    """The account of one service of one agent, as *principal* spends from it through a mount at *at*."""

    core: Core
    ledger: Ledger
    approvals: Approvals
    agent: str
    service: str
    policy: Policy
    principal: Principal
    at: Path
    tick: Tick

    @asynccontextmanager
    async def paying(self, path: Path, doc: bytes) -> AsyncIterator[None]:
        """See `Purse.paying`: a hold that is open when the process dies is settled at the next start."""
        price = self.policy.price_usd
        if not price:
            yield
            return
        changes, hold = await self.clear(path, doc, price), f"price:{self.core.new_id()}"
        await self.ledger.reserve(self.agent, hold, price, self.charges(), *changes)
        cost = 0
        try:
            yield
            cost = price
        finally:
            with anyio.CancelScope(shield=True):
                await self.ledger.settle(self.agent, hold, cost)

    async def clear(self, path: Path, doc: bytes, cost_usd: int) -> Sequence[Change]:
        """What must be committed along with spending *cost_usd* on *doc*. EPERM while that needs approval."""
        request = Request(self.agent, self.principal, join(self.at, path), doc, cost_usd)
        return await self.approvals.clear(self.policy, request)

    def charges(self) -> tuple[Charge, ...]:
        """Everything that pays: the day's budget, that of the tick the agent is in, and the tokens on the way here."""
        is_agent = self.principal.role == "agent" and self.principal.name == self.agent
        is_own = is_agent or self.principal.role == "peer"  # it spends in the agent's own namespace
        envelope, purses = self.tick(self.agent) if is_own else ("", "")
        return charges(
            self.core, self.agent, self.service, self.policy, envelope, [*self.principal.purses, *unpack(purses)]
        )

    async def usage(self) -> dict[str, Any]:
        """By ``day``, ``tick`` (within one) and token: limit, reserved, spent and remaining, micro-USD."""
        found: dict[str, Any] = {}
        for charge in self.charges():
            sums, limit = await self.ledger.usage(charge), charge.limit_usd
            name = "tick" if charge.period.startswith("tick:") else "day" if charge.agent else charge.account
            left = None if limit is None else max(0, sums.remaining(limit))
            found[name] = {
                "period": charge.period, "limit_usd": limit, "reserved_usd": sums.reserved_usd,
                "spent_usd": sums.spent_usd, "remaining_usd": left,
            }  # fmt: skip
        return found


def charges(
    core: Core, agent: str, service: str, policy: Policy, envelope: str, purses: Sequence[tuple[str, int]]
) -> tuple[Charge, ...]:
    """The charges of one spending from *service* now, within the tick of *envelope* where that is not ""."""
    day = Charge(agent, service, day_of(core.clock.now_ns()), policy.per_day_usd)
    tick = (Charge(agent, service, f"tick:{envelope}", policy.per_tick_usd),) if envelope else ()
    return (day, *tick, *token_charges(purses))
