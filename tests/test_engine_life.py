"""The engine's promises over both stores: alarms, delivery, lifecycle, state versions, hooks."""

from __future__ import annotations

import errno
from typing import Any

import engines
import pytest
import trio
import trio.testing
from engines import Script, dead, fails, lines, running, send, settle, started

from agentfs.engine.agent import Agent
from agentfs.engine.context import AgentContext
from agentfs.engine.trigger import Trigger
from agentfs.limits import Limits
from agentfs.ports import Committed, Store, Unit
from agentfs.providers.clock import ManualClock
from agentfs.providers.store.memory import MemoryStore
from agentfs.rows import AlarmRow, EnvelopeRow, KvRow, StateRow
from agentfs.types import DAY, OPERATOR, Facet


async def test_alarms_fire_once_and_survive_restarts(store: Store, clock: ManualClock) -> None:
    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        if trigger.payload == "set":
            ctx.alarm("once", in_ms=2000, payload="ding")
            ctx.alarm("tick", every_ms=1000, payload="beat")
        if trigger.payload == "ding":
            ctx.reply("dong")

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine)
        await send(engine, "a", "set", id="m1", source="bob")
        await settle(engine)
        clock.advance(1)
        await settle(engine)
        assert [p for _, p in Script.ran] == ["set", "beat"]
    clock.advance(3.5)
    async with running(store, clock) as engine:
        await settle(engine)
        assert sorted(p for _, p in Script.ran) == ["beat", "beat", "ding", "set"]
        (reply,) = await lines(engine, "a", "outbox")
        assert (reply["to"], reply["payload"], reply["metadata"]["reply_to"]) == ("bob", "dong", "m1")
        row = await store.get(AlarmRow, "a", "tick")
        assert row is not None and row.missed == 2
        assert await store.get(AlarmRow, "a", "once") is None
        clock.advance(0.5)
        await settle(engine)
        assert [p for _, p in Script.ran].count("beat") == 3


async def test_delivery_between_agents_is_exactly_once_in_order(store: Store, clock: ManualClock) -> None:
    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        if trigger.payload == "go":
            for i in range(5):
                ctx.send("b", i)
            ctx.send("nobody", "lost")
        elif ctx.agent == "b" and trigger.payload == 4:
            ctx.reply("thanks")

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine, "a")
        await started(engine, "b", overflow={"policy": "reject", "max_depth": 2, "dead_letter_max": 0})
        await engine.verb("b", "pause", OPERATOR)
        await send(engine, "a", "go")
        await settle(engine)
        assert await engine.mail.depth("b") == 2
        await engine.verb("b", "resume", OPERATOR)
        for _ in range(4):
            await settle(engine)
            clock.advance(1)
        await settle(engine)
        assert [p for s, p in Script.ran if s == "a"] == [0, 1, 2, 3, 4]
        assert [p for s, p in Script.ran if s == "b"] == ["thanks"]
        assert [r["to"] for r in await lines(engine, "a", "outbox")][:6] == ["b"] * 5 + ["nobody"]


async def test_hop_limit_ends_loops(store: Store, clock: ManualClock) -> None:
    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        ctx.send("b" if ctx.agent == "a" else "a", "ping")

    Script.act = act
    async with running(store, clock, Limits(hops=6)) as engine:
        await started(engine, "a")
        await started(engine, "b")
        await send(engine, "a", "go")
        for _ in range(10):
            await settle(engine)
        letters = [*await dead(engine, "a"), *await dead(engine, "b")]
        assert [letter.reason for letter in letters] == ["undeliverable: hops"]
        assert len(Script.ran) == 7


async def test_expired_is_dead_lettered(store: Store, clock: ManualClock) -> None:
    async with running(store, clock) as engine:
        await started(engine)
        await engine.verb("a", "pause", OPERATOR)
        await send(engine, "a", "late", expires_at="2026-01-01T00:00:01Z")
        clock.advance(2)
        await engine.verb("a", "resume", OPERATOR)
        await settle(engine)
        assert Script.ran == [] and [r.reason for r in await dead(engine, "a")] == ["expired"]


async def test_lifecycle_hibernate_terminate_remove(store: Store, clock: ManualClock) -> None:
    async with running(store, clock) as engine:
        await started(engine)
        await fails(errno.EEXIST, started(engine))
        await engine.verb("a", "wake", OPERATOR)
        await settle(engine)
        assert Script.ran == [("operator", "wake")]
        await fails(errno.ENOTEMPTY, engine.remove("a"))
        await engine.verb("a", "terminate", OPERATOR)
        await settle(engine)
        await fails(errno.EPERM, send(engine, "a", "x"))
        await fails(errno.EPERM, engine.verb("a", "resume", OPERATOR))
        assert (await engine.status("a"))["state"] == "terminated"
        await engine.remove("a")
        await fails(errno.ENOENT, engine.status("a"))
        await started(engine)
        assert (await engine.status("a"))["tick_count"] == 0
        assert [r["event"] for r in await lines(engine, "a", "trajectory")] == ["created"]


class Versioned(Agent[dict[str, int]]):
    SCHEMA = 2

    def migrate(self, state: Any, schema: int) -> Any:
        return {"migrated": state["n"]}


async def test_state_migrates_or_the_tick_fails(store: Store, clock: ManualClock) -> None:
    async with running(store, clock) as engine:
        await started(engine)
        await send(engine, "a", "one")
        await settle(engine)
        agent = Versioned()
        state = await store.get(StateRow, "a")
        assert state is not None and state.schema == 1
        agent.load_state({"n": 1}, 1)
        assert agent.state == {"migrated": 1}
        with pytest.raises(OSError, match="version 3 is newer"):
            agent.load_state({}, 3)
        with pytest.raises(OSError, match="migrates none"):
            Agent().load_state({}, 0)
    assert engines.Script is Script


