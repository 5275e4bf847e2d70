"""Attacks on the journal and the ledger: each test is a rule that was broken once."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import trio
from engines import Script, dead, fails, send, settle, started, still
from engines import running as engine_running
from test_effects import Bank, sums

from agentfs.budget import USD_MAX
from agentfs.engine.context import AgentContext
from agentfs.engine.journal import Intent
from agentfs.engine.money import Done, Refused, Spender
from agentfs.engine.trigger import Trigger
from agentfs.ports import Charge, Committed, Store, Unit
from agentfs.providers.clock import ManualClock
from agentfs.providers.store.memory import MemoryStore
from agentfs.rows import EffectRow, HoldRow
from agentfs.types import OPERATOR


async def test_a_sweep_leaves_alone_what_is_being_called(store: Store, clock: ManualClock) -> None:
    """In a hook, whose envelope is in no inbox, as in a tick."""
    gate, bank = trio.Event(), Bank()

    async def pay(key: str) -> Done:
        await gate.wait()
        return await bank.pay(key)

    async with engine_running(store, clock) as engine:
        await started(engine)
        row = await engine.row("a")
        spender = Spender(engine.core, engine.money, row, "on_sleep:1", "")
        found: list[Any] = []

        async def spend() -> None:
            found.append(await spender.run("bank", "x", pay, max_cost_usd=50, key="", ask=None))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(spend)
            await still(engine)
            await engine.money.journal.sweep()
            gate.set()
        assert found == [{"paid": 1}] and (await sums(store))["tick"] == (0, 30)


async def test_a_hold_of_a_tick_that_never_comes_back_ends(store: Store, clock: ManualClock) -> None:
    async def hang(key: str) -> Done:
        await trio.sleep_forever()
        return Done()

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        await ctx.effect("bank", "x", hang, max_cost_usd=50)

    Script.act = act
    async with engine_running(store, clock) as engine:
        await started(engine, retry={"attempts": 1})
        await send(engine, "a", "go")
        await still(engine)
        await engine.verb("a", "stop", OPERATOR)
        await settle(engine)
        for _ in range(3):
            clock.advance(3600)
            await settle(engine)
        assert await store.count(HoldRow) == 0


async def test_a_dead_letter_is_not_paid_again_when_it_is_replayed(store: Store, clock: ManualClock) -> None:
    """However late: its keys live as long as it can come back."""
    bank, broken = Bank(), [True]

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        await ctx.effect("bank", "x", bank.pay, max_cost_usd=50)
        if broken:
            raise ValueError("later")

    Script.act = act
    async with engine_running(store, clock) as engine:
        await started(engine, retry={"attempts": 1})
        await send(engine, "a", "go", id="m1")
        await settle(engine)
        for _ in range(5):
            clock.advance(3600)
            await settle(engine)
        broken.clear()
        await engine.mail.replay("a", "m1")
        await settle(engine)
        assert len(bank.calls) == 1 and await dead(engine, "a") == []
        for _ in range(4):
            clock.advance(3600)
            await settle(engine)
        assert await store.count(EffectRow) == 0


async def test_sums_stay_amounts(store: Store, clock: ManualClock) -> None:
    """Where no limit is set, what a row can hold is one."""
    async with engine_running(store, clock) as engine:
        await started(engine)
        charge = Charge("a", "effects", "2026-01-01")
        with pytest.raises(OSError) as caught:
            for number in range(1100):
                await engine.money.ledger.reserve("a", f"price:{number}", USD_MAX, [charge])
        assert caught.value.errno == errno.EDQUOT
        for hold in await store.scan(HoldRow, "a"):
            await engine.money.ledger.settle("a", hold.id, 0)


async def test_many_agents_share_one_token_budget(store: Store, clock: ManualClock) -> None:
    async with engine_running(store, clock) as engine:
        shared, errors = Charge("", "token:t", "total", 10_000), []

        async def spend(agent: str) -> None:
            try:
                await engine.money.ledger.reserve(agent, "price:1", 10, [shared])
                await engine.money.ledger.settle(agent, "price:1", 10)
            except OSError as exc:
                errors.append(exc)

        async with trio.open_nursery() as nursery:
            for number in range(150):
                nursery.start_soon(spend, f"a{number}")
        assert errors == [] and (await sums(store, ""))["total"] == (0, 1500)


async def test_one_key_is_called_once_though_asked_for_twice_at_once(clock: ManualClock) -> None:
    """A second that finds the entry before the first knows that it is new must not take it for one cut off."""

    class Slow(MemoryStore):
        async def commit(self, unit: Unit) -> Committed:
            done = await super().commit(unit)
            for _ in range(50):
                await trio.lowlevel.checkpoint()
            return done

    bank, found = Bank(), list[Any]()
    store = Slow(clock)
    async with engine_running(store, clock) as engine:
        await started(engine)
        spender = Spender(engine.core, engine.money, await engine.row("a"), "m1", "")

        async def spend() -> None:
            try:
                found.append(await spender.run("bank", "x", bank.pay, max_cost_usd=50, key="k", ask=None))
            except OSError as exc:
                found.append(exc.errno)

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(spend)
                for _ in range(40):
                    await trio.lowlevel.checkpoint()
        assert len(bank.calls) == 1 and sorted(map(str, found)) == [str(errno.EBUSY), "{'paid': 1}"]


async def test_tokens_that_spent_nothing_leave_no_account(store: Store, clock: ManualClock) -> None:
    async with engine_running(store, clock) as engine:
        await started(engine)
        for number in range(5):
            charge = Charge("", f"token:{number}", "total", 10)
            row, _ = await engine.money.journal.begin(Intent("a", "bank", f"k{number}", "h", 0, (charge,), "a"))
            await engine.money.journal.finish("a", row.id, "done")
        clock.advance(7200)
        await settle(engine)
        clock.advance(7200)
        await settle(engine)
        assert await sums(store, "") == {}


async def test_a_refusal_in_any_text_releases(store: Store, clock: ManualClock) -> None:
    async def refuse(key: str) -> Done:
        raise Refused("no \ud800")

    async with engine_running(store, clock) as engine:
        await started(engine)
        spender = Spender(engine.core, engine.money, await engine.row("a"), "m1", "")
        await fails(errno.EREMOTEIO, spender.run("bank", "x", refuse, max_cost_usd=50, key="k", ask=None))
        assert await sums(store) == {"2026-01-01": (0, 0), "tick": (0, 0)}
