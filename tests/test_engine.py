"""The engine's promises (SEMANTICS.md) over both stores: ticks, order, retries, dead letters."""

from __future__ import annotations

import errno

import trio
from engines import Script, dead, fails, lines, pending, running, send, settle, started, still

from agentfs.engine.context import AgentContext
from agentfs.engine.trigger import Trigger
from agentfs.limits import Limits
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.rows import AlarmRow, KvRow, StateRow
from agentfs.types import OPERATOR


async def test_tick_atomicity(store: Store, clock: ManualClock) -> None:
    """Everything a tick returns is durable at once, or nothing of it."""
    fail = True

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        ctx.kv.put("k", b"v")
        assert await ctx.kv.get("k") == b"v"
        ctx.reply("hello")
        ctx.alarm("later", in_ms=60_000)
        ctx.mark_seen("x")
        if fail:
            raise ValueError("broken")

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine)
        await send(engine, "a", "one")
        await settle(engine)
        assert await store.get(KvRow, "a", "k") is None
        assert await lines(engine, "a", "outbox") == []
        assert await store.get(AlarmRow, "a", "later") is None
        state = await store.get(StateRow, "a")
        assert state is not None and (state.state, state.tick_count, state.failures) == ("null", 0, 1)
        fail = False
        clock.advance(1)
        await settle(engine)
        assert (await store.get(KvRow, "a", "k")).value == b"v"  # type: ignore[union-attr]
        assert [r["payload"] for r in await lines(engine, "a", "outbox")] == ["hello"]
        assert await store.get(AlarmRow, "a", "later") is not None
        state = await store.get(StateRow, "a")
        assert state is not None and (state.state, state.tick_count, state.failures) == ('{"n":1}', 1, 0)
        assert await pending(engine, "a") == []
        assert [r["outcome"] for r in await lines(engine, "a", "ticks")] == ["failed", "ok"]


async def test_single_tick_lock(store: Store, clock: ManualClock) -> None:
    """At most one tick of an agent at a time, however it is woken; other agents go on."""
    inside: dict[str, int] = {}
    most = 0

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        nonlocal most
        inside[ctx.agent] = inside.get(ctx.agent, 0) + 1
        assert inside[ctx.agent] == 1
        most = max(most, sum(inside.values()))
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        inside[ctx.agent] -= 1

    Script.act = act
    async with running(store, clock) as engine:
        for name in "abc":
            await started(engine, name)
        async with trio.open_nursery() as nursery:
            for i in range(20):
                nursery.start_soon(send, engine, "abc"[i % 3], i)
        await engine.verb("a", "tick", OPERATOR)
        await settle(engine)
    assert len(Script.ran) == 21 and most > 1


async def test_per_sender_ordering(store: Store, clock: ManualClock) -> None:
    """A source whose head waits for a retry waits; all others go on; priority orders between sources only."""
    broken = {"x0"}

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        if trigger.payload in broken:
            raise ValueError(trigger.payload)

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine)
        await engine.verb("a", "pause", OPERATOR)
        for i in range(3):
            await send(engine, "a", f"x{i}", source="x")
            await send(engine, "a", f"y{i}", source="y", priority=i)
        await engine.verb("a", "resume", OPERATOR)
        await settle(engine)
        assert [p for _, p in Script.ran if p[0] == "y"] == ["y0", "y1", "y2"]
        assert [p for _, p in Script.ran if p[0] == "x"] == ["x0"]
        broken.clear()
        clock.advance(1)
        await settle(engine)
        assert [p for _, p in Script.ran if p[0] == "x"] == ["x0", "x0", "x1", "x2"]


async def test_at_least_once_delivery(store: Store, clock: ManualClock) -> None:
    """An envelope whose tick did not commit is delivered again, by the same and by a later engine."""

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        if len(Script.ran) == 1:
            await trio.sleep_forever()
        ctx.reply(trigger.payload)

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine)
        await send(engine, "a", "one")
        while not Script.ran:
            await trio.lowlevel.checkpoint()
    async with running(store, clock) as engine:
        await settle(engine)
        assert [p for _, p in Script.ran] == ["one", "one"]
        assert [r["payload"] for r in await lines(engine, "a", "outbox")] == ["one"]
        (tick,) = await lines(engine, "a", "ticks")
        assert tick["attempt"] == 1  # a shutdown spends no attempt


async def test_envelope_idempotency(store: Store, clock: ManualClock) -> None:
    """The same id twice is one envelope and one receipt, before and after it ran; with another body EEXIST."""
    async with running(store, clock) as engine:
        await started(engine)
        receipts = set()
        async with trio.open_nursery() as nursery:

            async def submit() -> None:
                receipts.add(await send(engine, "a", "one", id="m1"))

            for _ in range(8):
                nursery.start_soon(submit)
        await settle(engine)
        receipts.add(await send(engine, "a", "one", id="m1"))
        await settle(engine)
        assert len(receipts) == 1 and len(Script.ran) == 1
        await fails(errno.EEXIST, send(engine, "a", "other", id="m1"))


