"""Mount tables: what each autonomy stands for, what counts at once, and what an approval means for a tick."""

from __future__ import annotations

import errno
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
from engines import Script, dead, fails, lines, running, send, settings, settle
from faces import call, load, put, whole

from agentfs.engine.context import AgentContext
from agentfs.engine.money import Done
from agentfs.engine.settings import parse_settings
from agentfs.engine.trigger import Trigger
from agentfs.grants import LEVELS, PRESETS, parse
from agentfs.house import build
from agentfs.namespace import Namespace
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.rows import AgentRow
from agentfs.services import discover
from agentfs.spaces import Mounts
from agentfs.types import OPERATOR, Mode, Path, Principal

DEFAULT = parse_settings(b'{"program": {"kind": "inline", "ref": "engines:Script"}}')


def row(autonomy: str) -> AgentRow:
    config = msgspec.json.encode({"program": {"kind": "exec", "argv": ["true"]}, "autonomy": autonomy}).decode()
    return AgentRow(id="a", created_at_ns=1, config=config, config_at_ns=1)


@pytest.mark.parametrize("autonomy", PRESETS)
def test_an_autonomy_expands_to_a_table_that_can_be_mounted(autonomy: str) -> None:
    mounts = Mounts(discover())
    script = mounts.script_of(row(autonomy))
    mounts.check(script)
    assert [line.split()[1] for line in script.splitlines()] == [service.name for service in discover()]
    for service in discover():
        grant = mounts.grant(row(autonomy), service.name)
        assert grant is not None and (grant.policy is not None) == service.needs_budget


def test_more_autonomy_is_never_granted_less() -> None:
    mounts = Mounts(discover())
    policies = []
    for autonomy in ("supervised", "semi_autonomous", "autonomous"):
        grant = mounts.grant(row(autonomy), "effects")
        assert grant is not None and grant.policy is not None
        policies.append(grant.policy)
        alarms = mounts.grant(row(autonomy), "schedule")
        assert alarms is not None and alarms.is_writable is (autonomy != "supervised")
    assert [p.is_trusting for p in policies] == [False, True, True]
    days, thresholds = [p.per_day_usd or 0 for p in policies], [p.approval_threshold_usd for p in policies]
    assert days == sorted(days) and thresholds == [0, 500_000, None]


def test_the_words_behind_a_mount() -> None:
    assert {level: parse([level]).is_writable for level in LEVELS} == {
        "read_only": False, "read_write": True, "sign_only": False, "budgeted": True, "disabled": False,
    }  # fmt: skip
    grant = parse(["budgeted", "per_day_usd=5", "approvers=operator,token:x", "trust=reserved", "rate=7"])
    assert grant.policy is not None and grant.policy.approvers == ("operator", "token:x") and grant.rate == 7
    assert parse(["rate=7"]) == parse(["read_write", "rate=7"])
    for bad in (["rate=x"], ["trust=me"], ["budgeted", "trust=me"], ["budgeted", "price_usd=9007199254740993"]):
        with pytest.raises(OSError) as caught:
            parse(bad)
        assert caught.value.errno == errno.EINVAL


async def test_a_supervised_agent_pays_what_was_approved(store: Store, clock: ManualClock) -> None:
    """Its tick fails with EPERM and waits among the dead letters; allowed and replayed, it goes through once."""
    paid: list[str] = []

    async def pay(key: str) -> Done:
        paid.append(key)
        return Done("paid", 5)

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        if trigger.payload == "alarm":
            ctx.alarm("x", in_ms=5)
        ctx.reply(await ctx.effect("bank", trigger.payload, pay, max_cost_usd=10))

    Script.act = act
    async with running(store, clock) as engine:
        house, _ = build(engine, DEFAULT, lambda config: None, {})
        tree = house.attach(OPERATOR)
        await engine.create("a", settings(autonomy="supervised", retry={"attempts": 1}))
        await send(engine, "a", "alarm", id="m0")
        await send(engine, "a", "buy", id="m1")
        await settle(engine)
        reasons = {letter.id: letter.reason for letter in await dead(engine, "a")}
        assert reasons["m0"].startswith("EACCES") and reasons["m1"].startswith("EPERM") and not paid
        (request,) = [st.name for st in await tree.list(Path("agents/a/approvals")) if st.is_dir]
        assert request in reasons["m1"]
        about = await load(tree, f"agents/a/approvals/{request}/request")
        assert about == {"provider": "bank", "key": "m1/1", "request": "buy", "max_cost_usd": 10}
        await put(tree, b"allow\n", f"agents/a/approvals/{request}/ctl")
        await put(tree, b"replay m1\n", "agents/a/deadletter/ctl")
        await settle(engine)
        assert paid == ["a:bank:m1/1"] and [r["payload"] for r in await lines(engine, "a", "outbox")] == ["paid"]


