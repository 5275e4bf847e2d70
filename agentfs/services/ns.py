"""ns: what is mounted where in an agent's namespace, as a script that can be replayed.

``ns`` (R) has one line a mount or bind: ``mount SERVICE PATH [before|after]`` or ``bind PATH PATH [before|after]``.
"""

from __future__ import annotations

from agentfs.services import Scope, Service
from agentfs.tree import At, File, Tree


def ns(scope: Scope) -> Tree:
    """The file ``ns`` of one agent."""

    async def read(at: At) -> bytes:
        return scope.namespace.script().encode()

    return scope.tree(File(name="ns", read=read))


SERVICE = Service("ns", "", ns)
