"""What programs do outside: journalled before it is called, replayed in a retry, paid for once, settled in the end."""

from __future__ import annotations

import errno
from typing import Any

import msgspec
import trio
from engines import Script, dead, fails, lines, running, send, settle, started, still

from agentfs.budget import Policy
from agentfs.engine.audit import audit
from agentfs.engine.context import AgentContext
from agentfs.engine.engine import Engine
from agentfs.engine.journal import Intent, hash_of
from agentfs.engine.money import Done, Refused
from agentfs.engine.trigger import Trigger
from agentfs.grants import Grant
from agentfs.limits import Limits
from agentfs.ports import Change, Charge, Delete, Put, Store, Unit
from agentfs.providers.clock import ManualClock
from agentfs.providers.store.memory import MemoryStore
from agentfs.rows import AccountRow, AgentRow, EffectRow, HoldRow
from agentfs.types import OPERATOR

HOUR_S = 3600


class Bank:
    """What is outside: it counts what really happened, by key."""

    def __init__(self, cost: int | None = 30) -> None:
        self.calls: list[str] = []
        self.cost = cost

    async def pay(self, key: str) -> Done:
        self.calls.append(key)
        return Done({"paid": len(self.calls)}, self.cost)

    async def ask(self, key: str) -> Done | None:
        return Done({"paid": self.calls.index(key) + 1}, self.cost) if key in self.calls else None


def capped(engine: Engine, **policy: Any) -> None:
    """Every agent has this budget for its effects."""
    grant = Grant("budgeted", Policy(**policy))

    async def nobody(agent: str) -> None: ...

    engine.adopt(lambda row, service: grant, nobody)


async def sums(store: Store, agent: str = "a") -> dict[str, tuple[int, int]]:
    """Reserved and spent by kind of period."""
    rows = await store.scan(AccountRow, agent)
    return {row.period.partition(":")[0]: (row.reserved_usd, row.spent_usd) for row in rows}


async def test_a_retried_tick_pays_nothing_twice(store: Store, clock: ManualClock) -> None:
    """Each completed step is replayed with its receipt, and the loop goes on behind the last one."""
    bank, seen = Bank(), []

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        for step in range(3):
            seen.append(await ctx.effect("bank", {"step": step}, bank.pay, max_cost_usd=50))
            if len(seen) in (1, 3):
                raise ValueError("again")

    Script.act = act
    async with running(store, clock) as engine:
        capped(engine, per_tick_usd=150, per_day_usd=1000)
        await started(engine, retry={"base_ms": 0})
        await send(engine, "a", "go", id="m1")
        await settle(engine)
        assert bank.calls == ["a:bank:m1/1", "a:bank:m1/2", "a:bank:m1/3"]
        assert [r["paid"] for r in seen] == [1, 1, 2, 1, 2, 3]
        assert await sums(store) == {"2026-01-01": (0, 90), "tick": (0, 90)}
        assert await store.count(HoldRow) == 0


async def test_the_budget_of_a_tick_counts_all_its_attempts(store: Store, clock: ManualClock) -> None:
    bank = Bank(50)

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        await ctx.effect("bank", "fixed", bank.pay, max_cost_usd=50)
        await ctx.effect("bank", trigger.attempt, bank.pay, max_cost_usd=50, key=f"attempt-{trigger.attempt}")
        raise ValueError("again")

    Script.act = act
    async with running(store, clock) as engine:
        capped(engine, per_tick_usd=120)
        await started(engine, retry={"base_ms": 0, "attempts": 3})
        await send(engine, "a", "go", id="m1")
        await settle(engine)
        assert len(bank.calls) == 2
        (letter,) = await dead(engine, "a")
        assert letter.reason.startswith("EDQUOT: budget exhausted: effects tick:m1: 50 asked, 20 left of 120")


async def test_refused_is_released_and_may_come_again(store: Store, clock: ManualClock) -> None:
    bank, refusals = Bank(), [Refused("no funds"), ConnectionRefusedError()]

    async def pay(key: str) -> Done:
        if refusals:
            raise refusals.pop()
        return await bank.pay(key)

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        ctx.reply(await ctx.effect("bank", "x", pay, max_cost_usd=50))

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine, retry={"base_ms": 0})
        await send(engine, "a", "go", id="m1")
        await settle(engine)
        assert (await lines(engine, "a", "outbox"))[0]["payload"] == {"paid": 1}
        assert (await sums(store))["tick"] == (0, 30)


