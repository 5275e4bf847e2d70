"""Capability tokens in a runtime: what they open, when they end, who pays, and that one noisy bearer starves nobody."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from engines import Script, dead, fails, running, settings, settle, still
from faces import call, load, put, whole

from agentfs.capability import narrow
from agentfs.engine.context import AgentContext
from agentfs.engine.engine import Engine
from agentfs.engine.money import Done
from agentfs.engine.settings import parse_settings
from agentfs.engine.trigger import Trigger
from agentfs.house import House, build
from agentfs.limits import Limits
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.service import FileService
from agentfs.types import OPERATOR, Caveat, Mode, Path, Principal

SECRET = "the operator's own"
READ, WRITE = Mode.READ, Mode.WRITE


@asynccontextmanager
async def world(store: Store, clock: ManualClock, limits: Limits | None = None) -> AsyncIterator[tuple[Engine, House]]:
    """A house with one agent "a"."""
    async with running(store, clock, limits, secret=SECRET) as engine:
        default = parse_settings(b'{"program": {"kind": "inline", "ref": "engines:Script"}}')
        house, _ = build(engine, default, lambda config: None, {})
        await engine.create("a", settings())
        yield engine, house


def opened(engine: Engine, house: House, token: str) -> FileService:
    """What *token* opens."""
    principal = engine.tokens.check(token)
    assert principal is not None, "refused"
    return house.attach(principal)


async def issued(house: House, top: str = "runtime/tokens", **wish: Any) -> dict[str, Any]:
    made: dict[str, Any] = await call(house.attach(OPERATOR), f"{top}/new", wish)
    return made


async def test_a_token_opens_what_it_names_and_nothing_else(store: Store, clock: ManualClock) -> None:
    async with world(store, clock) as (engine, house):
        made = await issued(house, allow=["/agents/a/inbox:write", "/agents/a/kv:read"], ttl_s=60)
        tree = opened(engine, house, made["token"])
        assert [st.name for st in await tree.list(Path(""))] == ["agents"]
        assert [st.name for st in await tree.list(Path("agents/a"))] == ["inbox", "kv"]
        receipt = await call(tree, "agents/a/inbox", {"payload": "hello"})
        assert receipt["to"] == "a"
        await settle(engine)
        assert Script.ran == [(f"token:{made['id']}", "hello")]
        await fails(errno.EACCES, tree.open(Path("agents/a/inbox"), READ))
        async with await tree.open(Path("agents/a/inbox"), READ | WRITE) as handle:
            await fails(errno.EACCES, handle.read(100, 0))
        for path in ("agents/a/config", "agents/a/outbox", "runtime/status", "views/a/inbox", "agents/b"):
            await fails(errno.ENOENT, tree.stat(Path(path)))
        await fails(errno.EACCES, tree.create(Path("agents/a/kv/x"), WRITE))
        await fails(errno.EACCES, tree.remove(Path("agents/a/kv/x")))
        await fails(errno.EPERM, call(tree, "agents/a/inbox", {"payload": 1, "source": "operator"}))
        assert (await tree.stat(Path("agents/a/inbox"))).mode & 0o777 == 0o666
        assert (await tree.stat(Path("agents/a/kv"))).mode & 0o777 == 0o555
        trace = await whole(house.attach(OPERATOR), "agents/a/logs/trace")
        assert f'"by":"token:{made["id"]}"'.encode() in trace


async def test_it_ends_by_time_and_by_revocation_with_all_made_from_it(store: Store, clock: ManualClock) -> None:
    """Open files end with it: the reader that blocks wakes, the writer is refused."""
    async with world(store, clock) as (engine, house):
        allow = ["/agents/a/outbox:read", "/agents/a/inbox:write"]
        for end in ("time", "revoked"):
            made = await issued(house, allow=allow, ttl_s=60 if end == "time" else None)
            child, _ = narrow(made["token"], Caveat("", expires_ns=clock.now_ns() + 10**15))
            tree = opened(engine, house, child)
            following = await tree.open(Path("agents/a/outbox@follow"), READ)
            writing = await tree.open(Path("agents/a/inbox"), WRITE)
            codes: list[int | None] = []

            async def read(handle: Any = following, codes: list[int | None] = codes) -> None:
                try:
                    await handle.read(100, 0)
                except OSError as exc:
                    codes.append(exc.errno)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await still(engine)
                if end == "time":
                    clock.advance(61)
                else:
                    await put(house.attach(OPERATOR), f"revoke {made['id']}\n".encode(), "runtime/tokens/ctl")
            assert codes == [errno.EACCES]
            await fails(errno.EACCES, writing.write(b"x\n", 0))
            await fails(errno.EACCES, tree.open(Path("agents/a/inbox"), WRITE))
            assert engine.tokens.check(child) is None and engine.tokens.check(made["token"]) is None
        about = await load(house.attach(OPERATOR), f"runtime/tokens/{made['id']}")
        assert about["revoked_at"] and "token" not in about
    async with running(store, clock, secret=SECRET) as again:
        assert again.tokens.check(child) is None, "a restart forgets no revocation"


async def test_a_bearer_hands_on_less(store: Store, clock: ManualClock) -> None:
    async with world(store, clock) as (engine, house):
        made = await issued(
            house, allow=["/agents/a:read+write", "/runtime/tokens:write+read"], budget_usd=100, depth=1
        )
        tree = opened(engine, house, made["token"])
        child = await call(tree, "runtime/tokens/new", {"allow": ["/agents:read+write+manage"], "budget_usd": 10**9})
        principal = engine.tokens.check(child["token"])
        assert principal is not None and [limit for _, limit in principal.purses] == [100, 10**9]
        assert principal.caveats[0].id == made["id"]
        other = house.attach(principal)
        await fails(errno.EACCES, other.remove(Path("agents/a/kv/x")))
        await fails(errno.ENOENT, other.stat(Path("runtime/tokens")))
        with pytest.raises(PermissionError):
            narrow(child["token"], Caveat(""))
        await put(house.attach(OPERATOR), f"revoke {made['id']}\n".encode(), "runtime/tokens/ctl")
        assert engine.tokens.check(child["token"]) is None


async def test_an_agents_own_token_dies_with_the_agent(store: Store, clock: ManualClock) -> None:
    async with world(store, clock) as (engine, house):
        own = engine.tokens.of_agent("a")
        view = house.attach(Principal("agent", "a"))
        made = await call(view, "tokens/new", {"allow": ["/status:read"]})
        tree = opened(engine, house, made["token"])
        assert (await load(tree, "status"))["id"] == "a"
        await fails(errno.ENOENT, tree.stat(Path("inbox")))
        await fails(errno.EPERM, call(house.attach(OPERATOR), "agents/a/tokens/new", {}))
        assert [st.name for st in await view.list(Path("tokens"))] == sorted([made["id"], "ctl", "new"])
        await engine.verb("a", "terminate", OPERATOR)
        await settle(engine)
        await engine.remove("a")
        clock.advance(1)
        await engine.create("a", settings())
        assert engine.tokens.check(own) is None and engine.tokens.check(made["token"]) is None
        assert engine.tokens.check(engine.tokens.of_agent("a")) == Principal("agent", "a")


async def test_a_bearers_messages_spend_from_its_budget(store: Store, clock: ManualClock) -> None:
    """Whatever the agent itself may spend: what a stranger's messages cost ends at the stranger's limit."""

    async def pay(key: str) -> Done:
        return Done("paid", 30)

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        await ctx.effect("bank", "x", pay, max_cost_usd=40)

    Script.act = act
    async with world(store, clock) as (engine, house):
        await put(house.attach(OPERATOR), b'{"program": {"kind": "inline", "ref": "engines:Script"}, '
                  b'"retry": {"attempts": 1}, "autonomy": "autonomous"}', "agents/a/config")  # fmt: skip
        made = await issued(house, allow=["/agents/a/inbox:write"], budget_usd=100)
        tree = opened(engine, house, made["token"])
        for number in range(4):
            await call(tree, "agents/a/inbox", {"payload": number, "id": f"m{number}"})
            await settle(engine)
        assert [(letter.id, letter.reason[:6]) for letter in await dead(engine, "a")] == [("m3", "EDQUOT")]
        about = await load(house.attach(OPERATOR), f"runtime/tokens/{made['id']}")
        assert (about["spent_usd"], about["reserved_usd"]) == (90, 0)
        await call(house.attach(OPERATOR), "agents/a/inbox", {"payload": "mine"})
        await settle(engine)
        usage = (await load(house.attach(OPERATOR), "agents/a/status"))["budget"]["effects"]["day"]
        assert usage["spent_usd"] == 120
        await put(house.attach(OPERATOR), b"replay m3\n", "agents/a/deadletter/ctl")
        await settle(engine)
        assert [letter.id for letter in await dead(engine, "a")] == ["m3"], "a replay is paid from the same purse"


async def test_what_a_bearer_causes_is_paid_from_its_purse(store: Store, clock: ManualClock) -> None:
    """Also by a verb, by an alarm that it writes, and by a message that the agent sends on because of it."""

    async def pay(key: str) -> Done:
        return Done("paid", 10)

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        if ctx.agent == "a":
            ctx.send("b", "go on")
        else:
            await ctx.effect("bank", "x", pay, max_cost_usd=10)

    Script.act = act
    async with world(store, clock) as (engine, house):
        await engine.create("b", settings())
        tree = house.attach(OPERATOR)
        for path, doc in (("ctl", b"tick\n"), ("schedule/x", b'{"in_ms": 1}'), ("inbox", b"hello\n")):
            made = await issued(house, allow=["/agents/a:read+write"], budget_usd=15)
            bearer = opened(engine, house, made["token"])
            if path == "schedule/x":
                async with await bearer.create(Path(f"agents/a/{path}"), WRITE) as handle:
                    await handle.write(doc, 0)
            else:
                await put(bearer, doc, f"agents/a/{path}")
            await settle(engine)
            clock.advance(1)
            await settle(engine)
            assert (await load(tree, f"runtime/tokens/{made['id']}"))["spent_usd"] == 10, path


async def test_a_view_is_no_way_around_a_tokens_budget(store: Store, clock: ManualClock) -> None:
    async with world(store, clock) as (engine, house):
        made = await issued(house, allow=["/views/a/effects:read+write", "/views/a/inbox:write"], budget_usd=15)
        bearer = opened(engine, house, made["token"])
        payment = {"provider": "bank", "key": "k", "request": 1, "max_cost_usd": 10}
        assert (await call(bearer, "views/a/effects/new", payment))["source"] == f"token:{made['id']}"
        await fails(errno.EDQUOT, call(bearer, "views/a/effects/new", {**payment, "key": "k2"}))
        await fails(errno.EPERM, call(bearer, "views/a/inbox", {"payload": 1, "source": "a"}))
        for path in ("views/a/kv", "views/b", "agents"):
            await fails(errno.ENOENT, bearer.stat(Path(path)))


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"ttl_s": 0}, "ttl_s"), ({"ttl_s": -1}, "ttl_s"), ({"ttl_s": 10**12}, "ttl_s"), ({"depth": 17}, "depth"),
        ({"budget_usd": -1}, "budget_usd"), ({"allow": ["/a:fly"]}, "allow"), ({"allow": "x"}, "allow"),
        ({"allowed": []}, "allowed"),
    ],
)  # fmt: skip
async def test_a_wish_in_bad_form_names_the_field(store: Store, clock: ManualClock, wish: Any, field: str) -> None:
    async with world(store, clock) as (_, house):
        exc = await fails(errno.EINVAL, issued(house, **wish))
        assert field in str(exc)


async def test_one_noisy_agent_starves_nobody(store: Store, clock: ManualClock) -> None:
    """Its handles, its operations and its bytes a second are bounded, and only its own; time gives them back."""
    limits = Limits(agent_handles=5, agent_rate=50, agent_write_bytes=1000)
    async with world(store, clock, limits) as (engine, house):
        await engine.create("b", settings())
        noisy, quiet = house.attach(Principal("agent", "a")), house.attach(Principal("agent", "b"))
        held = [await noisy.open(Path("status"), READ) for _ in range(5)]
        await fails(errno.EMFILE, noisy.open(Path("status"), READ))
        await fails(errno.EMFILE, house.attach(OPERATOR).open(Path("views/a/status"), READ))
        for handle in held:
            await handle.aclose()
            await handle.aclose()
        with pytest.raises(BlockingIOError):
            for _ in range(100):
                await (await noisy.open(Path("status"), READ)).aclose()
        await put(quiet, b"fine\n")
        await fails(errno.ENOBUFS, noisy.remove(Path("kv/x")))
        clock.advance(1)
        async with await noisy.create(Path("kv/x"), WRITE) as handle:
            await handle.write(b"x" * 900, 0)
            await fails(errno.ENOBUFS, handle.write(b"x" * 900, 900))
            clock.advance(1)
            await handle.write(b"x" * 900, 900)
        async with await house.attach(OPERATOR).open(Path("agents/a/status"), READ) as handle:
            assert await handle.read(10, 0)
        trace = await whole(house.attach(OPERATOR), "agents/a/logs/trace")
        assert {"EMFILE", "ENOBUFS"} <= {msgspec.json.decode(line).get("errno") for line in trace.splitlines()}


async def test_deriving_tokens_gives_no_larger_share(store: Store, clock: ManualClock) -> None:
    limits = Limits(agent_handles=3)
    async with world(store, clock, limits) as (engine, house):
        made = await issued(house, allow=["/agents/a/status:read"])
        held = []
        for _ in range(3):
            child, _ = narrow(made["token"], Caveat(""))
            held.append(await opened(engine, house, child).open(Path("agents/a/status"), READ))
        child, _ = narrow(made["token"], Caveat(""))
        await fails(errno.EMFILE, opened(engine, house, child).open(Path("agents/a/status"), READ))
        other = await issued(house, allow=["/agents/a/status:read"])
        held.append(await opened(engine, house, other["token"]).open(Path("agents/a/status"), READ))
        own, _ = narrow(engine.tokens.of_agent("a"), Caveat(""))
        held += [await opened(engine, house, own).open(Path("status"), READ) for _ in range(3)]
        await fails(errno.EMFILE, house.attach(Principal("agent", "a")).open(Path("status"), READ))
        for handle in held:
            await handle.aclose()


async def test_a_rate_on_a_mount(store: Store, clock: ManualClock) -> None:
    async with world(store, clock) as (_, house):
        table = await whole(house.attach(OPERATOR), "agents/a/ns")
        await put(house.attach(OPERATOR), table.replace(b"mount kv /kv\n", b"mount kv /kv rate=3\n"), "agents/a/ns")
        own = house.attach(Principal("agent", "a"))
        async with await own.create(Path("kv/x"), WRITE) as handle:  # one to create, two writes
            await handle.write(b"1", 0)
            await handle.write(b"2", 1)
            await fails(errno.ENOBUFS, handle.write(b"3", 2))
        await fails(errno.EAGAIN, own.open(Path("kv/x"), READ))
        clock.advance(1)
        assert await whole(own, "kv/x") == b"12"
        assert (await load(own, "status"))["id"] == "a", "no other mount is slower"
