"""What the SQLite store keeps of its answers: never older than the file, whatever is under way, and never too much."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_store import Clock, outcome, units

from agentfs.ports import Append, Delete, DropLogs, Expect, Insert, Put, Trim, Unit
from agentfs.providers.store.kept import ANSWER_BYTES, KEPT_BYTES, Kept, touched
from agentfs.providers.store.shape import shape_of
from agentfs.providers.store.sqlite import SqliteStore
from agentfs.rows import TABLES, AgentRow, EnvelopeRow, KvRow, ReceiptRow
from conformance.storebench import commit, letter, value
from conformance.storemodel import Model, differences

Question = Callable[[SqliteStore], Awaitable[Any]]
QUESTIONS: list[Question] = [
    lambda s: s.get(KvRow, "A", "a"),
    lambda s: s.get(EnvelopeRow, "A", "b"),
    lambda s: s.get(AgentRow, "B"),
    lambda s: s.scan(KvRow),
    lambda s: s.scan(KvRow, "A"),
    lambda s: s.scan(AgentRow),
    lambda s: s.scan(EnvelopeRow, "A", by="seq"),
    lambda s: s.scan(EnvelopeRow, "A", by="seq", newest=True, limit=1),
    lambda s: s.scan(EnvelopeRow, "A", after="a"),
    lambda s: s.count(EnvelopeRow),
    lambda s: s.count(ReceiptRow, "B"),
    lambda s: s.total(KvRow, "size", "A"),
    lambda s: s.agents(KvRow),
    lambda s: s.log("A", "x"),
    lambda s: s.log("B", "y"),
    lambda s: s.lines("A", "x", 1),
]


async def opened(folder: Path) -> SqliteStore:
    return await SqliteStore.open(folder / "store.db", Clock())


async def direct(store: SqliteStore, ask: Question) -> Any:
    """What the file says now."""
    kept, store._kept = store._kept, Kept(0)
    try:
        return await ask(store)
    finally:
        store._kept = kept


async def agrees(store: SqliteStore, ask: Question) -> bool:
    """Whether *ask* is answered as the file would; the writer may commit meanwhile."""
    before, answer, after = await direct(store, ask), await ask(store), await direct(store, ask)
    return answer in (before, after)


async def beside(steps: list[Unit | Question | None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = await opened(Path(folder))
        async with trio.open_nursery() as nursery:
            for step in steps:
                if isinstance(step, Unit):
                    nursery.start_soon(outcome, store, step)
                elif step is None:
                    await trio.lowlevel.checkpoint()
                else:
                    assert await agrees(store, step)
        assert not store._kept._under_way
        assert [await agrees(store, ask) for ask in QUESTIONS * 2] == [True] * len(QUESTIONS) * 2
        await store.aclose()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mixed=units.flatmap(lambda some: st.tuples(st.just(some), st.lists(st.sampled_from([*QUESTIONS, None, None])))))
def test_reads_beside_units_under_way(mixed: tuple[list[Unit], list[Question | None]]) -> None:
    some, asked = mixed
    every = max(1, len(asked) // (len(some) + 1))
    steps: list[Unit | Question | None] = list(asked)
    for number, unit in enumerate(some):
        steps.insert(number * (every + 1), unit)
    trio.run(beside, [*QUESTIONS, *steps, *QUESTIONS])


async def one_by_one(sequence: list[Unit]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, model = await opened(Path(folder)), Model()
        for unit in sequence:
            if not isinstance(await outcome(store, unit), int):
                model.commit(unit)
            assert not await differences(store, model)
        await store.aclose()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sequence=units)
def test_every_unit_shows_in_every_read(sequence: list[Unit]) -> None:
    trio.run(one_by_one, sequence)


async def test_what_is_committed_but_not_answered_yet_is_read(tmp_path: Path) -> None:
    """Two rows of one unit are never seen one new and one old."""
    store = await opened(tmp_path)
    await commit(store, Put(value("k", data=b"old")), Put(letter("e")))
    assert await store.get(KvRow, "a", "k") == value("k", data=b"old")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(commit, store, Put(value("k", data=b"new")), Delete(EnvelopeRow, ("a", "e")))
        await trio.testing.wait_all_tasks_blocked()
        store._writer.stop()
        store._writer.join()  # the unit is in the file; the loop had no turn to hear of it
        assert await store.get(EnvelopeRow, "a", "e") is None
        assert await store.get(KvRow, "a", "k") == value("k", data=b"new")
    await store.aclose()


async def test_a_refused_unit_leaves_what_there_was(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await commit(store, Put(value("k", data=b"old")))
    for _ in range(2):
        assert await store.get(KvRow, "a", "k") == value("k", data=b"old")
        unit = Unit((Put(value("k", data=b"new")), Expect(KvRow, ("a", "none"))))
        assert await outcome(store, unit) == errno.ESTALE
    assert await store.get(KvRow, "a", "k") == value("k", data=b"old")
    assert not store._kept._under_way
    await store.aclose()


async def test_a_closed_store_answers_nothing_that_it_kept(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await commit(store, Put(value("k")))
    asked: list[Question] = [lambda s: s.get(KvRow, "a", "k"), lambda s: s.scan(KvRow, "a"), lambda s: s.log("a", "l")]
    for ask in asked * 2:
        await ask(store)
    await store.aclose()
    for ask in asked:
        with pytest.raises(OSError, match="closed") as caught:
            await ask(store)
        assert caught.value.errno == errno.ENOTCONN


async def test_an_answer_is_the_readers_own(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await commit(store, Put(value("k")))
    first = await store.scan(KvRow, "a")
    assert isinstance(first, list)
    first.clear()
    assert await store.scan(KvRow, "a") == [value("k")]
    await store.aclose()


def test_rows_can_be_shared() -> None:
    for table in TABLES:
        assert table.__struct_config__.frozen
        assert set(shape_of(table).kinds) <= {str, int, bytes, bool}, table


@pytest.mark.parametrize(
    ("change", "facets"),
    [
        (Insert(letter("e")), {("a", "inbox")}),
        (Put(AgentRow(id="a", created_at_ns=1, config="", config_at_ns=1)), {("", "agents")}),
        (Delete(KvRow, ("a", "k")), {("a", "kv")}),
        (Delete(KvRow, ()), None),
        (Delete(AgentRow, ()), {("", "agents")}),
        (Trim(ReceiptRow, "a", 1), {("a", "receipts")}),
        (Append("a", "l", b"{}"), {("a", "l")}),
        (DropLogs("a", "l"), {("a", "l")}),
        (DropLogs("a"), None),
        (Expect(KvRow, ("a", "k")), set()),
    ],
)
def test_what_a_unit_may_change(change: Any, facets: set[tuple[str, str]] | None) -> None:
    assert touched(Unit((change,))) == facets


def test_it_holds_no_more_than_it_may() -> None:
    kept = Kept(10_000)
    for number in range(1000):
        kept.keep(number, (f"a{number % 50}", "kv"), [("x" * 100,)], (number,))
        assert kept._size <= 10_000
    assert kept.get(999) == (999,) and kept.get(0) is None
    kept.keep("large", ("a", "kv"), [(b"x" * (ANSWER_BYTES + 1),)], ("large",))
    kept.keep("many", ("a", "kv"), [("x",)] * 1000, ("many",))
    assert kept.get("large") is None and kept.get("many") is None
    for number in range(50):
        kept.begin({(f"a{number}", "kv")})
    assert not kept._answers and not kept._asked and not kept._size
    assert KEPT_BYTES < 1 << 24


def test_nothing_is_kept_of_what_is_under_way() -> None:
    kept = Kept()
    one, other = ("a", "kv"), ("b", "kv")
    kept.begin({one})
    kept.begin({one, other})
    kept.end({one})
    kept.keep(1, one, [], ())
    kept.end({one, other})
    kept.keep(2, one, [], ())
    assert kept.get(1) is None and kept.get(2) == ()
    kept.begin(None)
    kept.keep(3, other, [], ())
    assert kept.get(2) is None and kept.get(3) is None
    kept.end(None)
    kept.keep(3, other, [], ())
    assert kept.get(3) == () and not kept._under_way