async def test_dedup_helpers(store: Store, clock: ManualClock) -> None:
    """seen/mark_seen: read back in the tick, persisted with it, forgotten with a failed one, bounded."""
    answers = []

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        answers.append(await ctx.seen(trigger.payload))
        ctx.mark_seen(trigger.payload)
        assert await ctx.seen(trigger.payload)
        if len(answers) == 1:
            raise ValueError

    Script.act = act
    async with running(store, clock, Limits(seen_keys=2)) as engine:
        await started(engine)
        await send(engine, "a", "x")
        await settle(engine)
        clock.advance(1)
        await settle(engine)
        for key in ["x", "y", "z", "x"]:
            await send(engine, "a", key)
        await settle(engine)
    assert answers == [False, False, True, False, False, False]


async def test_overflow_deadletter(store: Store, clock: ManualClock) -> None:
    """Each policy of a full inbox; nothing acknowledged is lost; a dead letter replays with its id."""
    async with running(store, clock) as engine:
        for policy in ("reject", "dead_letter", "drop_oldest"):
            name = policy.replace("_", "-")
            overflow = {"policy": policy, "max_depth": 2, "dead_letter_max": 2}
            await started(engine, name, overflow=overflow)
            await engine.verb(name, "pause", OPERATOR)
            for i in range(2):
                await send(engine, name, i, id=f"{name}{i}")
        await fails(errno.EAGAIN, engine.mail.reserve("reject"))
        await fails(errno.ENOBUFS, send(engine, "reject", 2))
        for i in range(2, 4):
            await send(engine, "dead-letter", i, id=f"dead-letter{i}")
            await send(engine, "drop-oldest", i, id=f"drop-oldest{i}")
        await fails(errno.EAGAIN, engine.mail.reserve("dead-letter"))
        await fails(errno.ENOBUFS, send(engine, "drop-oldest", 4))
        assert [r.id for r in await dead(engine, "dead-letter")] == ["dead-letter2", "dead-letter3"]
        assert [r.id for r in await dead(engine, "drop-oldest")] == ["drop-oldest0", "drop-oldest1"]
        assert {r.reason for r in await dead(engine, "drop-oldest")} == {"overflow"}
        await fails(errno.ENOBUFS, engine.mail.replay("drop-oldest", "drop-oldest0"))
        await engine.verb("drop-oldest", "resume", OPERATOR)
        await settle(engine)
        await engine.mail.replay_all("drop-oldest")
        await settle(engine)
        assert [p for _, p in Script.ran] == [2, 3, 0, 1]
        assert await dead(engine, "drop-oldest") == []


async def test_reserved_place_stands_for_a_commit(store: Store, clock: ManualClock) -> None:
    async with running(store, clock) as engine:
        await started(engine, overflow={"policy": "reject", "max_depth": 1, "dead_letter_max": 0})
        await engine.verb("a", "pause", OPERATOR)
        give_back = await engine.mail.reserve("a")
        await fails(errno.ENOBUFS, send(engine, "a", "other"))
        await fails(errno.EAGAIN, engine.mail.reserve("a"))
        give_back()
        await send(engine, "a", "one")


async def test_retries_end_in_a_dead_letter_and_release_the_next(store: Store, clock: ManualClock) -> None:
    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        if trigger.payload == "bad":
            raise ValueError("never")

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine, retry={"attempts": 3, "base_ms": 100})
        await send(engine, "a", "bad", id="m1")
        await send(engine, "a", "good")
        await settle(engine)
        assert [p for _, p in Script.ran] == ["bad"]
        for _ in range(3):
            clock.advance(0.5)
            await settle(engine)
        assert [p for _, p in Script.ran] == ["bad", "bad", "bad", "good"]
        (letter,) = await dead(engine, "a")
        assert (letter.id, letter.attempts, letter.reason) == ("m1", 3, "ValueError: never")
        status = await engine.status("a")
        assert status["queue_depth"] == 0 and status["failures"] == 0 and status["state"] == "dormant"


async def test_quarantine_and_recover(store: Store, clock: ManualClock) -> None:
    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        raise ValueError

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine, quarantine_after=2, retry={"base_ms": 0})
        await send(engine, "a", "one")
        await settle(engine)
        clock.advance(1)
        await settle(engine)
        assert (await engine.status("a"))["state"] == "failed"
        await fails(errno.EPERM, engine.verb("a", "tick", OPERATOR))
        await send(engine, "a", "two")
        await settle(engine)
        assert len(Script.ran) == 2
        Script.act = None
        await engine.verb("a", "recover", OPERATOR)
        await settle(engine)
        assert [p for _, p in Script.ran] == ["one", "one", "one", "two"]


async def test_time_limit_and_stop_end_a_tick(store: Store, clock: ManualClock) -> None:
    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        await trio.sleep_forever()

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine, tick_timeout_ms=1000, retry={"attempts": 2, "base_ms": 100})
        await send(engine, "a", "one")
        await still(engine)
        assert (await engine.status("a"))["is_ticking"]
        await engine.verb("a", "stop", OPERATOR)
        await settle(engine)
        clock.advance(0.2)
        await still(engine)
        clock.advance(1)
        await settle(engine)
        (letter,) = await dead(engine, "a")
        assert "ETIMEDOUT" in letter.reason
        assert "ECANCELED" in (await lines(engine, "a", "ticks"))[0]["error"]
