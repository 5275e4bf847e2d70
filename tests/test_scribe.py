"""What comes of answers is stored together and read from at hand: nothing is lost, doubled or out of order."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from agentfs.engine.core import Core
from agentfs.engine.scribe import Page, Scribe
from agentfs.errors import error
from agentfs.limits import Limits
from agentfs.ports import Append, Committed, Delete, DropLogs, Put, Unit
from agentfs.providers.clock import ManualClock
from agentfs.providers.store.memory import MemoryStore
from agentfs.record import OLDEST, Follow
from agentfs.rows import AgentRow
from agentfs.types import Record


class Slow(MemoryStore):
    """A memory store that answers when it is let, and refuses what would append to the log `refused`."""

    refused = ""

    def __init__(self) -> None:
        super().__init__(ManualClock())
        self.units: list[Unit] = []
        self.gate = anyio.Event()

    async def commit(self, unit: Unit) -> Committed:
        self.units.append(unit)
        await self.gate.wait()
        if any(isinstance(change, Append) and change.log == self.refused for change in unit.changes):
            raise error(errno.ENOSPC, detail="full")
        return await super().commit(unit)


async def made(store: Slow) -> Core:
    """A core over *store* in which agent ``a`` is."""
    core = Core(store, ManualClock(), Limits())
    store.gate.set()
    await core.commit(Put(AgentRow(id="a", config="{}", created_at_ns=1, config_at_ns=1)))
    store.units.clear()
    store.gate = anyio.Event()
    return core


async def lines_of(core: Core, log: str) -> list[bytes]:
    return [line.line for line in await core.store.lines("a", log, 1)]


async def test_what_comes_during_a_commit_is_one_commit_for_every_job() -> None:
    store = Slow()
    core = await made(store)
    async with anyio.create_task_group() as group:
        scribe = Scribe(core, group)
        pages = [Page("a") for _ in range(8)]
        for number, page in enumerate(pages):
            scribe.write(page, Append("a", f"job-{number}", b'{"n":1}'))
        await trio.testing.wait_all_tasks_blocked()
        for number, page in enumerate(pages):
            scribe.write(page, Append("a", f"job-{number}", b'{"n":2}'))
        assert len(store.units) == 1
        store.gate.set()
        for page in pages:
            await page.stored()
            assert page.failure is None
    assert len(store.units) == 2
    for number in range(8):
        assert await lines_of(core, f"job-{number}") == [b'{"seq":1,"n":1}\n', b'{"seq":2,"n":2}\n']


async def test_what_cannot_be_stored_of_one_job_ends_that_job_alone() -> None:
    store = Slow()
    store.refused = "job-1"
    core = await made(store)
    async with anyio.create_task_group() as group:
        scribe = Scribe(core, group)
        pages = [Page("a") for _ in range(3)]
        for number, page in enumerate(pages):
            scribe.write(page, Append("a", f"job-{number}", b'{"n":1}'))
        store.gate.set()
        with pages[1].scope:
            await trio.sleep_forever()
        for page in pages:
            await page.stored()
        with pytest.raises(OSError, match="full"):
            scribe.write(pages[1], Append("a", "job-1", b'{"n":2}'))
        scribe.write(pages[2], Append("a", "job-2", b'{"n":2}'))
        await pages[2].stored()
    assert [page.failure is None for page in pages] == [True, False, True]
    assert [len(await lines_of(core, f"job-{number}")) for number in range(3)] == [1, 0, 2]


async def test_a_removed_agent_ends_every_page_of_it() -> None:
    store = Slow()
    core = await made(store)
    store.gate.set()
    await core.commit(Delete(AgentRow, ("a",)))
    async with anyio.create_task_group() as group:
        scribe, pages = Scribe(core, group), [Page("a"), Page("a")]
        for page in pages:
            scribe.write(page, Append("a", "job-1", b'{"n":1}'))
        for page in pages:
            await page.stored()
            assert page.failure is not None and page.failure.errno == errno.ENOENT


async def test_what_has_come_is_stored_while_everything_is_being_stopped() -> None:
    store = Slow()
    core = await made(store)
    async with anyio.create_task_group() as group:
        scribe, page = Scribe(core, group), Page("a")
        scribe.write(page, Append("a", "job-1", b'{"n":1}'))
        await trio.testing.wait_all_tasks_blocked()
        scribe.write(page, Append("a", "job-1", b'{"n":2}'))
        group.cancel_scope.cancel()
        store.gate.set()
    assert len(await lines_of(core, "job-1")) == 2


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=8), seed=st.integers(), drop=st.booleans())
def test_followers_get_every_record_once_in_order_whatever_order_commits_are_answered_in(
    sizes: list[int], seed: int, drop: bool
) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        core = Core(MemoryStore(ManualClock()), ManualClock(), Limits())
        if drop:
            await core.commit(Append("a", "log", b'{"old":1}'))
            await core.commit(DropLogs("a", "log"))
        log = core.logs.durable("a", "log")
        follows = [await Follow.start(log, OLDEST) for _ in range(2)]
        answers: list[Sequence[Record]] = []
        for size in sizes:
            done = await core.store.commit(Unit(tuple(Append("a", "log", b'{"x":1}') for _ in range(size))))
            answers.append(done.records)
        whole = [record for answer in answers for record in answer]
        rng.shuffle(answers)
        got: list[list[Record]] = [[], []]
        for answer in answers:
            log.appended(answer)
            if rng.random() < 0.5:
                await follows[0].fill()
                while record := follows[0].next_nowait():
                    got[0].append(record)
        for taken, follow in zip(got, follows, strict=True):
            while await follow.fill():
                while record := follow.next_nowait():
                    taken.append(record)
        assert got == [whole, whole]

    trio.run(main)


async def test_a_log_dropped_and_begun_again_is_read_anew() -> None:
    core = Core(MemoryStore(ManualClock()), ManualClock(), Limits())
    log = core.logs.durable("a", "log")
    await core.commit(Append("a", "log", b'{"n":1}'))
    await core.commit(DropLogs("a", "log"), Append("a", "log", b'{"n":2}'))
    follow = await Follow.start(log, OLDEST)
    record = await follow.next()
    assert record is not None and record.line == b'{"seq":1,"n":2}\n'


async def test_followers_near_the_end_ask_no_store() -> None:
    class Counting(MemoryStore):
        asked = 0

        async def log(self, agent: str, log: str) -> Any:
            self.asked += 1
            return await super().log(agent, log)

    store = Counting(ManualClock())
    core = Core(store, ManualClock(), Limits())
    follow = await Follow.start(core.logs.durable("a", "log"), OLDEST)
    await core.commit(Append("a", "log", b'{"n":0}'))
    before = store.asked
    for number in range(50):
        assert (record := await follow.next()) is not None and b'"n":%d}' % number in record.line
        await core.commit(Append("a", "log", b'{"n":%d}' % (number + 1)))
    assert store.asked == before


async def test_what_is_kept_at_hand_is_bounded() -> None:
    core = Core(MemoryStore(ManualClock()), ManualClock(), Limits())
    log = core.logs.durable("a", "log")
    for _ in range(40):
        await core.commit(Append("a", "log", b'{"text":"%s"}' % (b"x" * 10_000)))
    recent = log.recent(40)
    assert recent is not None and len(recent) == 1
    assert log.recent(1) is None
    follow = await Follow.start(log, OLDEST)
    for seq in range(1, 41):
        record = await follow.next()
        assert record is not None and record.line.startswith(b'{"seq":%d,' % seq)
