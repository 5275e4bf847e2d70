"""The store contract on both providers: every conformance check, random units against the naive model."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentfs.ports import Append, AtMost, Change, Committed, Delete, DropLogs, Expect, Insert, Put, Store, Trim, Unit
from agentfs.providers.store.memory import MemoryStore
from agentfs.providers.store.sqlite import SqliteStore
from agentfs.rows import AgentRow, EnvelopeRow, KvRow, ReceiptRow
from conformance.store import CHECKS, Check, violation, violations
from conformance.storebench import Bench, letter, value
from conformance.storemodel import Model, differences


class Clock:
    """Never moves."""

    def now_ns(self) -> int:
        return 7

    def monotonic_ns(self) -> int:
        return 7

    async def sleep_until(self, at_ns: int) -> None:
        raise AssertionError


def memory(folder: Path) -> Bench:
    store = MemoryStore(Clock())

    async def opened() -> Store:
        return store

    return Bench(opened, is_durable=False)


def sqlite(folder: Path) -> Bench:
    async def opened() -> Store:
        return await SqliteStore.open(folder / "store.db", Clock())

    return Bench(opened, is_durable=True)


PROVIDERS = (memory, sqlite)
Provider = Callable[[Path], Bench]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("check", CHECKS)
async def test_contract(check: Check, provider: Provider, tmp_path: Path) -> None:
    assert not (found := await violation(check, provider(tmp_path))), found


SMALL = [Unit((Put(value(f"{at}")),)) for at in range(100)]
LARGE = [Unit(tuple(Put(value(f"{at}")) for at in range(100))), Unit((Delete(KvRow, ("a",)),))] * 5


@pytest.mark.parametrize(("units", "fewest"), [(SMALL, 2), (LARGE, 5)], ids=["small", "large"])
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_who_commits_over_and_over_lets_others_have_their_turn(
    provider: Provider, tmp_path: Path, units: list[Unit], fewest: int
) -> None:
    bench, turns = provider(tmp_path), 0
    await bench.start()

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        for unit in units:
            await bench.store.commit(unit)
        nursery.cancel_scope.cancel()
    assert turns >= fewest
    await bench.store.aclose()


names = st.sampled_from("abc")
agents = st.sampled_from("AB")
limits = st.integers(-1, 4)
tables = st.sampled_from([EnvelopeRow, ReceiptRow, KvRow, AgentRow])
rows = st.one_of(
    st.builds(letter, names, agents, st.sampled_from([0, 0, 0, 1, 2, 5])),
    st.builds(value, names, agents, st.binary(max_size=3)),
    st.builds(AgentRow, id=agents, created_at_ns=st.just(0), config=st.text(), config_at_ns=st.just(0)),
)
prefixes = st.one_of(st.just(()), st.tuples(agents))
keys = st.tuples(agents, names)
changes: st.SearchStrategy[Change] = st.one_of(
    st.builds(Insert, rows),
    st.builds(Put, rows),
    st.builds(Append, agents, st.sampled_from("xy"), st.just(b'{"t":1}'), st.booleans(), st.sampled_from([0, 50, 999])),
    st.builds(Delete, tables, prefixes),
    st.builds(Delete, st.sampled_from([EnvelopeRow, KvRow]), keys),
    st.builds(Trim, st.sampled_from([EnvelopeRow, ReceiptRow]), agents, limits),
    st.builds(AtMost, tables, prefixes, limits),
    st.builds(Expect, st.just(KvRow), keys, st.sampled_from(["", "size"]), st.just(1)),
    st.builds(DropLogs, agents, st.sampled_from(["", "trajectory", "l"])),
)
units = st.lists(st.builds(Unit, st.lists(changes, max_size=6).map(tuple)), max_size=8)


async def outcome(store: Store, unit: Unit) -> Committed | int | None:
    try:
        return await store.commit(unit)
    except OSError as exc:
        return exc.errno


async def follow(bench: Bench, sequence: list[Unit]) -> None:
    model = Model()
    store = await bench.start()
    try:
        for unit in sequence:
            done = await outcome(store, unit)
            try:
                wanted: object = tuple(model.commit(unit))
            except OSError as exc:
                wanted = exc.errno
            assert (done.rows if isinstance(done, Committed) else done) == wanted
        assert not await differences(store, model)
        assert not await differences(await bench.reopen(), model)
    finally:
        await bench.store.aclose()


@pytest.mark.parametrize("provider", PROVIDERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sequence=units)
def test_random_units_against_the_model(provider: Provider, sequence: list[Unit]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trio.run(follow, provider(Path(folder)), sequence)


class Careless(MemoryStore):
    """Keeps what a failed unit did before it failed, and does not know it is closed."""

    async def commit(self, unit: Unit) -> Committed:
        for change in unit.changes:
            await super().commit(Unit((change,)))
        return Committed()

    async def aclose(self) -> None:
        return


async def test_the_suite_sees_a_careless_store() -> None:
    def fresh() -> Bench:
        store = Careless(Clock())

        async def opened() -> Store:
            return store

        return Bench(opened, is_durable=False)

    found = {text.partition(":")[0] for text in await violations(fresh)}
    assert {"units_are_atomic", "closing", "facets_name_what_changed", "numbers_rise"} <= found


def mixture(at: int) -> list[Change]:
    """Every third unit fails at its end; every seventh drops and begins a log."""
    changes: list[Change] = [
        Insert(letter(f"{at}")), Append("a", "l", b'{"t":1}', chain=True, limit=200), AtMost(EnvelopeRow, ("a",), 30),
    ]  # fmt: skip
    if at % 7 == 0:
        changes += [DropLogs("a"), Append("a", "l", b"{}")]
    changes.append(Trim(EnvelopeRow, "a", 20))
    return [*changes, Expect(KvRow, ("a", "never"))] if at % 3 == 0 else changes


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_group_of_good_and_bad_units(provider: Provider, tmp_path: Path) -> None:
    """Units that share a transaction with failing ones keep rows, counts, numbers and log heads of their own."""
    bench = provider(tmp_path)
    store, model = await bench.start(), Model()
    sequence = [Unit(tuple(mixture(at))) for at in range(100)]
    results: dict[int, Committed | int | None] = {}

    async def one(at: int) -> None:
        results[at] = await outcome(store, sequence[at])

    async with trio.open_nursery() as nursery:
        for at in range(len(sequence)):
            nursery.start_soon(one, at)
    order = sorted(at for at in results if isinstance(results[at], Committed))
    assert len(order) == 66
    assert all(results[at] == errno.ESTALE for at in range(0, 100, 3))
    order.sort(key=lambda at: results[at].rows[0].seq)  # type: ignore[union-attr]
    for at in order:
        assert tuple(model.commit(sequence[at])) == results[at].rows  # type: ignore[union-attr]
    assert not (found := await differences(store, model)), found
    await store.aclose()
