"""Attacks on budgets, tokens, approvals and the journal: each test is a rule that was broken once."""

from __future__ import annotations

import errno
from typing import Any

import anyio
import pytest
import trio
from engines import Script, fails, settings, settle
from faces import call, load, put, whole
from test_effects import Bank
from test_tokens import issued, opened, world

from agentfs.capability import narrow
from agentfs.engine.context import AgentContext
from agentfs.engine.trigger import Trigger
from agentfs.house import House
from agentfs.limits import Limits
from agentfs.ports import R, Store
from agentfs.providers.clock import ManualClock
from agentfs.providers.store.memory import MemoryStore
from agentfs.rows import KvRow
from agentfs.service import FileService
from agentfs.types import OPERATOR, Caveat, Mode, Path, Principal

READ, WRITE = Mode.READ, Mode.WRITE
PAYMENT = {"provider": "bank", "key": "k", "request": 1, "max_cost_usd": 10}


async def table(house: House, *lines: str) -> None:
    """Replace the line of each service named in *lines* in the mount table of "a"."""
    top = house.attach(OPERATOR)
    names = {line.split()[1] for line in lines}
    kept = [old for old in (await whole(top, "agents/a/ns")).decode().splitlines() if old.split()[1] not in names]
    await put(top, "".join(f"{line}\n" for line in [*kept, *lines]).encode(), "agents/a/ns")


async def make(tree: FileService, path: str, data: bytes = b"secret") -> None:
    async with await tree.create(Path(path), WRITE) as handle:
        await handle.write(data, 0)


# -- tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [b"\n", b" ", b"half a mess", b'{"payl'])
async def test_who_may_only_write_reads_no_messages(store: Store, clock: ManualClock, part: bytes) -> None:
    """Half a document is no request, and the only thing to be read behind one is its own receipt."""
    async with world(store, clock) as (engine, house):
        await put(house.attach(OPERATOR), b"pause\n", "agents/a/ctl")
        await put(house.attach(OPERATOR), b"a secret\n", "agents/a/inbox")
        tree = opened(engine, house, (await issued(house, allow=["/agents/a/inbox:write"]))["token"])
        async with await tree.open(Path("agents/a/inbox"), READ | WRITE) as handle:
            await handle.write(part, 0)
            assert b"secret" not in await handle.read(1 << 20, 0)
            handle.discard()


async def test_who_may_only_write_reads_no_value_by_creating_it(store: Store, clock: ManualClock) -> None:
    async with world(store, clock) as (engine, house):
        await make(house.attach(OPERATOR), "agents/a/kv/x")
        tree = opened(engine, house, (await issued(house, allow=["/agents/a/kv:write"]))["token"])
        with pytest.raises(PermissionError):
            async with await tree.create(Path("agents/a/kv/x"), READ | WRITE) as handle:
                await handle.write(b"S", 0)
                assert b"ecret" not in await handle.read(100, 0)
        await make(tree, "agents/a/kv/y")


async def test_a_token_stays_narrow_in_an_agents_view(store: Store, clock: ManualClock) -> None:
    """Through /views too its budget pays, its name is the sender, and what it hands on is no more than it is."""
    async with world(store, clock) as (engine, house):
        made = await issued(house, allow=["/views/a:read+write"], budget_usd=15, ttl_s=60, depth=0)
        tree = opened(engine, house, made["token"])
        await call(tree, "views/a/effects/new", PAYMENT)
        await fails(errno.EDQUOT, call(tree, "views/a/effects/new", {**PAYMENT, "key": "l"}))
        await fails(errno.EPERM, call(tree, "views/a/tokens/new", {}))
        await call(tree, "views/a/inbox", {"payload": "hello"})
        await settle(engine)
        assert Script.ran == [(f"token:{made['id']}", "hello")]
        about = await load(house.attach(OPERATOR), f"runtime/tokens/{made['id']}")
        assert about["reserved_usd"] == 10
        await fails(errno.EACCES, tree.open(Path("views/a/ns"), WRITE))
        await fails(errno.ENOENT, tree.stat(Path("agents/a")))


