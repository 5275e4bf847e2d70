"""A running engine over any store, with inline programs and a clock moved by hand, for tests of its promises."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio

from agentfs.compute.port import ComputeProvider
from agentfs.engine.agent import Agent
from agentfs.engine.context import AgentContext
from agentfs.engine.engine import NO_PROVIDERS, NO_SANDBOXES, Engine
from agentfs.engine.envelope import Envelope, Metadata
from agentfs.engine.housing import Housing
from agentfs.engine.settings import InlineProgram, Settings
from agentfs.engine.trigger import Trigger
from agentfs.limits import Limits
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.providers.keys.keeper import Keeper
from agentfs.providers.programs.inline import Inline
from agentfs.rows import DeadRow, EnvelopeRow
from agentfs.tree import Tree


class Script(Agent[dict[str, Any]]):
    """Does what the test's function says; counts its messages in its state."""

    act: Callable[[Script, AgentContext, Trigger], Any] | None = None
    ran: list[tuple[str, Any]] = []  # noqa: RUF012  # shared on purpose: what happened, in order

    async def on_trigger(self, ctx: AgentContext, trigger: Trigger) -> None:
        self.state["n"] = self.state.get("n", 0) + 1
        type(self).ran.append((trigger.source, trigger.payload))
        act = type(self).act
        if act is not None:
            await act(self, ctx, trigger)


SEED = bytes(range(64))


def settings(**fields: Any) -> Settings:
    """Settings for an agent run by `Script`."""
    doc = {"program": {"kind": "inline", "ref": "engines:Script"}, **fields}
    return msgspec.convert(doc, Settings)


@asynccontextmanager
async def running(
    store: Store, clock: ManualClock, limits: Limits | None = None, secret: str = "",
    providers: Mapping[str, tuple[ComputeProvider, str]] = NO_PROVIDERS, housing: Housing = NO_SANDBOXES,
) -> AsyncIterator[Engine]:  # fmt: skip
    """An engine that ticks; its agents are all `Script`."""

    def load(agent: str, config: Settings) -> Inline:
        assert isinstance(config.program, InlineProgram)
        return Inline(InlineProgram(ref="engines:Script"))

    engine = Engine(
        store, clock, limits or Limits(), load, lambda agent: Tree(), secret=secret, signer=Keeper(SEED),
        providers=providers, housing=housing,
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: engine.run(task_status=task_status))
        yield engine
        nursery.cancel_scope.cancel()


async def settle(engine: Engine) -> None:
    """Wait until no agent is awake and nothing is being stored."""
    with trio.fail_after(60):
        while True:
            await trio.lowlevel.checkpoint()
            if engine.is_idle:
                await trio.testing.wait_all_tasks_blocked(0.001)
                if engine.is_idle:
                    return


async def still(engine: Engine) -> None:
    """Wait until every task waits for something else than the store, whose commits are another thread's."""
    with trio.fail_after(60):
        await trio.testing.wait_all_tasks_blocked(0.001)
        while engine.core.in_flight:
            await trio.testing.wait_all_tasks_blocked(0.001)


async def send(engine: Engine, to: str, payload: Any, *, id: str = "", source: str = "operator", **meta: Any) -> bytes:
    """Have *to* accept one message."""
    envelope = Envelope(
        id=id or engine.core.new_id(), timestamp="2026-01-01T00:00:00.000Z", source=source, to=to, payload=payload,
        metadata=msgspec.convert(meta, Metadata),
    )  # fmt: skip
    return await engine.mail.accept(envelope)


async def lines(engine: Engine, agent: str, log: str) -> list[dict[str, Any]]:
    """All records of a durable log."""
    reader = engine.core.logs.durable(agent, log)
    found = [await reader.lines(head.generation, limit=100_000) for head in await reader.heads()]
    return [msgspec.json.decode(line.line) for group in found for line in group]


async def pending(engine: Engine, agent: str) -> list[EnvelopeRow]:
    """The inbox of *agent*."""
    return list(await engine.core.store.scan(EnvelopeRow, agent, by="seq"))


async def dead(engine: Engine, agent: str) -> list[DeadRow]:
    """The dead letters of *agent*."""
    return list(await engine.core.store.scan(DeadRow, agent, by="seq"))


async def fails(code: int, awaitable: Any) -> OSError:
    """Expect an OSError with this errno."""
    with pytest.raises(OSError) as caught:
        await awaitable
    assert caught.value.errno == code, caught.value
    return caught.value


async def started(engine: Engine, name: str = "a", **config: Any) -> str:
    """A new agent run by `Script`."""
    return await engine.create(name, settings(**config))
