"""Verbs, removals and configurations that come in the middle of something else: nothing runs twice or for another."""

from __future__ import annotations

import errno

import engines
import trio
from engines import Script, fails, lines, running, send, settle, started, still

from agentfs.engine.context import AgentContext
from agentfs.engine.timers import Timers
from agentfs.engine.trigger import Trigger
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.record import Follow
from agentfs.types import OPERATOR


async def test_a_tick_of_an_agent_that_is_gone_commits_nothing(store: Store, clock: ManualClock) -> None:
    """Not even into an agent of the same name that holds an envelope of the same id; that one has its own program."""
    go_on, programs = trio.Event(), set()

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        programs.add(id(agent))
        if trigger.payload == "old":
            await go_on.wait()
            ctx.kv.put("from", "old")
        ctx.reply(trigger.payload)

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine)
        await send(engine, "a", "old", id="m1")
        await still(engine)
        await engine.verb("a", "terminate", OPERATOR)
        await engine.remove("a")
        clock.advance(1)
        await started(engine)
        await send(engine, "a", "new", id="m1")
        go_on.set()
        for _ in range(3):
            await settle(engine)
            clock.advance(1)
        await settle(engine)
        assert [r["payload"] for r in await lines(engine, "a", "outbox")] == ["new"]
        assert [p for _, p in Script.ran] == ["old", "new"] and len(programs) == 2


async def test_hibernate_keeps_the_retry_and_what_comes_later(store: Store, clock: ManualClock) -> None:
    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        if len(Script.ran) == 1:
            await engine.verb("a", "hibernate", OPERATOR)
            raise ValueError("again")

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine)
        await send(engine, "a", "one")
        await settle(engine)
        assert len(Script.ran) == 1
        clock.advance(1)
        await settle(engine)
        assert [p for _, p in Script.ran] == ["one", "one"]

        async def later(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
            if trigger.payload == "two":
                await engine.verb("a", "hibernate", OPERATOR)
                await send(engine, "a", "three")

        Script.act = later
        await send(engine, "a", "two")
        await settle(engine)
        assert [p for _, p in Script.ran][2:] == ["two", "three"]


async def test_recover_during_a_tick_that_fails(store: Store, clock: ManualClock) -> None:
    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        if len(Script.ran) == 2:
            await engine.verb("a", "recover", OPERATOR)
        raise ValueError("bad")

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine, quarantine_after=2)
        await send(engine, "a", "one")
        await settle(engine)
        clock.advance(1)
        await settle(engine)
        status = await engine.status("a")
        assert (status["failures"], status["state"]) == (1, "dormant")


async def test_terminate_tells_the_program_once(store: Store, clock: ManualClock) -> None:
    told = []

    class Last(Script):
        async def on_terminate(self, ctx: AgentContext) -> None:
            told.append(1)

    known, engines.Script = engines.Script, Last  # type: ignore[misc]
    try:
        async with running(store, clock) as engine:
            await started(engine)
            await engine.verb("a", "pause", OPERATOR)
            await send(engine, "a", "never ran")
            await engine.verb("a", "terminate", OPERATOR)
            await settle(engine)
            await engine.verb("a", "terminate", OPERATOR)
            await settle(engine)
        async with running(store, clock) as engine:
            await settle(engine)
    finally:
        engines.Script = known  # type: ignore[misc]
    assert told == [1]


async def test_verbs_and_configurations_at_once_all_succeed(store: Store, clock: ManualClock) -> None:
    async with running(store, clock) as engine:
        await started(engine)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(engine.verb, "a", "pause", OPERATOR)
                nursery.start_soon(engine.configure, "a", engines.settings(quarantine_after=7), None)
        assert (await engine.status("a"))["is_paused"]


async def test_no_agent_is_called_like_a_sender_that_is_none(store: Store, clock: ManualClock) -> None:
    async with running(store, clock) as engine:
        for name in ("operator", "schedule", "runtime", "new", "import"):
            await fails(errno.EINVAL, started(engine, name))


def test_timers_hold_what_is_due_and_not_what_was_cancelled(clock: ManualClock) -> None:
    timers = Timers(clock)

    async def action() -> None: ...

    for number in range(10_000):
        timers.set("limit", clock.now_ns() + number, action)
        timers.cancel("limit")
    assert len(timers._heap) < 1000


async def test_followers_of_a_removed_agent_end(store: Store, clock: ManualClock) -> None:
    async with running(store, clock) as engine:
        await started(engine)
        follows = [await Follow.start(engine.core.logs.durable("a", "trajectory"), None)]
        follows.append(await Follow.start(engine.core.logs.ring("a"), None))
        await engine.verb("a", "terminate", OPERATOR)
        await settle(engine)
        await engine.remove("a")
        await started(engine)
        for follow in follows:
            while await follow.next() is not None:
                pass
        assert len(await lines(engine, "a", "trajectory")) == 1