async def test_whose_word_counts_for_a_cost(store: Store, clock: ManualClock) -> None:
    """Of an agent that is not trusted with it, only what it reserved; the operator's report counts."""
    async with running(store, clock) as engine:
        house, _ = build(engine, DEFAULT, lambda config: None, {})
        await engine.create("a", settings(autonomy="supervised"))
        tree, own = house.attach(OPERATOR), house.attach(Principal("agent", "a"))
        spent = []
        for by, key in ((own, "k1"), (tree, "k2")):
            request = {"provider": "b", "key": key, "request": 1, "max_cost_usd": 50}
            made = await call(tree, "agents/a/effects/new", request)
            path = "effects/" if by is own else "agents/a/effects/"
            await put(by, b'{"receipt": 1, "cost_usd": 0}', f"{path}{made['id']}/result")
            spent.append((await load(tree, f"agents/a/effects/{made['id']}/status"))["spent_usd"])
        assert spent == [50, 0]


async def test_who_gives_up_while_rights_are_taken_back_leaves_none_behind(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks first after a change mounts anew; a signal may end its look-up half-way."""
    async with running(store, clock) as engine:
        house, spaces = build(engine, DEFAULT, lambda config: None, {})
        await engine.create("a", settings())
        own, replay, listing = house.attach(Principal("agent", "a")), Namespace.replay, Namespace.list
        handle = await own.create(Path("schedule/x"), Mode.WRITE)
        other = await own.create(Path("kv/x"), Mode.WRITE)

        def replayed(*args: Any, **options: Any) -> None:
            replay(*args, **options)
            scope.cancel()

        async def listed(*args: Any) -> Any:
            await anyio.lowlevel.checkpoint()  # as a store does that is asked for something
            return await listing(*args)

        async def unseen(agent: str) -> None:
            """Not yet."""

        monkeypatch.setattr(engine, "_remounted", unseen)
        await engine.remount("a", "mount kv /kv read_only\nmount schedule /schedule read_only\nmount config /\n", None)
        with anyio.CancelScope() as scope, monkeypatch.context() as patched:
            patched.setattr(Namespace, "replay", replayed)
            patched.setattr(Namespace, "list", listed)
            await own.stat(Path("kv"))
        await fails(errno.ENOENT, own.stat(Path("status")))
        assert spaces.room("a").names == {"kv", "schedule", "config"}, "what a token of the agent may lead to"
        await fails(errno.EACCES, handle.write(b'{"in_ms": 5}', 0))
        await fails(errno.EACCES, other.write(b"x", 0))
        for each in (handle, other):
            await each.aclose()


async def test_a_change_of_autonomy_counts_at_once(store: Store, clock: ManualClock) -> None:
    async with running(store, clock) as engine:
        house, _ = build(engine, DEFAULT, lambda config: None, {})
        await engine.create("a", settings())
        tree, own = house.attach(OPERATOR), house.attach(Principal("agent", "a"))
        handle = await own.create(Path("schedule/x"), Mode.WRITE)
        await engine.configure("a", settings(autonomy="supervised"), None)
        await fails(errno.EACCES, handle.write(b'{"in_ms": 5}', 0))
        await handle.aclose()
        assert b"mount schedule /schedule read_only" in await whole(own, "ns")
        await put(tree, b"mount kv /mine\nmount ns /\nbind /mine /also\n", "agents/a/ns")
        assert [st.name for st in await own.list(Path(""))] == ["also", "mine", "ns"]
        await fails(errno.ENOENT, own.stat(Path("kv")))
        assert b"remounted" in await whole(tree, "agents/a/logs/trajectory")


async def test_a_program_reaches_no_more_than_its_files_do(store: Store, clock: ManualClock) -> None:
    """Only a subtree of kv is bound, or none of it: what a program calls is refused as well."""

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        match trigger.payload:
            case "get":
                await ctx.kv.get("other")
            case "keys":
                await ctx.kv.keys()
            case _:
                ctx.kv.put("other", "x")

    Script.act = act
    async with running(store, clock) as engine:
        house, _ = build(engine, DEFAULT, lambda config: None, {})
        tree = house.attach(OPERATOR)
        await engine.create("a", settings(retry={"attempts": 1}))
        for table in ("bind '#kv/x' /kx\nmount ns /\n", "mount kv /kv disabled\nmount ns /\n", "mount ns /\n"):
            await put(tree, table.encode(), "agents/a/ns")
            for verb in ("get", "keys", "put"):
                await send(engine, "a", verb, id=f"{verb}-{len(table)}")
        await settle(engine)
        letters = await dead(engine, "a")
        assert len(letters) == 9 and {letter.reason[:6] for letter in letters} == {"EACCES"}
        await put(tree, b"bind '#kv/x' /kx\nmount kv /kv\n", "agents/a/ns")
        await send(engine, "a", "keys", id="whole")
        await settle(engine)
        assert len(await dead(engine, "a")) == 9