calls: list[str] = []


class Hooked(Script):
    async def on_create(self, ctx: AgentContext) -> None:
        calls.append("create")
        self.state["born"] = 1

    async def on_wake(self, ctx: AgentContext) -> None:
        calls.append("wake")

    async def on_sleep(self, ctx: AgentContext) -> None:
        calls.append("sleep")
        ctx.kv.put("slept", b"1")

    async def on_error(self, ctx: AgentContext, error_text: str) -> None:
        calls.append(f"error {error_text}")

    async def on_terminate(self, ctx: AgentContext) -> None:
        calls.append("terminate")
        ctx.send("operator", "bye")


async def test_hooks_run_in_their_ticks(store: Store, clock: ManualClock) -> None:
    calls.clear()

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        if trigger.payload == "bad":
            raise ValueError("bad")

    engines.Script = Hooked  # type: ignore[misc]
    Hooked.act = act
    try:
        async with running(store, clock) as engine:
            await started(engine, retry={"attempts": 1})
            await send(engine, "a", "one")
            await settle(engine)
            assert calls == ["create", "wake", "sleep"]
            assert await store.get(KvRow, "a", "slept") is not None
            await send(engine, "a", "bad")
            await settle(engine)
            assert calls[3:] == ["wake", "error ValueError: bad", "sleep"]
            await engine.verb("a", "terminate", OPERATOR)
            await settle(engine)
            assert calls[6:] == ["terminate"]
            assert [r["payload"] for r in await lines(engine, "a", "outbox")] == ["bye"]
    finally:
        engines.Script = Script  # type: ignore[misc]


async def test_a_drain_ends_with_the_last_commit_not_with_the_clock(clock: ManualClock) -> None:
    gate = trio.Event()

    class Held(MemoryStore):
        async def commit(self, unit: Unit) -> Committed:
            await gate.wait()
            return await super().commit(unit)

    async with running(Held(clock), clock) as engine, trio.open_nursery() as others:
        others.start_soon(started, engine)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(20):
            await engine.drain(0)
            assert not engine.is_idle
            async with trio.open_nursery() as drain:
                drain.start_soon(engine.drain, 10)
                await trio.testing.wait_all_tasks_blocked()
                gate.set()
        assert engine.is_idle


async def test_a_tick_that_begins_and_ends_is_told(clock: ManualClock) -> None:
    """Who waits for a place to tick in is awake for long before, and a hook after a failure commits nothing."""
    told: list[Facet] = []
    gates = {name: trio.Event() for name in "ab"}

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        await gates[ctx.agent].wait()

    Script.act = act
    async with running(MemoryStore(clock), clock, Limits(parallel_ticks=1)) as engine:
        for name in gates:
            await started(engine, name)
            await send(engine, name, "go")
            await trio.testing.wait_all_tasks_blocked()
        assert [(await engine.status(name))["is_ticking"] for name in gates] == [True, False]
        with engine.core.versions.telling(told.append):
            gates["a"].set()
            await trio.testing.wait_all_tasks_blocked()
            assert (await engine.status("b"))["is_ticking"] and ("b", "lifecycle") in told
        gates["b"].set()
        await settle(engine)


async def test_a_retry_whose_time_has_come_is_told(clock: ManualClock) -> None:
    """``next_wake`` is another then, though the agent is awake with something else."""
    told: list[Facet] = []
    gate = trio.Event()

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        if trigger.payload == "bad":
            raise ValueError("bad")
        await gate.wait()

    Script.act = act
    async with running(MemoryStore(clock), clock) as engine:
        await started(engine, retry={"attempts": 2, "base_ms": 100})
        await send(engine, "a", "bad")
        await settle(engine)
        await send(engine, "a", "long", source="bob")
        await trio.testing.wait_all_tasks_blocked()
        assert (await engine.status("a"))["next_wake"]
        with engine.core.versions.telling(told.append):
            clock.advance(1)
            await trio.testing.wait_all_tasks_blocked()
        assert (await engine.status("a"))["next_wake"] is None
        assert ("a", "lifecycle") in told
        gate.set()
        await settle(engine)


async def test_the_depth_of_an_inbox_that_is_being_loaded_is_that_of_its_rows(clock: ManualClock) -> None:
    """Nothing tells that it has been loaded."""
    gate = trio.Event()

    class Slow(MemoryStore):
        async def scan(self, table: Any, *prefix: str, **how: Any) -> Any:
            if table is EnvelopeRow and prefix == ("a",):
                await gate.wait()
            return await super().scan(table, *prefix, **how)

    store = Slow(clock)
    gate.set()
    async with running(store, clock) as engine:
        await started(engine)
        await engine.verb("a", "pause", OPERATOR)
        await send(engine, "a", "waits")
        await settle(engine)
        engine.mail.forget("a")
        gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.mail.box, "a")
            await trio.testing.wait_all_tasks_blocked()
            assert (await engine.status("a"))["queue_depth"] == 1
            gate.set()


async def test_a_new_day_is_a_change_that_is_told(clock: ManualClock) -> None:
    """What ``status`` says of a day's budget is another from midnight on, though nothing was committed."""
    told: list[Facet] = []
    async with running(MemoryStore(clock), clock) as engine:
        with engine.core.versions.telling(told.append):
            for day in (1, 2):
                clock.advance(86_400)
                await trio.testing.wait_all_tasks_blocked()
                assert told == [DAY] * day
