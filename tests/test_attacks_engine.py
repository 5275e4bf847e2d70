"""What goes wrong between two commits: races, crashes half-way, programs that misbehave; nothing is lost or doubled."""

from __future__ import annotations

import errno
from typing import Any

import engines
import msgspec
import pytest
import trio
from engines import Script, dead, pending, running, send, settle, started, still

from agentfs.engine.agent import Agent
from agentfs.engine.context import AgentContext
from agentfs.engine.envelope import Envelope
from agentfs.engine.trigger import Trigger
from agentfs.limits import Limits
from agentfs.ports import Put, Store, Unit
from agentfs.providers.clock import ManualClock
from agentfs.providers.programs.inline import load_class
from agentfs.rows import AlarmRow, DeliveryRow, EnvelopeRow, ReceiptRow, StateRow
from agentfs.types import OPERATOR

FULL = {"policy": "reject", "max_depth": 1, "dead_letter_max": 0}


class Doc(Agent[dict[str, Any]]):
    """Changes what is deep within its state."""

    async def on_trigger(self, ctx: AgentContext, trigger: Trigger) -> None:
        self.state.setdefault("list", []).append(trigger.payload)


async def play(store: Store, clock: ManualClock, cls: type[Agent[Any]], *payloads: Any, **config: Any) -> None:
    """One engine whose agents are all of *cls*, which gets *payloads* one by one."""
    known, engines.Script = engines.Script, cls  # type: ignore[assignment,misc]
    try:
        async with running(store, clock) as engine:
            await started(engine, **config)
            for payload in payloads:
                await send(engine, "a", payload)
                await settle(engine)
    finally:
        engines.Script = known  # type: ignore[misc]


async def test_a_change_deep_within_the_state_is_kept(store: Store, clock: ManualClock) -> None:
    await play(store, clock, Doc, "x", "y", "z")
    state = await store.get(StateRow, "a")
    assert state is not None and msgspec.json.decode(state.state) == {"list": ["x", "y", "z"]}


class Sleeper(Agent[dict[str, Any]]):
    """Fails at first and saves its state when it falls asleep."""

    async def on_trigger(self, ctx: AgentContext, trigger: Trigger) -> None:
        if trigger.payload == "bad":
            raise ValueError("bad")
        self.state["n"] = 1

    async def on_sleep(self, ctx: AgentContext) -> None:
        self.state["slept"] = True


async def test_what_a_hook_saves_has_the_version_of_its_class(store: Store, clock: ManualClock) -> None:
    await play(store, clock, Sleeper, "bad", "good", retry={"attempts": 1})
    state = await store.get(StateRow, "a")
    assert state is not None and state.schema == 1
    assert msgspec.json.decode(state.state) == {"slept": True, "n": 1}


class Endless(Agent[dict[str, Any]]):
    """Hooks that never return."""

    async def on_trigger(self, ctx: AgentContext, trigger: Trigger) -> None:
        if trigger.payload == "bad":
            raise ValueError("bad")

    async def on_error(self, ctx: AgentContext, error_text: str) -> None:
        await trio.sleep_forever()

    async def on_sleep(self, ctx: AgentContext) -> None:
        await trio.sleep_forever()


@pytest.mark.parametrize("payload", ["bad", "good"])
async def test_a_hook_ends_at_the_time_limit(
    store: Store, clock: ManualClock, payload: str, caplog: pytest.LogCaptureFixture
) -> None:
    known, engines.Script = engines.Script, Endless  # type: ignore[assignment,misc]
    try:
        async with running(store, clock) as engine:
            await started(engine, tick_timeout_ms=1000, retry={"attempts": 1})
            await send(engine, "a", payload)
            for _ in range(3):
                await still(engine)
                clock.advance(2)
            await settle(engine)
    finally:
        engines.Script = known  # type: ignore[misc]
    assert "tick over 1000 ms" in caplog.text


async def test_a_program_that_exits_ends_only_its_tick(store: Store, clock: ManualClock) -> None:
    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        raise SystemExit(3)

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine, retry={"attempts": 1})
        await send(engine, "a", "x")
        await settle(engine)
        (letter,) = await dead(engine, "a")
        assert letter.reason == "EREMOTEIO: provider failed: program called exit(3)"


def test_a_module_that_exits_when_it_is_loaded_is_refused(tmp_path: Any) -> None:
    (tmp_path / "quits.py").write_text("import sys\nsys.exit(1)\n")
    with pytest.raises(OSError, match="SystemExit"):
        load_class(f"{tmp_path}/quits.py:Agent")


async def test_words_that_cannot_be_stored_are_still_a_reason(store: Store, clock: ManualClock) -> None:
    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        raise ValueError("\ud800")

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine, retry={"attempts": 1})
        await send(engine, "a", "x")
        await settle(engine)
        assert [letter.reason for letter in await dead(engine, "a")] == ["ValueError: ?"]


