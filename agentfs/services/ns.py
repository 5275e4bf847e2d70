"""ns: what is mounted where in an agent's namespace, with which rights: a script that can be replayed.

``ns`` (RW) has one line a mount or bind: ``mount SERVICE PATH [before|after] [LEVEL] [NAME=VALUE...]`` or
``bind PATH PATH [before|after]``. LEVEL is read_write (the default), read_only, sign_only, budgeted or disabled. A
budgeted mount takes per_tick_usd, per_day_usd, approval_threshold_usd, price_usd (for each unit written), approvers
(operator, token:ID) and trust (reported or reserved); every mount takes rate (opens and changes a second). confirm, who
is named as in approvers, makes each use of an identity wait in approvals/ until one of them allows it; only a service
that does all it does in calls takes it. What is not mounted does not exist for the agent. The operator writes it; it
counts at once, also for files that are open: what is no longer granted is EACCES. Writing ``preset`` goes back to what
the agent's autonomy stands for.
"""

from __future__ import annotations

from agentfs.services import Scope, Service
from agentfs.tree import At, File, Info, Tree


def ns(scope: Scope) -> Tree:
    """The file ``ns`` of one agent."""
    engine, agent = scope.engine, scope.agent

    async def read(at: At) -> bytes:
        return (await scope.table.script()).encode()

    async def write(at: At, doc: bytes) -> None:
        script = doc.decode() if doc.strip() != b"preset" else ""
        scope.table.check(script)
        await engine.remount(agent, script, at.want.match)

    async def info(at: At) -> Info:
        row = await engine.row(agent)
        changed_ns = max(row.ns_at_ns, row.config_at_ns)
        return Info(changed_ns, len(await read(at)), changed_ns)

    return scope.tree(File(name="ns", read=read, write=write, info=info, operator=True))


SERVICE = Service("ns", "", ns)