async def test_an_outcome_nobody_can_tell_is_spent_and_never_called_again(store: Store, clock: ManualClock) -> None:
    bank = Bank()

    async def pay(key: str) -> Done:
        await bank.pay(key)
        raise ValueError("the line broke")

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        await ctx.effect("bank", "x", pay, max_cost_usd=50)

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine, retry={"base_ms": 0, "attempts": 4})
        await send(engine, "a", "go", id="m1")
        await settle(engine)
        assert len(bank.calls) == 1
        (row,) = await store.scan(EffectRow, "a")
        assert (row.state, row.error, row.spent_usd) == ("unknown", "failed: unknown_outcome", 50)
        assert (await sums(store))["tick"] == (0, 50)
        (letter,) = await dead(engine, "a")
        assert "unknown_outcome" in letter.reason


async def test_the_provider_is_asked_where_it_can_be(store: Store, clock: ManualClock) -> None:
    """Cut off behind the call or before it: what happened is found out, and what did not happen is done."""
    bank, breaks = Bank(), ["behind", "before"]

    async def pay(key: str) -> Done:
        where = breaks.pop() if breaks else ""
        if where == "before":
            raise ValueError("never arrived")
        done = await bank.pay(key)
        if where:
            raise ValueError("no answer")
        return done

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        ctx.reply(await ctx.effect("bank", "x", pay, max_cost_usd=50, ask=bank.ask))

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine, retry={"base_ms": 0})
        await send(engine, "a", "go", id="m1")
        await settle(engine)
        assert bank.calls == ["a:bank:m1/1"] and not breaks
        assert [r["payload"] for r in await lines(engine, "a", "outbox")] == [{"paid": 1}]
        assert (await sums(store))["tick"] == (0, 30)


async def test_what_is_not_reported_or_over_the_reservation(store: Store, clock: ManualClock) -> None:
    bank = Bank(None)

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        bank.cost = None
        await ctx.effect("bank", "unreported", bank.pay, max_cost_usd=50)
        bank.cost = 80
        await ctx.effect("bank", "more", bank.pay, max_cost_usd=50)

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine)
        await send(engine, "a", "go")
        await settle(engine)
        rows = {row.key.rpartition("/")[2]: row for row in await store.scan(EffectRow, "a")}
        assert (rows["1"].spent_usd, rows["1"].overrun_usd) == (50, 0)
        assert (rows["2"].spent_usd, rows["2"].overrun_usd) == (50, 30)
        outcomes = [r for r in await lines(engine, "a", "trajectory") if r.get("event") == "outcome"]
        assert [r["is_reported"] for r in outcomes] == [False, True]


async def test_a_tick_cut_off_in_a_call_leaves_no_hold(store: Store, clock: ManualClock) -> None:
    """Stopped in the middle of it: the retry learns that nobody can tell, and nothing stays reserved."""

    async def hang(key: str) -> Done:
        await trio.sleep_forever()
        return Done()

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        await ctx.effect("bank", "x", hang, max_cost_usd=50)

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine, retry={"base_ms": 0, "attempts": 2})
        await send(engine, "a", "go")
        await still(engine)
        assert await store.count(HoldRow) == 1
        await engine.verb("a", "stop", OPERATOR)
        await settle(engine)
        assert await store.count(HoldRow) == 0 and (await sums(store))["tick"] == (0, 50)


def intent(key: str, clock: ManualClock, cost: int = 10, **more: Any) -> Intent:
    charge = Charge("a", "effects", "2026-01-01", 100)
    return Intent("a", "bank", key, "h", cost, (charge,), "a", **more)


async def test_time_ends_what_is_over(store: Store, clock: ManualClock) -> None:
    """An unreported outcome at its deadline, a key behind its TTL, a tick's account with its envelope."""
    async with running(store, clock) as engine:
        await started(engine)
        journal = engine.money.journal
        late, _ = await journal.begin(intent("late", clock, deadline_ns=clock.now_ns() + 10_000_000_000))
        done, _ = await journal.begin(intent("done", clock))
        await journal.finish("a", done.id, "done", receipt=1, cost_usd=3)
        clock.advance(11)
        await settle(engine)
        assert (await sums(store))["2026-01-01"] == (0, 13)
        found = await journal.get("a", late.id)
        assert found is not None and found.state == "unknown"
        for _ in range(3):
            clock.advance(HOUR_S)
            await settle(engine)
        assert await store.count(EffectRow) == 0
        assert (await journal.begin(intent("done", clock)))[1]


