"""`Order`: one submit of something that runs and costs outside of this process: whose, what, who pays, which key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from agentfs.engine.core import Core
from agentfs.engine.journal import Intent, Journal, hash_of
from agentfs.engine.purse import Account
from agentfs.rows import Row
from agentfs.types import Path

Asked = TypeVar("Asked")
R = TypeVar("R", bound=Row)
_GRACE_NS: Final = 60_000_000_000  # behind its own time limit, the journal counts it as lost


@dataclass(frozen=True, slots=True)
class Order(Generic[Asked]):
    """*request* of *agent*, submitted at *path* under *key*; *account* pays."""

    agent: str
    request: Asked
    account: Account
    key: str
    path: Path

    def intent(self, provider: str, kept: Any, max_cost_usd: int, until_ns: int) -> Intent:
        """What the journal is told. *kept*: what of the request may be stored; *until_ns*: when its time is over."""
        charges = self.account.charges()
        ticks = [c.period.removeprefix("tick:") for c in charges if c.period.startswith("tick:")]
        return Intent(
            agent=self.agent, provider=provider, key=self.key, hash=hash_of(kept), max_cost_usd=max_cost_usd,
            charges=charges, source=self.account.principal.source, deadline_ns=until_ns + _GRACE_NS,
            envelope=ticks[0] if ticks else "",
        )  # fmt: skip


async def known(core: Core, journal: Journal, table: type[R], intent: Intent) -> tuple[R | None, R | None]:
    """The row of *table* under the key of *intent*, and the same when this very request began it: a replay."""
    old = await core.store.get(table, intent.agent, intent.id)
    entry = await journal.get(intent.agent, intent.id)
    return old, old if entry is not None and entry.hash == intent.hash else None