async def test_a_view_shows_a_token_what_it_names(store: Store, clock: ManualClock) -> None:
    async with world(store, clock) as (engine, house):
        await engine.create("b", settings())
        tree = opened(engine, house, (await issued(house, allow=["/views/a/status:read", "/views/b:read"]))["token"])
        assert (await load(tree, "views/a/status"))["id"] == "a"
        assert (await load(tree, "views/b/status"))["id"] == "b"
        assert [st.name for st in await tree.list(Path("views/a"))] == ["status"]
        await fails(errno.ENOENT, tree.stat(Path("views/a/inbox")))


async def test_a_tick_asked_for_by_a_token_is_paid_from_its_budget(store: Store, clock: ManualClock) -> None:
    bank = Bank()

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        await ctx.effect("bank", "x", bank.pay, max_cost_usd=50)

    Script.act = act
    async with world(store, clock) as (engine, house):
        made = await issued(house, allow=["/agents/a/ctl:write"], budget_usd=60)
        tree = opened(engine, house, made["token"])
        for _ in range(3):
            await put(tree, b"tick\n", "agents/a/ctl")
            await settle(engine)
        about = await load(house.attach(OPERATOR), f"runtime/tokens/{made['id']}")
        assert (about["spent_usd"], len(bank.calls)) == (30, 1)


async def test_a_revoked_link_cuts_off_even_with_thousands_in_use(store: Store, clock: ManualClock) -> None:
    limits = Limits(agent_handles=10_000, agent_rate=10**6)
    async with world(store, clock, limits) as (engine, house):
        made = await issued(house, allow=["/agents/a/outbox:read"])
        handles = []
        for _ in range(160):
            token = made["token"]
            for _ in range(28):
                token = narrow(token, Caveat(""))[0]
            handles.append(await opened(engine, house, token).open(Path("agents/a/outbox"), READ))
        other = await issued(house, allow=["/agents/a/outbox:read"])
        child = narrow(other["token"], Caveat(""))[0]
        last = await opened(engine, house, child).open(Path("agents/a/outbox"), READ)
        await engine.tokens.revoke("", other["id"], OPERATOR)
        await fails(errno.EACCES, last.read(10, 0))
        for handle in [*handles, last]:
            await handle.aclose()


@pytest.mark.parametrize("issuer", ["operator", "a"])
async def test_deriving_tokens_wins_no_second_share(store: Store, clock: ManualClock, issuer: str) -> None:
    limits = Limits(agent_handles=4)
    async with world(store, clock, limits) as (engine, house):
        top = "agents/a/" if issuer == "operator" else ""
        token = (await issued(house))["token"] if issuer == "operator" else engine.tokens.of_agent("a")
        held = [await opened(engine, house, token).open(Path(f"{top}status"), READ) for _ in range(3)]
        child = narrow(token, Caveat(""))[0]
        held.append(await opened(engine, house, child).open(Path(f"{top}status"), READ))
        for bearer in (token, child, narrow(child, Caveat(""))[0]):
            await fails(errno.EMFILE, opened(engine, house, bearer).open(Path(f"{top}status"), READ))
        for handle in held:
            await handle.aclose()


async def test_many_bearers_leave_nothing_behind(store: Store, clock: ManualClock) -> None:
    async with world(store, clock) as (engine, house):
        token = (await issued(house, allow=["/agents/a/status:read"]))["token"]
        for _ in range(50):
            tree = opened(engine, house, narrow(token, Caveat(""))[0])
            await whole(tree, "agents/a/status")
        office: Any = house.attach(OPERATOR)
        room = office._spaces.room("a")
        assert len(room._built["status"]._scratches) < 20


async def test_removed_agents_take_no_room_from_tokens(store: Store, clock: ManualClock) -> None:
    async with world(store, clock, Limits(tokens=3)) as (engine, house):
        for number in range(5):
            await engine.create(f"x{number}", settings())
            await engine.verb(f"x{number}", "terminate", OPERATOR)
            await settle(engine)
            await engine.remove(f"x{number}")
        await issued(house)
        await engine.create("x1", settings())
        assert engine.tokens.check(engine.tokens.of_agent("x1")) is not None, "though no time has passed"


