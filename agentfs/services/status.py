"""status: what an agent is doing, derived each time it is read.

``status`` (R) is one JSON object: id, pubkey (hex), state (dormant, active, failed, terminated), is_paused, is_ticking,
created_at, last_tick_at, last_tick_cause, tick_count, failures in a row, queue_depth, next_wake, storage_bytes, and
budget: of each budgeted mount the day's (and within a tick the tick's) limit_usd, reserved_usd, spent_usd and
remaining_usd.
"""

from __future__ import annotations

from agentfs.services import Scope, Service, document
from agentfs.tree import At, File, Info, Tree
from agentfs.types import AGENTS, DAY, Path

_FACETS = ("states", "inbox", "alarms", "kv", "lifecycle", "accounts", "identities")


def status(scope: Scope) -> Tree:
    """The file ``status`` of one agent."""

    async def read(at: At) -> bytes:
        engine, row = scope.engine, await scope.engine.row(scope.agent)
        accounts = {s: engine.money.account(row, s, at.principal, Path(s)) for s in await scope.table.budgeted()}
        budget = {service: await account.usage() for service, account in accounts.items()}
        return document({**await engine.status(scope.agent), "budget": budget})

    until = (AGENTS, DAY, *((scope.agent, facet) for facet in _FACETS))

    async def info(at: At) -> Info:
        versions = scope.engine.core.versions
        version = versions.latest(until)
        return Info(version, 0, version, until)

    return scope.tree(File(name="status", read=read, info=info))


SERVICE = Service("status", "", status)
