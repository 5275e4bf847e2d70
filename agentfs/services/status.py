"""status: what an agent is doing, derived each time it is read.

``status`` (R) is one JSON object: id, state (dormant, active, failed, terminated), is_paused, is_ticking, created_at,
last_tick_at, last_tick_cause, tick_count, failures in a row, queue_depth, next_wake, storage_bytes.
"""

from __future__ import annotations

from agentfs.services import Scope, Service, document
from agentfs.tree import At, File, Info, Tree

_FACETS = ("agents", "states", "inbox", "alarms", "kv", "lifecycle")


def status(scope: Scope) -> Tree:
    """The file ``status`` of one agent."""

    async def read(at: At) -> bytes:
        return document(await scope.engine.status(scope.agent))

    async def info(at: At) -> Info:
        version = scope.engine.core.versions.of(scope.agent, *_FACETS)
        return Info(version, 0, version)

    return scope.tree(File(name="status", read=read, info=info))


SERVICE = Service("status", "", status)