async def test_an_envelope_nobody_can_decode_is_set_aside(
    store: Store, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """One that was accepted on a shallower stack: neither its source nor its sender waits for it for ever."""
    body = '{"id":"deep","source":"x","to":"%s","payload":' + "[" * 5000 + "]" * 5000 + "}"
    async with running(store, clock) as engine:
        await started(engine)
        await started(engine, "b")
        deep = EnvelopeRow(agent="a", id="deep", source="x", accepted_at_ns=1, body=body % "a")
        waits = DeliveryRow(agent="b", id="deep", to="a", at_ns=1, body=body % "a")
        await store.commit(Unit((Put(deep), Put(waits))))
        await send(engine, "a", "next", source="x")
        await settle(engine)
        assert [p for _, p in Script.ran] == ["next"]
        assert [letter.id for letter in await dead(engine, "a")] == ["deep"]
        await engine.delivery.run("b")
        assert [letter.id for letter in await dead(engine, "b")] == ["deep"]
    assert "envelope deep of a" in caplog.text


async def test_reject_never_displaces_what_was_accepted(store: Store, clock: ManualClock) -> None:
    """A trigger takes the place that an open handle holds: both stay."""
    async with running(store, clock) as engine:
        await started(engine, overflow=FULL)
        await engine.verb("a", "pause", OPERATOR)
        give_back = await engine.mail.reserve("a")
        await engine.trigger("a", "manual", "tick", OPERATOR)
        envelope = (await pending(engine, "a"))[0]
        message = Envelope(id="m1", source="operator", to="a", payload="x")
        await engine.mail.accept(message, has_place=True)
        give_back()
        assert [row.id for row in await pending(engine, "a")] == [envelope.id, "m1"]
        assert await dead(engine, "a") == []


@pytest.mark.parametrize("policy", ["reject", "dead_letter", "drop_oldest"])
async def test_many_at_once_do_not_overfill(store: Store, clock: ManualClock, policy: str) -> None:
    refused = 0

    async def submit(number: int) -> None:
        nonlocal refused
        try:
            await send(engine, "a", number, id=f"m{number}")
        except OSError as exc:
            assert exc.errno == errno.ENOBUFS
            refused += 1

    async with running(store, clock) as engine:
        await started(engine, overflow={"policy": policy, "max_depth": 3, "dead_letter_max": 4})
        await engine.verb("a", "pause", OPERATOR)
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(submit, number)
        letters = [row.id for row in await dead(engine, "a")]
        held = [row.id for row in await pending(engine, "a")]
        assert len(held) == 3 and len(letters) == (0 if policy == "reject" else 4)
        assert refused == 10 - len(held) - len(letters) and len({*held, *letters}) == len(held) + len(letters)
        assert await engine.mail.depth("a") == 3


async def test_alarms_do_not_overfill(store: Store, clock: ManualClock) -> None:
    """A repeating one misses its firings while the inbox is full; one for once waits."""

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        if trigger.payload == "set":
            ctx.alarm("often", every_ms=1000, payload="often")
            ctx.alarm("once", in_ms=9000, payload="once")

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine, overflow={"policy": "reject", "max_depth": 2, "dead_letter_max": 0})
        await send(engine, "a", "set")
        await settle(engine)
        await engine.verb("a", "pause", OPERATOR)
        for _ in range(12):
            clock.advance(1)
            await settle(engine)
        assert len(await pending(engine, "a")) == 2
        often, once = await store.get(AlarmRow, "a", "often"), await store.get(AlarmRow, "a", "once")
        assert often is not None and often.missed == 10 and once is not None
        await engine.verb("a", "resume", OPERATOR)
        await settle(engine)
        clock.advance(1)
        await settle(engine)
        assert [p for _, p in Script.ran].count("once") == 1


async def test_receipts_of_every_agent_are_trimmed(store: Store, clock: ManualClock) -> None:
    async with running(store, clock, Limits(receipts=10)) as engine:
        for name in "ab":
            await started(engine, name, overflow={"max_depth": 100_000})
            await engine.verb(name, "pause", OPERATOR)
        for number in range(1200):
            await send(engine, "ab"[number % 2], number, id=f"m{number}")
        assert max([await store.count(ReceiptRow, name) for name in "ab"]) < 600


async def test_the_same_id_twice_leaves_once_and_another_body_is_refused(store: Store, clock: ManualClock) -> None:
    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        if trigger.payload in ("same", "other"):
            ctx.send("b", "one", id="m1")
            ctx.send("b" if trigger.payload == "same" else "c", "one", id="m1")

    Script.act = act
    async with running(store, clock) as engine:
        for name in "abc":
            await started(engine, name, retry={"attempts": 1})
        await send(engine, "a", "same", id="same")
        await send(engine, "a", "same", id="again")
        await send(engine, "a", "other", id="other")
        await settle(engine)
        assert [(s, p) for s, p in Script.ran if s == "a"] == [("a", "one")]
        assert [(letter.id, letter.reason[:6]) for letter in await dead(engine, "a")] == [("other", "EEXIST")]


async def test_a_replayed_undeliverable_goes_out_again(store: Store, clock: ManualClock) -> None:
    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        if trigger.payload == "go":
            ctx.send("b", "hello", id="m1")

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine, "a")
        await started(engine, "b")
        await engine.verb("b", "terminate", OPERATOR)
        await send(engine, "a", "go")
        await settle(engine)
        assert [letter.id for letter in await dead(engine, "a")] == ["m1"]
        clock.advance(1)
        await engine.remove("b")
        await started(engine, "b")
        await engine.mail.replay_all("a")
        await settle(engine)
        assert Script.ran == [("operator", "go"), ("a", "hello")] and await dead(engine, "a") == []
