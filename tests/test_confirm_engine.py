"""A mount with ``confirm`` in one process: time, limits, restarts, tokens, and what one open file may ask for."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from confirmkit import BOTH, Desk, ask, desk, mount
from engines import fails, running, still
from faces import put, whole
from test_tokens import issued, opened, world

from agentfs.engine.approvals import Request
from agentfs.engine.confirm import Confirmer, Wait
from agentfs.engine.engine import Engine
from agentfs.grants import parse
from agentfs.guards import Granted, Lease
from agentfs.house import House
from agentfs.limits import Limits
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.rows import ApprovalRow
from agentfs.service import FileHandle, FileService
from agentfs.tree import At, Call, Tree
from agentfs.types import OPERATOR, ROOT, Mode, Path, Principal
from agentfs.views import Below

AGENT = Principal("agent", "a")
SIGN = Path("identity/sign")


@asynccontextmanager
async def held(
    store: Store, clock: ManualClock, limits: Limits | None = None, words: str = "sign_only confirm=operator"
) -> AsyncIterator[tuple[Engine, House, FileService, Desk]]:
    """The agent "a" with a held identity: engine, house, the agent's own tree, the operator's desk."""
    async with world(store, clock, limits) as (engine, house):
        agent = Below(house.attach(OPERATOR), Path("agents/a"))
        await mount(agent, words)
        async with desk(agent) as operator:
            yield engine, house, house.attach(AGENT), operator


async def test_undecided_in_time_it_has_expired(store: Store, clock: ManualClock) -> None:
    async with held(store, clock) as (_, _, own, operator):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, errno.ETIMEDOUT, ask(own, b"text"))
            id = await operator.pending()
            clock.advance(299)
            assert (await operator.status(id))["state"] == "pending"
            clock.advance(1)
        assert (await operator.next("expired"))["id"] == id
        await fails(errno.EEXIST, operator.decide(id, "allow"))
        assert await operator.request(id) == b"text\n"
        clock.advance(86_400)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, errno.EACCES, ask(own, b"another"))
            await operator.decide(await operator.pending(), "deny")
        await fails(errno.ENOENT, operator.status(id))


async def test_after_a_restart_nobody_waits(store: Store, clock: ManualClock) -> None:
    async with held(store, clock) as (engine, _, _, operator):
        for state in ("pending", "allowed"):
            wait = Wait(engine.money.approvals, Request("a", AGENT, "identity/sign", state.encode(), 0), ("operator",))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait.settled)
                await operator.pending()
                nursery.cancel_scope.cancel()
            if state == "pending":
                continue
            (row,) = [row for row in await store.scan(ApprovalRow, "a") if row.request == state]
            await engine.money.approvals.decide("a", row.id, "allow", OPERATOR)
    assert sorted(row.state for row in await store.scan(ApprovalRow, "a")) == ["allowed", "pending"]
    async with running(store, clock) as engine:
        rows = await store.scan(ApprovalRow, "a")
        assert [row.state for row in rows] == ["withdrawn"] * 2
        await fails(errno.EEXIST, engine.money.approvals.decide("a", rows[0].id, "allow", OPERATOR))


async def test_only_so_many_wait_and_what_is_over_makes_room(store: Store, clock: ManualClock) -> None:
    async with held(store, clock, Limits(approvals=3)) as (_, _, own, operator):
        for _ in range(5):  # more than there is room for, one behind the other
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, own, b"text")
                await operator.decide(await operator.pending(), "allow")
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(fails, errno.EACCES, ask(own, b"text"))
            ids = [await operator.pending() for _ in range(3)]
            await fails(errno.ENOSPC, ask(own, b"one more"))
            for id in ids:
                await operator.decide(id, "deny")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, own, b"now there is room")
            await operator.decide(await operator.pending(), "allow")


async def test_a_named_token_may_allow_and_no_other(store: Store, clock: ManualClock) -> None:
    async with world(store, clock) as (engine, house):
        agent = Below(house.attach(OPERATOR), Path("agents/a"))
        made = [await issued(house, allow=["/agents/a/approvals:read+write", "/views/a:read+write"]) for _ in range(2)]
        trees = [opened(engine, house, token["token"]) for token in made]
        await mount(agent, f"sign_only confirm=token:{made[0]['id']}")
        desks = [Below(tree, Path("agents/a")) for tree in trees]
        async with desk(agent) as operator, trio.open_nursery() as nursery:
            nursery.start_soon(ask, house.attach(AGENT), b"text")
            id = await operator.pending()
            await fails(errno.EPERM, operator.decide(id, "allow", desks[1]))
            await operator.decide(id, "allow", desks[0])
            nursery.start_soon(fails, errno.EACCES, ask(Below(trees[0], Path("views/a")), b"for itself"))
            id = await operator.pending()
            await fails(errno.EPERM, operator.decide(id, "allow", desks[0]))
            await operator.decide(id, "deny")


async def test_an_agents_token_waits_too_and_ends_with_its_revocation(store: Store, clock: ManualClock) -> None:
    async with held(store, clock) as (engine, house, own, operator):
        made = await issued(house, "views/a/tokens", allow=["/identity:read+write", "/approvals:read+write"])
        bearer = opened(engine, house, made["token"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, errno.EACCES, ask(bearer, b"text"))
            id = await operator.pending()
            assert (await operator.status(id))["source"] == f"token:{made['id']}"
            for tree in (bearer, own):
                await fails(errno.EPERM, operator.decide(id, "allow", tree))
            await put(own, f"revoke {made['id']}\n".encode(), "tokens/ctl")
            assert (await operator.next("withdrawn"))["id"] == id


@pytest.mark.parametrize("request_", [b"raw bytes", b'{"text": "json"}', b'{"text": "json"}\n'])
async def test_nobody_is_asked_for_what_nobody_reads(store: Store, clock: ManualClock, request_: bytes) -> None:
    async with held(store, clock) as (_, _, own, operator):
        for mode, is_final in ((BOTH, False), (BOTH, True), (Mode.WRITE, True)):
            async with await own.open(SIGN, mode) as handle:
                await handle.write(request_, 0)
                await handle.flush(final=is_final)
        assert await operator.states() == []
        assert b'"op":"sign"' not in await whole(own, "logs/trace")


async def test_a_read_that_was_interrupted_comes_again_for_the_same_request(store: Store, clock: ManualClock) -> None:
    async with held(store, clock) as (_, _, own, operator), await own.open(SIGN, BOTH) as handle:
        assert handle.is_ready() and b"write any text" in await handle.read(100, 0)
        await handle.write(b"te", 0)
        await handle.write(b"xt", 2)
        assert not handle.is_ready()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle.read, 100, 0)
            id = await operator.pending()
            nursery.cancel_scope.cancel()
        assert (await operator.status(id))["state"] == "pending" and await operator.request(id) == b"text\n"
        await fails(errno.EBUSY, handle.write(b"other", 0))
        await operator.decide(id, "allow")
        assert handle.is_ready()
        answer = await handle.read(1000, 0)
        assert len(answer) == 129 and await handle.read(1000, 0) == answer and await handle.read(9, 129) == b""
        assert await operator.states() == ["pending", "allowed", "used"]
        await handle.write(b"text", 0)  # the same again: another use
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, errno.EACCES, handle.read(100, 0))
            await operator.decide(await operator.pending(), "deny")
        await fails(errno.EACCES, handle.read(100, 0))  # and never the usage, which might be taken for an answer
        await handle.write(b'{"nonsense": 1}', 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, errno.EINVAL, handle.read(100, 0))
            await operator.decide(await operator.pending(), "allow")
        await fails(errno.EACCES, handle.read(100, 0))
    assert await operator.states() == ["pending", "allowed", "used", "pending", "denied", "pending", "allowed", "used"]


@pytest.mark.parametrize(("piece", "rest"), [(b'{"text": ', b'"x"}'), ("é".encode()[:1], "é".encode()[1:])])
async def test_a_poll_completes_nothing_that_is_cut_off(
    store: Store, clock: ManualClock, piece: bytes, rest: bytes
) -> None:
    async with held(store, clock) as (_, _, own, operator):
        for is_whole in (False, True):
            async with await own.open(SIGN, BOTH) as handle, trio.open_nursery() as nursery:
                await handle.write(piece, 0)
                with trio.fail_after(60):
                    await handle.wait_ready()
                assert handle.is_ready() and await operator.states() == []
                if is_whole:
                    await handle.write(rest, len(piece))
                    nursery.start_soon(handle.wait_ready)
                    id = await operator.pending()
                    assert await operator.request(id) == piece + rest + b"\n"
                    await operator.decide(id, "deny")
                else:  # and never the usage, which might be taken for an answer
                    with pytest.raises(OSError, match=r"JSON|byte 0"):
                        await handle.read(100, 0)


async def test_two_readers_of_one_open_file_have_one_answer(store: Store, clock: ManualClock) -> None:
    async with held(store, clock) as (_, _, own, operator), await own.open(SIGN, BOTH) as handle:
        assert await handle.write(b'{"text": "one"}{"text": "two"}', 0) == len(b'{"text": "one"}')
        await fails(errno.EBUSY, handle.write(b'{"text": "two"}', 0))
        answers: list[bytes] = []

        async def read() -> None:
            answers.append(await handle.read(1000, 0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(handle.wait_ready)
            nursery.start_soon(read)
            await operator.decide(await operator.pending(), "allow")
        assert len(answers) == 2 and answers[0] == answers[1]
        assert await operator.states() == ["pending", "allowed", "used"]


@pytest.mark.parametrize("is_allowed", [False, True])
async def test_an_allow_that_comes_too_late_is_void(store: Store, clock: ManualClock, is_allowed: bool) -> None:
    """Closed while it waits, or allowed and closed before anybody read on."""
    async with held(store, clock) as (engine, _, own, operator):
        handle = await own.open(SIGN, BOTH)
        await handle.write(b"text", 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle.wait_ready)
            id = await operator.pending()
            if is_allowed:
                await operator.decide(id, "allow")
            else:
                nursery.start_soon(fails, errno.EBADF, handle.read(100, 0))
                await still(engine)
                await handle.aclose()
        await handle.aclose()
        await fails(errno.EEXIST, operator.decide(id, "allow"))
        assert (await operator.status(id))["state"] == "withdrawn"
        assert b'"op":"sign"' not in await whole(own, "logs/trace")


async def test_an_answer_that_is_cut_off_needs_an_allow_of_its_own(store: Store, clock: ManualClock) -> None:
    """Whatever became of the first one, it was used; the request itself is not lost."""
    began, ran = trio.Event(), 0

    async def slow(at: At, doc: bytes) -> bytes:
        nonlocal ran
        ran += 1
        began.set()
        if ran == 1:
            await trio.sleep_forever()
        return doc

    async with held(store, clock) as (engine, _, _, operator):
        tree = Tree(Call(name="slow", answer=slow, usage="usage\n"))
        confirmer = Confirmer(engine.money.approvals, "a", AGENT, ROOT, ("operator",))
        guard = Granted(tree, parse(["confirm=operator"]), Lease(), hold=lambda principal: confirmer)
        async with await guard.open(Path("slow"), BOTH) as handle:
            await handle.write(b"once", 0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(handle.read, 100, 0)
                await operator.decide(await operator.pending(), "allow")
                await began.wait()
                nursery.cancel_scope.cancel()
            assert not handle.is_ready()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_reads, handle, b"once")
                await operator.decide(await operator.pending(), "allow")
        assert ran == 2
        unheld = Granted(tree, parse(["confirm=operator"]), Lease())
        await fails(errno.EACCES, unheld.open(Path("slow"), BOTH))


async def _reads(handle: FileHandle, answer: bytes) -> None:
    assert await handle.read(100, 0) == answer


async def test_an_agent_that_is_removed_waits_no_more(store: Store, clock: ManualClock) -> None:
    async with held(store, clock) as (_, house, own, operator):
        tree = house.attach(OPERATOR)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, errno.EACCES, ask(own, b"text"))
            await operator.pending()
            await put(tree, b"terminate\n", "agents/a/ctl")
            await tree.remove(Path("agents/a"))


async def test_a_table_that_changes_elsewhere_leaves_it_waiting(store: Store, clock: ManualClock) -> None:
    async with held(store, clock) as (_, house, own, operator):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, own, b"text")
            id = await operator.pending()
            await mount(Below(house.attach(OPERATOR), Path("agents/a")), "read_only", "schedule")
            await operator.decide(id, "allow")
        assert (await operator.status(id))["state"] == "used"


async def test_only_calls_can_be_confirmed(store: Store, clock: ManualClock) -> None:
    async with held(store, clock, words="confirm=operator") as (_, house, own, _):
        await fails(errno.EACCES, own.open(Path("identity/ctl"), Mode.WRITE))
        assert (await own.stat(Path("identity/ctl"))).mode & 0o222 == 0
        agent = Below(house.attach(OPERATOR), Path("agents/a"))
        table = await whole(agent, "ns")
        for words in ("kv /kv confirm=operator", "secrets /secrets confirm=operator", "tokens /t confirm=operator",
                      "effects /effects budgeted confirm=operator", "identity /i read_only confirm=operator",
                      "identity /i disabled confirm=operator", "identity /i confirm=", "identity /i confirm",
                      "identity /i confirm=,"):  # fmt: skip
            await fails(errno.EINVAL, put(agent, table + f"mount {words}\n".encode(), "ns"))
        assert await whole(agent, "ns") == table and b"mount identity /identity confirm=operator\n" in table
        await put(agent, b"bind '#identity/sign' /s sign_only confirm=operator\nbind /s /t\nmount ns /\n", "ns")
        async with desk(agent) as operator:
            for name in (b"s", b"t"):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(fails, errno.EACCES, ask(own, b"text", name.decode()))
                    await operator.decide(await operator.pending(), "deny")


def test_the_words_of_a_mount_that_confirms() -> None:
    grant = parse(["sign_only", "confirm=operator,token:x", "rate=7"])
    assert grant.confirm == ("operator", "token:x") and grant.rate == 7 and not grant.is_writable
    assert not parse(["confirm=operator"]).is_writable and parse(["confirm=operator"]).is_readable
    paid = parse(["budgeted", "price_usd=5", "confirm=operator"])
    assert paid.policy is not None and paid.policy.price_usd == 5 and paid.confirm