# -- approvals ---------------------------------------------------------------------------------------------------------


async def test_an_approval_is_for_one_amount(store: Store, clock: ManualClock) -> None:
    bank = Bank()

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        cost = 60 if trigger.attempt == 1 else 6_000_000
        await ctx.effect("bank", "x", bank.pay, max_cost_usd=cost, key="k")

    Script.act = act
    async with world(store, clock) as (engine, house):
        await table(house, "mount effects /effects budgeted approval_threshold_usd=50")
        top = house.attach(OPERATOR)
        await put(top, b"go\n", "agents/a/inbox")
        await settle(engine)
        (request,) = [st.name for st in await top.list(Path("agents/a/approvals")) if st.is_dir]
        await put(top, b"allow\n", f"agents/a/approvals/{request}/ctl")
        clock.advance(60)
        await settle(engine)
        assert bank.calls == []


async def test_nobody_approves_its_own_request(store: Store, clock: ManualClock) -> None:
    """Nor by a token made from its own: a bearer is no approver unless the mount names that very token."""
    async with world(store, clock) as (engine, house):
        await table(house, "mount effects /effects budgeted approval_threshold_usd=5")
        made = await issued(house, allow=["/agents/a:read+write"])
        tree = opened(engine, house, made["token"])
        await fails(errno.EPERM, call(tree, "agents/a/effects/new", PAYMENT))
        (request,) = [st.name for st in await tree.list(Path("agents/a/approvals")) if st.is_dir]
        for token in (made["token"], narrow(made["token"], Caveat(""))[0]):
            other = opened(engine, house, token)
            await fails(errno.EPERM, put(other, b"allow\n", f"agents/a/approvals/{request}/ctl"))
        await fails(errno.EPERM, call(tree, "agents/a/effects/new", PAYMENT))


async def test_a_named_token_approves_but_not_itself(store: Store, clock: ManualClock) -> None:
    async with world(store, clock) as (engine, house):
        made = await issued(house, allow=["/agents/a:read+write"])
        await table(house, f"mount effects /effects budgeted approval_threshold_usd=5 approvers=token:{made['id']}")
        tree, own = opened(engine, house, made["token"]), house.attach(Principal("agent", "a"))
        for who, top in ((own, ""), (tree, "agents/a/")):
            await fails(errno.EPERM, call(who, f"{top}effects/new", PAYMENT))
        office = house.attach(OPERATOR)
        for st in await office.list(Path("agents/a/approvals")):
            if st.is_dir:
                source = (await load(office, f"agents/a/approvals/{st.name}/status"))["source"]
                allowing = put(tree, b"allow\n", f"agents/a/approvals/{st.name}/ctl")
                await (allowing if source == "a" else fails(errno.EPERM, allowing))
        await call(own, "effects/new", PAYMENT)


async def test_a_bearers_word_counts_no_more_than_an_agents(store: Store, clock: ManualClock) -> None:
    """Where only reservations count, a token of the operator's cannot take its money back by a report either."""
    async with world(store, clock) as (engine, house):
        await table(house, "mount effects /effects budgeted trust=reserved")
        made = await issued(house, allow=["/agents/a/effects:read+write"], budget_usd=100)
        tree = opened(engine, house, made["token"])
        effect = await call(tree, "agents/a/effects/new", {**PAYMENT, "max_cost_usd": 80})
        await put(tree, b'{"error": "nothing happened"}', f"agents/a/effects/{effect['id']}/result")
        await fails(errno.EDQUOT, call(tree, "agents/a/effects/new", {**PAYMENT, "max_cost_usd": 80}))


# -- mounts ------------------------------------------------------------------------------------------------------------


