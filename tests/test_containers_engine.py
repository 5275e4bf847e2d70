"""Sessions in sandboxes on a clock moved by hand: time limits, slots, money, what is swept and reaped, restarts."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
from boxkit import offered
from cells import Cells, words
from engines import fails, lines, running, started, still

from agentfs import budget
from agentfs.containers.documents import Exec, parse
from agentfs.containers.port import Inside, Offer
from agentfs.engine.engine import Engine
from agentfs.engine.housing import Housing
from agentfs.engine.money import CONTAINERS
from agentfs.engine.orders import Order
from agentfs.engine.sandboxes import POLICY
from agentfs.engine.session import LIVE, RUNNING, log_of
from agentfs.grants import Grant
from agentfs.limits import Limits
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.rows import AccountRow, ExecRow, HoldRow, SandboxRow
from agentfs.types import OPERATOR, Path

HOUR_NS = 3_600_000_000_000


async def opened(engine: Engine, *, per_day_usd: int = 1_000_000, is_new: bool = True) -> None:
    """One agent with money, and as many sessions as it likes."""
    grant = Grant("budgeted", budget.Policy(per_day_usd=per_day_usd))

    async def nobody(agent: str) -> None: ...

    engine.adopt(lambda row, service: grant, nobody)
    if is_new:
        await started(engine)
        await engine.jobs.models.documents.put("a", POLICY, b'{"max_sessions":100}', None)


async def submit(engine: Engine, request: dict[str, Any], key: str = "") -> SandboxRow:
    account = engine.money.account(await engine.row("a"), CONTAINERS, OPERATOR, Path(CONTAINERS))
    order = Order(
        "a", parse(msgspec.json.encode(request)), account, key or engine.core.new_id(), Path("containers/new")
    )
    return (await engine.sandboxes.submit(order))[0]


async def seen(engine: Engine, id: str, is_it: Callable[[SandboxRow], bool]) -> SandboxRow:
    """The row once it is as wanted."""
    with trio.fail_after(60):
        while not is_it(row := await engine.sandboxes.row("a", id)):
            await trio.testing.wait_all_tasks_blocked(0.001)
    return row


async def up(engine: Engine, *commands: str, **more: Any) -> SandboxRow:
    """A session that runs."""
    row = await submit(engine, words(*commands, **more))
    return await seen(engine, row.id, lambda row: row.state == RUNNING)


async def over(engine: Engine, id: str) -> SandboxRow:
    return await seen(engine, id, lambda row: row.state not in LIVE)


async def exec_over(engine: Engine, session: str, id: str) -> ExecRow:
    with trio.fail_after(60):
        while (row := await engine.commands.row("a", session, id)).state == RUNNING:
            await trio.testing.wait_all_tasks_blocked(0.001)
    return row


async def gone(engine: Engine, is_it: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not is_it():
            await trio.testing.wait_all_tasks_blocked(0.001)


async def reaped(engine: Engine, clock: ManualClock) -> None:
    """Let the minute go by after which the reaper looks again, once it has looked before."""
    await gone(engine, lambda: engine.timers.next_at("sandboxes-reap") is not None)
    clock.advance(61)


async def books(store: Store) -> tuple[int, int]:
    rows = [r for r in await store.scan(AccountRow, "a") if not r.period.startswith("tick")]
    return sum(row.reserved_usd for row in rows), sum(row.spent_usd for row in rows)


async def test_its_time_ends_it_and_keepalive_begins_it_again(store: Store, clock: ManualClock) -> None:
    async with running(store, clock, housing=offered(cells=Cells())) as engine:
        await opened(engine)
        row = await up(engine, timeout_ms=10_000)
        clock.advance(8)
        await engine.sandboxes.keep("a", row.id)
        clock.advance(8)
        await still(engine)
        assert (await engine.sandboxes.row("a", row.id)).state == RUNNING
        clock.advance(3)
        row = await over(engine, row.id)
        assert (row.state, row.error, row.exit_code) == ("expired", "ETIMEDOUT", None)
        await fails(errno.ESTALE, engine.sandboxes.keep("a", row.id))
        (last,) = await lines(engine, "a", log_of(row.id))
        assert last["done"] and last["status"] == "expired"


async def test_an_exec_has_a_time_limit_and_can_be_cancelled(store: Store, clock: ManualClock) -> None:
    async with running(store, clock, housing=offered(cells=Cells())) as engine:
        await opened(engine)
        session = await up(engine)
        late, _ = await engine.commands.submit("a", session.id, Exec(command="wait", timeout_ms=5000), "")
        cut, _ = await engine.commands.submit("a", session.id, Exec(command="wait"), "")
        await engine.commands.cancel("a", session.id, cut.id)
        cut = await exec_over(engine, session.id, cut.id)
        assert (cut.state, cut.error) == ("cancelled", "ECANCELED")
        clock.advance(6)
        late = await exec_over(engine, session.id, late.id)
        assert (late.state, late.error) == ("failed", "ETIMEDOUT")
        assert (await lines(engine, "a", log_of(session.id, late.id)))[-1][
            "error"
        ] == "timed out: no end within 5000 ms"
        bad, _ = await engine.commands.submit("a", session.id, Exec(command="exit 3"), "")
        bad = await exec_over(engine, session.id, bad.id)
        assert bad.state == "complete" and msgspec.json.decode(bad.result)["exit_code"] == 3
        most = [await engine.commands.submit("a", session.id, Exec(command="wait"), "") for _ in range(32)]
        await fails(errno.ENOBUFS, engine.commands.submit("a", session.id, Exec(command="wait"), ""))
        await engine.sandboxes.stop("a", session.id)
        await over(engine, session.id)
        assert {(await exec_over(engine, session.id, row.id)).state for row, _ in most} == {"cancelled"}
        await fails(errno.ESTALE, engine.commands.submit("a", session.id, Exec(command="true"), ""))


async def test_what_is_over_is_forgotten_and_what_no_row_owns_is_reaped(store: Store, clock: ManualClock) -> None:
    cells = Cells()
    cells.there["orphan"] = True
    async with running(store, clock, Limits(sandbox_ttl_seconds=100), housing=offered(cells=cells)) as engine:
        await opened(engine)
        session = await up(engine)
        await gone(engine, lambda: "orphan" not in cells.there)
        ran, _ = await engine.commands.submit("a", session.id, Exec(command="hello"), "")
        await exec_over(engine, session.id, ran.id)
        await engine.sandboxes.stop("a", session.id)
        await over(engine, session.id)
        assert cells.there == {session.id: False}
        cells.there["orphan-2"] = True
        await reaped(engine, clock)
        await gone(engine, lambda: "orphan-2" not in cells.there)
        assert session.id in cells.there
        clock.advance(50)
        await gone(engine, lambda: session.id not in cells.there)
        with trio.fail_after(60):
            while await store.scan(SandboxRow, "a"):
                await trio.testing.wait_all_tasks_blocked(0.001)
        assert list(await store.scan(ExecRow, "a")) == []
        for name in (log_of(session.id), log_of(session.id, ran.id)):
            assert await lines(engine, "a", name) == []


async def test_a_bug_in_an_engine_ends_no_reaper(store: Store, clock: ManualClock) -> None:
    cells = Cells()
    cells.bug = True
    async with running(store, clock, housing=offered(cells=cells, others=(others := Cells()))) as engine:
        await opened(engine)
        others.there["orphan"] = True
        await reaped(engine, clock)
        await gone(engine, lambda: not others.there)
        cells.bug, cells.there["orphan"] = False, True
        await reaped(engine, clock)
        await gone(engine, lambda: not cells.there)


async def test_an_engine_that_hangs_holds_up_no_timer(store: Store, clock: ManualClock) -> None:
    cells = Cells()
    async with running(store, clock, housing=offered(cells=cells)) as engine:
        await opened(engine)
        await still(engine)
        session = await up(engine, timeout_ms=100_000)
        cells.is_stuck = True
        await reaped(engine, clock)  # it is asked what it has
        await still(engine)
        clock.advance(40)
        assert (await over(engine, session.id)).state == "expired"


@pytest.mark.parametrize("how", ["exec", "time"])
async def test_a_sandbox_that_was_taken_away_ends_its_session(store: Store, clock: ManualClock, how: str) -> None:
    cells = Cells()
    async with running(store, clock, housing=offered(cells=cells)) as engine:
        await opened(engine)
        session, other = await up(engine), await up(engine)
        await still(engine)
        del cells.there[session.id]
        if how == "exec":
            asked, _ = await engine.commands.submit("a", session.id, Exec(command="hello"), "")
            assert (await exec_over(engine, session.id, asked.id)).state == "failed"
        else:
            await reaped(engine, clock)
        row = await over(engine, session.id)
        assert (row.state, row.error, row.reason) == ("failed", "EREMOTEIO", "its sandbox was taken away")
        assert (await engine.sandboxes.row("a", other.id)).state == RUNNING


async def test_others_wait_for_a_place(store: Store, clock: ManualClock) -> None:
    cells = Cells()
    async with running(store, clock, Limits(sandboxes_running=1), housing=offered(cells=cells)) as engine:
        await opened(engine)
        first = await up(engine)
        waiting, stopped = await submit(engine, words("hello")), await submit(engine, words("never"))
        await engine.sandboxes.stop("a", stopped.id)
        assert (await over(engine, stopped.id)).reason == "stopped"
        assert (await engine.sandboxes.row("a", waiting.id)).state == "provisioning" and cells.ran == []
        await engine.sandboxes.stop("a", first.id)
        assert (await over(engine, waiting.id)).exit_code == 0 and cells.ran == ["hello"]


async def test_no_more_sessions_than_allowed_however_they_come(store: Store, clock: ManualClock) -> None:
    async with running(store, clock, housing=Housing({"cells": Offer(Cells())}, slow)) as engine:
        await opened(engine)
        await engine.jobs.models.documents.put("a", POLICY, b'{"max_sessions":2}', None)
        made, refused = list[str](), list[int | None]()

        async def one() -> None:
            try:
                made.append((await submit(engine, words("wait"))).id)
            except OSError as exc:
                refused.append(exc.errno)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
        assert (len(made), refused) == (2, [errno.EDQUOT] * 8)
        for id in made:
            await engine.sandboxes.stop("a", id)
            await over(engine, id)
        await gone(engine, lambda: not engine.sandboxes.running)
        assert await submit(engine, words("wait"))


async def slow(agent: str) -> Inside:
    """What a sandbox gets, a moment later."""
    await trio.lowlevel.checkpoint()
    return Inside()


@pytest.mark.parametrize("verb", ["terminate", "remove"])
async def test_its_agent_takes_it_along(store: Store, clock: ManualClock, verb: str) -> None:
    cells = Cells()
    async with running(store, clock, housing=Housing({"cells": Offer(cells, 3_600_000)})) as engine:
        await opened(engine)
        session = await up(engine, limits={"max_time_secs": 10})
        await engine.commands.submit("a", session.id, Exec(command="wait"), "")
        await engine.verb("a", "terminate", OPERATOR)
        if verb == "remove":
            await engine.remove("a")
        await gone(engine, lambda: not engine.sandboxes.running)
        assert not any(cells.there.values())
        if verb == "terminate":
            assert (await over(engine, session.id)).reason == "its agent ended"
            assert await books(store) == (0, 0)
        else:
            await reaped(engine, clock)
            await gone(engine, lambda: not cells.there)
            assert list(await store.scan(HoldRow, "a")) == [] == list(await store.scan(SandboxRow, "a"))


async def test_no_money_is_lost_and_no_limit_passed(store: Store, clock: ManualClock) -> None:
    cells, most = Cells(), 100_000
    async with running(store, clock, housing=Housing({"cells": Offer(cells, 3_600_000)})) as engine:
        await opened(engine, per_day_usd=most)
        made: list[str] = []
        refused = 0

        async def one(number: int) -> None:
            nonlocal refused
            how = ("hello", "exit 3", "wait", "bug")[number % 4]
            try:
                row = await submit(engine, words(how, limits={"max_time_secs": 5}))
            except OSError as exc:
                assert exc.errno == errno.EDQUOT
                refused += 1
            else:
                made.append(row.id)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, number)
        reserved, spent = await books(store)
        assert reserved + spent <= most and len(made) == most // 5000 and refused == 50 - len(made)
        clock.advance(2)
        await still(engine)
        clock.advance(4)
        rows = [await over(engine, id) for id in made]
        await gone(engine, lambda: not engine.sandboxes.running)
        assert {row.state for row in rows} == {"complete", "expired", "failed"}
        assert all(0 <= row.cost_usd <= row.reserved_usd == 5000 for row in rows)
        assert {row.cost_usd for row in rows if row.state == "expired"} == {5000}
        assert await books(store) == (0, sum(row.cost_usd for row in rows))
        assert {row.error for row in rows if row.state == "failed"} == {"EIO"}


async def test_a_restart_tells_the_truth(store: Store, clock: ManualClock) -> None:
    cells = Cells()
    async with running(store, clock, housing=Housing({"cells": Offer(cells, 3_600_000)})) as engine:
        await opened(engine)
        stays, cut = (
            await up(engine, limits={"max_time_secs": 100}),
            await up(engine, "wait", limits={"max_time_secs": 9}),
        )
        own = await up(engine, "setup", kind="interactive", limits={"max_time_secs": 100})
        waits, _ = await engine.commands.submit("a", stays.id, Exec(command="wait"), "")
        await gone(engine, lambda: cells.ran.count("wait") == 2 and "setup" in cells.ran)
    clock.advance(3)
    async with running(store, clock, housing=Housing({"cells": Offer(cells, 3_600_000)})) as engine:
        await opened(engine, is_new=False)
        ended = await over(engine, cut.id)
        assert (ended.state, ended.error, ended.cost_usd) == ("failed", "EREMOTEIO", 3000)
        lost = await engine.commands.row("a", stays.id, waits.id)
        assert (lost.state, lost.error) == ("failed", "EREMOTEIO")
        assert (await lines(engine, "a", log_of(stays.id, waits.id)))[-1]["done"]
        await gone(engine, lambda: ("a", stays.id) in engine.sandboxes.running)  # until then it is EBUSY
        again, _ = await engine.commands.submit("a", stays.id, Exec(command="hello"), "")
        assert (await exec_over(engine, stays.id, again.id)).state == "complete"
        assert set(cells.quieted) == {stays.id, own.id} and cells.ran.count("setup") == 1
        clock.advance(98)
        assert [(await over(engine, row.id)).state for row in (stays, own)] == ["expired", "expired"]
        await gone(engine, lambda: not engine.sandboxes.running)
        assert await books(store) == (0, 203_000) and not any(cells.there.values())


async def test_a_sandbox_that_is_gone_ends_its_session_at_a_restart(store: Store, clock: ManualClock) -> None:
    cells = Cells()
    async with running(store, clock, housing=offered(cells=cells)) as engine:
        await opened(engine)
        session = await up(engine)
        other = await up(engine)
    del cells.there[session.id]
    async with running(store, clock, housing=offered(cells=cells)) as engine:
        await opened(engine, is_new=False)
        assert (await over(engine, session.id)).reason == "its sandbox was taken away"
        assert (await engine.sandboxes.row("a", other.id)).state == RUNNING
    async with running(store, clock, housing=offered(other=cells)) as engine:
        await opened(engine, is_new=False)
        assert (await over(engine, other.id)).error == "ENOTCONN"


async def test_a_key_whose_time_is_over_begins_anew(store: Store, clock: ManualClock) -> None:
    async with running(store, clock, Limits(effect_ttl_seconds=10), housing=offered(cells=Cells())) as engine:
        await opened(engine)
        first = await submit(engine, words(), key="k")
        ran, _ = await engine.commands.submit("a", first.id, Exec(command="hello"), "k")
        await exec_over(engine, first.id, ran.id)
        await engine.sandboxes.stop("a", first.id)
        await over(engine, first.id)
        clock.advance(11)
        with trio.fail_after(60):
            while await engine.money.journal.get("a", first.id):
                await trio.testing.wait_all_tasks_blocked(0.001)
        again = await submit(engine, words(), key="k")
        assert again.id == first.id and again.version > first.version
        await seen(engine, again.id, lambda row: row.state == RUNNING)
        assert list(await store.scan(ExecRow, "a", again.id)) == []
        assert await lines(engine, "a", log_of(again.id, ran.id)) == [] == await lines(engine, "a", log_of(again.id))


async def test_a_provider_that_fails_says_why(store: Store, clock: ManualClock) -> None:
    cells = Cells()
    cells.failure = OSError(errno.ENOTCONN, "the engine is away")
    async with running(store, clock, housing=Housing({"cells": Offer(cells, 3_600_000)})) as engine:
        await opened(engine)
        row = await over(engine, (await submit(engine, words("hello"))).id)
        assert (row.state, row.error, row.cost_usd) == ("failed", "ENOTCONN", 0) and "away" in row.reason
        cells.failure = None
        repo = {"repo": {"url": "https://h/p"}, "limits": {"allow_network": True}}
        await engine.jobs.models.documents.put("a", POLICY, b'{"allow_network":true}', None)
        row = await over(engine, (await submit(engine, words("hello", **repo))).id)
        assert (row.error, await books(store)) == ("EOPNOTSUPP", (0, 0)) and "repo" in row.reason
