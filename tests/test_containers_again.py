"""Sessions that come again: ids used twice, rows kept less long, what a stop leaves to the next start."""

from __future__ import annotations

import errno

import trio
from boxkit import offered
from cells import Cells, words
from engines import fails, running
from test_containers_engine import gone, opened, reaped, seen, submit

from agentfs.engine.journal import UNKNOWN_OUTCOME
from agentfs.engine.session import RUNNING
from agentfs.limits import Limits
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock


async def test_one_that_asks_for_less_is_kept_less_long(store: Store, clock: ManualClock) -> None:
    cells = Cells()
    limits = Limits(sandboxes=2, sandbox_ttl_seconds=1000)
    async with running(store, clock, limits, housing=offered(cells=cells)) as engine:
        await opened(engine)
        for wanted in (100, 5000):
            row = await submit(engine, words("exit 0", keep_secs=wanted))
            done = await seen(engine, row.id, lambda row: row.done_ns is not None)
            assert done.done_ns is not None
            assert done.expires_ns == done.done_ns + min(wanted, 1000) * 1_000_000_000
        await fails(errno.ENOSPC, submit(engine, words("exit 0")))
        clock.advance(100)
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert len(cells.there) == 1
        await submit(engine, words("exit 0"))


async def test_an_id_that_is_used_again_is_ended_again(store: Store, clock: ManualClock) -> None:
    cells = Cells()
    async with running(store, clock, housing=offered(cells=cells)) as engine:
        await opened(engine)
        first = await submit(engine, words("exit 0"), "k")
        await seen(engine, first.id, lambda row: row.done_ns is not None)
        clock.advance(2 * 3600)  # what the key stands for is forgotten; the session is kept a day
        with trio.fail_after(60):
            while await engine.money.journal.get("a", first.id) is not None:  # noqa: ASYNC110 - a thread commits
                await trio.sleep(0.001)
        again = await submit(engine, words("wait"), "k")
        assert again.id == first.id and again.version > first.version
        await seen(engine, again.id, lambda row: row.state == RUNNING)
        cells.is_away = True
        await engine.sandboxes.stop("a", again.id)
        await seen(engine, again.id, lambda row: row.done_ns is not None)
        assert cells.there == {again.id: True}
        await gone(engine, lambda: not engine.sandboxes.running)  # else it is left alone for another minute
        cells.is_away = False
        await reaped(engine, clock)
        with trio.fail_after(60):
            while cells.there != {again.id: False}:  # noqa: ASYNC110
                await trio.sleep(0.001)


async def test_a_stop_ends_what_runs_and_the_next_start_takes_it_up(store: Store, clock: ManualClock) -> None:
    cells = Cells()
    async with running(store, clock, housing=offered(cells=cells)) as engine:
        await opened(engine)
        stays = await submit(engine, words())
        lost = await submit(engine, words("wait"))
        for row in (stays, lost):
            await seen(engine, row.id, lambda row: row.state == RUNNING)
        with trio.fail_after(60):
            await engine.drain(10)  # on a clock that stands still: nothing is waited for but what ends
        with trio.fail_after(60):
            while engine.sandboxes.running:
                await trio.testing.wait_all_tasks_blocked(0.001)
        assert (await engine.sandboxes.row("a", lost.id)).state == RUNNING
    async with running(store, clock, housing=offered(cells=cells)) as engine:
        await opened(engine, is_new=False)
        assert (await seen(engine, lost.id, lambda row: row.done_ns is not None)).reason == UNKNOWN_OUTCOME
        assert (await seen(engine, stays.id, lambda row: row.id in cells.quieted)).state == RUNNING
