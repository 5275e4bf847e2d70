"""Messages through ticks: accepted, run and answered per second, with one and with 64 senders, on each store.

python bench/messages.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path as FsPath

import msgspec
import trio

from agentfs.engine.agent import Agent
from agentfs.engine.context import AgentContext
from agentfs.engine.engine import Engine
from agentfs.engine.envelope import Envelope
from agentfs.engine.settings import InlineProgram, Settings
from agentfs.engine.trigger import Trigger
from agentfs.limits import Limits
from agentfs.ports import Store
from agentfs.providers.clock import SystemClock
from agentfs.providers.programs.inline import Inline
from agentfs.providers.store.memory import MemoryStore
from agentfs.providers.store.sqlite import SqliteStore
from agentfs.tree import Tree

MESSAGES = 1024
PROGRAM = InlineProgram(ref=f"{__file__}:Echo")


class Echo(Agent[dict[str, int]]):
    """Answers what it was sent."""

    async def on_trigger(self, ctx: AgentContext, trigger: Trigger) -> None:
        """One reply a message."""
        ctx.reply(trigger.payload)


async def measure(store: Store, senders: int) -> float:
    """Messages a second from the first send to the last reply; each sender has an agent of its own."""
    engine = Engine(store, SystemClock(), Limits(), lambda agent, settings: Inline(PROGRAM), lambda agent: Tree())
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: engine.run(task_status=task_status))
        agents = [await engine.create("", Settings(program=PROGRAM)) for _ in range(senders)]
        start = time.perf_counter()

        async def send(agent: str) -> None:
            for _ in range(MESSAGES // senders):
                await engine.mail.accept(Envelope(id=engine.core.new_id(), source="bench", to=agent, payload="x"))

        async with trio.open_nursery() as sending:
            for agent in agents:
                sending.start_soon(send, agent)
        while not engine.is_idle:  # noqa: ASYNC110
            await trio.sleep(0.001)
        took = time.perf_counter() - start
        nursery.cancel_scope.cancel()
    return MESSAGES / took


async def main() -> None:
    """Measure each store, alternating, and print one JSON object."""
    clock = SystemClock()
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as top:
        for senders in (1, 64):
            stores = {"memory": MemoryStore(clock), "sqlite": await SqliteStore.open(FsPath(top) / f"{senders}", clock)}
            for name, store in stores.items():
                found[f"{name}_{senders}_senders_per_s"] = round(await measure(store, senders))
                await store.aclose()
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


if __name__ == "__main__":
    trio.run(main)