async def test_handles_are_counted_before_they_are_open(clock: ManualClock) -> None:
    class Slow(MemoryStore):
        async def get(self, table: type[R], *key: str) -> R | None:
            await trio.lowlevel.checkpoint()
            return await super().get(table, *key)

    async with world(Slow(clock), clock, Limits(agent_handles=3)) as (_, house):
        own, held = house.attach(Principal("agent", "a")), []
        await make(own, "kv/x")

        async def take() -> None:
            try:
                held.append(await own.open(Path("kv/x"), READ))
            except OSError as exc:
                assert exc.errno == errno.EMFILE

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(take)
        assert len(held) == 3
        for handle in held:
            await handle.aclose()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await own.open(Path("kv/x"), READ)
        await fails(errno.ENOENT, own.open(Path("nothing"), READ))
        for handle in [await own.open(Path("kv/x"), READ) for _ in range(3)]:
            await handle.aclose()


async def test_a_file_opened_while_its_room_is_given_up_is_cut_off_too(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many other agents are walked meanwhile; a change of the table counts for it as for any open file."""
    gate: list[trio.Event] = []

    class Held(MemoryStore):
        async def get(self, table: type[R], *key: str) -> R | None:
            if table is KvRow and gate:
                await gate[0].wait()
            return await super().get(table, *key)

    monkeypatch.setattr("agentfs.spaces._ROOMS_HELD", 2)
    store = Held(clock)
    async with world(store, clock) as (engine, house):
        for name in "bcd":
            await engine.create(name, settings())
        own, held = house.attach(Principal("agent", "a")), []
        await make(own, "kv/x")

        async def take() -> None:
            held.append(await own.open(Path("kv/x"), READ))

        async with trio.open_nursery() as nursery:
            gate.append(trio.Event())
            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked(0.01)
            for name in "bcd":
                await house.attach(Principal("agent", name)).stat(Path("status"))
            gate.pop().set()
        await table(house, "mount kv /kv disabled")
        await fails(errno.EACCES, held[0].read(10, 0))
        await held[0].aclose()


async def test_what_a_removed_agent_had_open_ends_with_it(store: Store, clock: ManualClock) -> None:
    async with world(store, clock) as (engine, house):
        handle = await house.attach(Principal("agent", "a")).open(Path("inbox"), WRITE)
        await engine.verb("a", "terminate", OPERATOR)
        await settle(engine)
        await engine.remove("a")
        await engine.create("a", settings())
        await fails(errno.EACCES, handle.write(b"from the grave\n", 0))
        await handle.aclose()
        await put(house.attach(Principal("agent", "a")), b"alive\n")
        await settle(engine)
        assert Script.ran == [("a", "alive")]


async def test_a_tick_writes_nothing_past_a_price(store: Store, clock: ManualClock) -> None:
    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        ctx.kv.put("x", "for free")

    Script.act = act
    async with world(store, clock) as (engine, house):
        await table(house, "mount kv /kv budgeted price_usd=10 per_day_usd=5")
        await put(house.attach(OPERATOR), b"go\n", "agents/a/inbox")
        await settle(engine)
        assert await store.count(KvRow, "a") == 0


@pytest.mark.parametrize("depth", [500, 900])
async def test_a_small_document_makes_no_large_one(store: Store, clock: ManualClock, depth: int) -> None:
    """Indented, each value deep in a nest would be a line of its own behind a thousand spaces."""
    deep = b"[" * depth + b"1," * 50_000 + b"1" + b"]" * depth
    async with world(store, clock) as (_, house):
        top, own = house.attach(OPERATOR), house.attach(Principal("agent", "a"))
        effect = await call(own, "effects/new", PAYMENT)
        await put(own, b'{"cost_usd": 1, "receipt": ' + deep + b"}", effect["result_path"])
        await put(top, b"pause\n", "agents/a/ctl")
        await put(own, b'{"id": "m1", "payload": ' + deep + b"}", "inbox")
        for path in (effect["status_path"], effect["result_path"], "queue/m1.json"):
            async with await own.open(Path(path), READ) as handle:
                assert handle.size is not None and handle.size < 3 * len(deep), path