async def test_a_key_lives_as_long_as_its_envelope(store: Store, clock: ManualClock) -> None:
    bank = Bank()

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        await ctx.effect("bank", "x", bank.pay, max_cost_usd=50)
        if trigger.attempt < 3:
            raise ValueError("later")

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine, retry={"base_ms": 5 * HOUR_S * 1000, "max_ms": 5 * HOUR_S * 1000, "attempts": 9})
        await send(engine, "a", "go")
        await settle(engine)
        for _ in range(11):
            clock.advance(HOUR_S)
            await settle(engine)
        assert len(bank.calls) == 1 and await dead(engine, "a") == []
        assert (await store.get(AgentRow, "a")) is not None
        for _ in range(3):
            clock.advance(HOUR_S)
            await settle(engine)
        assert await store.count(EffectRow) == 0
        assert [row.period for row in await store.scan(AccountRow, "a")] == ["2026-01-01"]


async def test_what_is_refused_before_anything_is_held(store: Store, clock: ManualClock) -> None:
    async with running(store, clock, Limits(effects_held=2)) as engine:
        await started(engine)
        journal = engine.money.journal
        for bad in (intent("", clock), intent("x" * 301, clock), intent("a\nb", clock), intent("k", clock, -1)):
            await fails(errno.EINVAL, journal.begin(bad))
        await fails(errno.EINVAL, journal.begin(intent("k", clock, 1 << 60)))
        await journal.begin(intent("1", clock))
        await journal.begin(intent("2", clock))
        await fails(errno.ENOSPC, journal.begin(intent("3", clock)))
        await fails(errno.EDQUOT, journal.begin(intent("4", clock, 90)))
        assert await sums(store) == {"2026-01-01": (20, 0)}
        await fails(errno.ENOENT, journal.finish("a", "nothing", "done"))
        await engine.verb("a", "terminate", OPERATOR)
        await settle(engine)
        await fails(errno.EPERM, journal.begin(intent("5", clock)))


async def test_a_removed_agent_holds_nothing_of_a_tokens_budget(store: Store, clock: ManualClock) -> None:
    async with running(store, clock) as engine:
        await started(engine)
        charge = Charge("", "token:t", "total", 100)
        await engine.money.journal.begin(Intent("a", "bank", "k", "h", 40, (charge,), "a"))
        await engine.verb("a", "terminate", OPERATOR)
        await settle(engine)
        await engine.remove("a")
        assert await sums(store, "") == {"total": (0, 40)} and await store.count(HoldRow) == 0


async def test_effects_of_a_tick_obey_the_mount_table(store: Store, clock: ManualClock) -> None:
    """kv and schedule mounted read-only, effects not budgeted: a program's calls are refused as its files are."""

    async def nobody(agent: str) -> None: ...

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        match trigger.payload:
            case "kv":
                ctx.kv.put("x", "y")
            case "alarm":
                ctx.alarm("x", in_ms=5)
            case _:
                await ctx.effect("bank", "x", Bank().pay)

    Script.act = act
    async with running(store, clock) as engine:
        engine.adopt(lambda row, service: Grant("read_only"), nobody)
        await started(engine, retry={"attempts": 1})
        for payload in ("kv", "alarm", "pay"):
            await send(engine, "a", payload, id=payload)
        await settle(engine)
        assert {letter.id: letter.reason[:6] for letter in await dead(engine, "a")} == dict.fromkeys(
            ("kv", "alarm", "pay"), "EACCES"
        )


def test_a_hash_does_not_depend_on_the_order_of_fields() -> None:
    first = msgspec.json.decode(b'{"a": 1, "b": [1, {"c": 2, "d": 3}]}')
    second = msgspec.json.decode(b'{"b": [1, {"d": 3, "c": 2}], "a": 1}')
    assert hash_of(first) == hash_of(second) != hash_of({"a": 1})


async def test_an_audit_finds_what_does_not_add_up(clock: ManualClock) -> None:
    store = MemoryStore(clock)
    async with running(store, clock) as engine:
        await started(engine)
        row, _ = await engine.money.journal.begin(intent("k", clock))
        assert list(await audit(store)) == []
        (account,) = await store.scan(AccountRow, "a")
        (hold,) = await store.scan(HoldRow, "a")
        wrong: list[tuple[Change, str]] = [
            (Put(msgspec.structs.replace(account, reserved_usd=11)), "11 reserved, but 10 held"),
            (Delete(AccountRow, ("a", "effects", account.period)), "10 held, but there is no account"),
            (Put(account), ""),
            (Put(msgspec.structs.replace(row, state="done")), "over, but its reservation stands"),
            (Put(row), ""),
            (Delete(HoldRow, ("a", hold.id)), "open without a reservation"),
        ]
        for change, fault in wrong:
            await store.commit(Unit((change,)))
            assert any(fault in line for line in await audit(store)) if fault else not await audit(store)
