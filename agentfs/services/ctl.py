"""ctl: the verbs of an agent's life. A verb is recorded before its write returns; no write waits for a tick.

``tick [PAYLOAD]`` and ``wake`` enqueue a trigger; ``stop`` ends the running tick (its envelope is tried again later);
``hibernate`` sleeps after the running tick; ``pause`` and ``resume`` hold and release the queue; ``recover`` ends
quarantine; ``terminate`` is for good. Reading lists the verbs and the last error. An agent itself may tick, wake,
hibernate and stop; the rest is the operator's.
"""

from __future__ import annotations

from agentfs.services import Scope, Service
from agentfs.tree import At, Ctl, Tree


def ctl(scope: Scope) -> Tree:
    """The file ``ctl`` of one agent."""

    async def do(at: At, verb: str, payload: str = "") -> None:
        await scope.engine.verb(scope.agent, verb, at.principal, payload)

    async def tick(at: At, *payload: str) -> None:
        await do(at, "tick", " ".join(payload))

    async def wake(at: At) -> None:
        await do(at, "wake")

    async def hibernate(at: At) -> None:
        await do(at, "hibernate")

    async def stop(at: At) -> None:
        await do(at, "stop")

    async def pause(at: At) -> None:
        await do(at, "pause")

    async def resume(at: At) -> None:
        await do(at, "resume")

    async def recover(at: At) -> None:
        await do(at, "recover")

    async def terminate(at: At) -> None:
        await do(at, "terminate")

    verbs = [tick, wake, hibernate, stop, pause, resume, recover, terminate]
    own = {"tick", "wake", "hibernate", "stop"}
    table = {verb.__name__: verb for verb in verbs}
    return scope.tree(Ctl(name="ctl", verbs=table, operator_verbs=frozenset(table) - own))


SERVICE = Service("ctl", "", ctl)
