"""The sandboxes of programs on a clock moved by hand: kept, left, limited, never reaped while they are held."""

from __future__ import annotations

import errno

import pytest
import trio
from cells import Cells, words
from engines import fails, running, started, still
from test_containers_engine import opened, submit

from agentfs.containers.documents import Request, Wanted
from agentfs.containers.port import Command, Exit, Offer, Output
from agentfs.engine.engine import Engine
from agentfs.engine.housing import Housing
from agentfs.engine.sandboxes import POLICY
from agentfs.limits import Limits
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock

WANTED = Request(kind="interactive", idempotency_key="tick")


async def ran(engine: Engine, line: str, request: Request = WANTED) -> Exit:
    return await engine.warm.run("a", request, Command("c", [line]), lambda output: None)


async def test_it_is_kept_for_a_while(store: Store, clock: ManualClock) -> None:
    cells = Cells()
    async with running(store, clock, Limits(warm_seconds=100), housing=Housing({"here": Offer(cells)})) as engine:
        await started(engine)
        for _ in range(3):
            assert (await ran(engine, "exit 3")).code == 3
            clock.advance(99)  # the reaper looks once a minute
            await still(engine)
        (first,) = cells.there
        clock.advance(1)
        await still(engine)
        assert not cells.there and not engine.sandboxes.held
        await ran(engine, "x")
        assert cells.there and first not in cells.there
    assert not cells.there


async def test_what_nobody_holds_is_reaped(store: Store, clock: ManualClock) -> None:
    cells = Cells()
    cells.there["tick-of-another-life"] = True
    async with running(store, clock, housing=Housing({"here": Offer(cells)})) as engine:
        await still(engine)
        assert not cells.there
        await started(engine)
        await ran(engine, "x")
        assert set(cells.there) == engine.sandboxes.held != set()


async def test_left_while_a_tick_runs_it_goes_behind_it(store: Store, clock: ManualClock) -> None:
    cells = Cells()
    async with running(store, clock, housing=Housing({"here": Offer(cells)})) as engine:
        await started(engine)

        def leave(output: Output) -> None:
            engine.warm.leave("a")
            assert cells.there

        await engine.warm.run("a", WANTED, Command("c", ["x"]), leave)
        assert not cells.there
        engine.warm.leave("a")
        engine.warm.leave("nobody")


async def test_time_is_limited_for_each_tick(store: Store, clock: ManualClock) -> None:
    cells = Cells()
    async with running(store, clock, housing=Housing({"here": Offer(cells)})) as engine, trio.open_nursery() as nursery:
        await started(engine)
        request = Request(kind="interactive", limits=Wanted(max_time_secs=7))
        nursery.start_soon(fails, errno.ETIMEDOUT, ran(engine, "wait", request))
        await still(engine)
        clock.advance(6)
        await still(engine)
        assert cells.there
        clock.advance(1)
        await still(engine)
        assert not cells.there


async def test_a_tick_in_a_sandbox_counts_as_a_session(store: Store, clock: ManualClock) -> None:
    cells = Cells()
    async with running(store, clock, housing=Housing({"here": Offer(cells)})) as engine, trio.open_nursery() as nursery:
        await opened(engine)
        await engine.jobs.models.documents.put("a", POLICY, b'{"max_sessions":1}', None)
        nursery.start_soon(ran, engine, "wait")
        await still(engine)
        await fails(errno.EDQUOT, submit(engine, words("wait")))
        nursery.cancel_scope.cancel()
    async with running(store, clock, housing=Housing({"here": Offer(cells)})) as engine:
        await opened(engine, is_new=False)
        await ran(engine, "x")
        assert len(cells.there) == 1  # kept, and nothing runs in it
        row = await submit(engine, words("wait"))
        await fails(errno.EDQUOT, ran(engine, "x"))
        await engine.sandboxes.stop("a", row.id)
        with trio.fail_after(60):
            while engine.sandboxes.running:
                await still(engine)
        assert (await ran(engine, "x")).code == 0


@pytest.mark.parametrize("line", ["bug", "wait", "x"])
async def test_what_goes_wrong_leaves_nothing(store: Store, clock: ManualClock, line: str) -> None:
    cells = Cells()
    async with running(store, clock, housing=Housing({"here": Offer(cells)})) as engine:
        await started(engine)
        if line == "bug":
            with pytest.raises(ZeroDivisionError):
                await ran(engine, line)
        elif line == "wait":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ran, engine, line)
                await still(engine)
                nursery.cancel_scope.cancel()
        else:
            cells.failure = OSError(errno.ENOENT, "no such image")
            await fails(errno.ENOENT, ran(engine, line))
            cells.failure = None
        assert not cells.there and not engine.sandboxes.held
        assert (await ran(engine, "y")).code == 0
        await cells.remove(next(iter(cells.there)))  # taken away: the next tick fails, the one behind it does not
        await fails(errno.ENOENT, ran(engine, "y"))
        assert (await ran(engine, "y")).code == 0
