"""The rules every Store keeps: small checks, each given a fresh store, run one by one or all at once.

It knows the port and nothing of any provider; what only a durable store promises is asked of durable benches.
"""

from __future__ import annotations

import errno
import hashlib
import json
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

import anyio
import anyio.lowlevel

from agentfs.ports import Append, AtMost, Change, Delete, DropLogs, Expect, Insert, Put, Trim, Unit
from agentfs.rows import AgentRow, AlarmRow, EnvelopeRow, KvRow, ReceiptRow, Row, StateRow
from agentfs.types import names_of
from conformance.storebench import Bench, commit, letter, names, refused, value
from conformance.storemodel import Model, differences

Check: TypeAlias = Callable[[Bench], Awaitable[None]]


async def rows_come_back_whole(bench: Bench) -> None:
    """Every column type, empty and extreme values and odd text are read as they were written."""
    odd = "é€😀 \"'\\\x00\n;--"
    rows: list[Row] = [
        AgentRow(id="a", created_at_ns=-(1 << 63), config=odd, config_at_ns=(1 << 63) - 1, is_paused=True),
        StateRow(agent="a", state="x" * (1 << 20)),
        AlarmRow(agent="a", name=odd, spec="", next_at_ns=None, last_at_ns=0, changed_at_ns=0),
        value("k", data=bytes(range(256)) * 40), value("", data=b""),
    ]  # fmt: skip
    assert list(await commit(bench.store, *map(Insert, rows))) == rows
    store = await bench.reopen()
    for row in rows:
        key = [getattr(row, name) for name in type(row).KEY]
        got = await store.get(type(row), *key)
        assert got == row, f"{type(row).TABLE} came back as {got!r:.200}"
        assert [type(v) for v in _values(got)] == [type(v) for v in _values(row)]
    assert await store.get(KvRow, "a", "absent") is None


def _values(row: Row) -> list[object]:
    return [getattr(row, name) for name in row.__struct_fields__]


async def insert_put_delete(bench: Bench) -> None:
    """Insert refuses a taken key, Put replaces, Delete takes a prefix and is content with nothing."""
    store = bench.store
    await commit(store, Insert(value("k")), Put(value("k", data=b"new")), Insert(value("k", "b")))
    await refused(store, errno.EEXIST, Insert(value("k")))
    await refused(store, errno.EAGAIN, Insert(value("k"), errno=errno.EAGAIN))
    assert await store.get(KvRow, "a", "k") == value("k", data=b"new")
    await commit(store, Delete(KvRow, ("a", "absent")), Delete(KvRow, ("absent",)))
    await commit(store, Delete(KvRow, ("a", "k")), Insert(value("k")), Insert(value("l")))
    await commit(store, Delete(KvRow, ("a",)))
    assert await store.scan(KvRow) == [value("k", "b")]
    await commit(store, Delete(KvRow, ()))
    assert await store.count(KvRow) == 0


async def preconditions(bench: Bench) -> None:
    """Expect and AtMost hold where they stand among the changes, and fail with the errno they carry."""
    store = bench.store
    await refused(store, errno.ESTALE, Expect(KvRow, ("a", "k")))
    await commit(store, Insert(value("k")), Expect(KvRow, ("a", "k")), Expect(KvRow, ("a", "k"), "size", 1))
    await refused(store, errno.ESTALE, Expect(KvRow, ("a", "k"), "size", 2))
    await refused(store, errno.EBUSY, Expect(KvRow, ("a", "k"), "value", b"w", errno=errno.EBUSY))
    alarm = AlarmRow(agent="a", name="n", spec="", next_at_ns=None, changed_at_ns=0)
    await commit(store, Insert(alarm), Expect(AlarmRow, ("a", "n"), "next_at_ns", None))
    agent = AgentRow(id="a", created_at_ns=0, config="", config_at_ns=0, is_paused=True)
    await commit(store, Insert(agent), Expect(AgentRow, ("a",), "is_paused", value=True))
    await commit(store, AtMost(KvRow, ("a",), 1), Insert(value("l")), AtMost(KvRow, ("a",), 2), AtMost(KvRow, (), 2))
    await refused(store, errno.ENOBUFS, Insert(value("m")), AtMost(KvRow, ("a",), 2))
    await refused(store, errno.ENOSPC, AtMost(KvRow, (), 1, errno=errno.ENOSPC))
    await commit(store, Put(value("l")), Insert(value("m")), Delete(KvRow, ("a", "m")), AtMost(KvRow, ("a",), 2))
    await commit(store, AtMost(KvRow, ("b",), 0), AtMost(KvRow, ("a", "k"), 1))
    await refused(store, errno.ENOBUFS, AtMost(KvRow, ("a", "k"), 0))


async def units_are_atomic(bench: Bench) -> None:
    """A failing change in any position leaves nothing of its unit, and no trace in any other."""
    store, model = bench.store, Model()
    first: list[Change] = [Insert(letter("old")), Insert(value("k")), Append("a", "log", b"{}", chain=True, limit=50)]
    await commit(store, *first)
    model.commit(Unit(tuple(first)))
    good: list[Change] = [
        Insert(letter("new")), Put(value("k", data=b"changed")), Append("a", "log", b'{"n":1}', chain=True, limit=50),
        Delete(EnvelopeRow, ("a", "old")), Insert(value("k", "b")), Trim(EnvelopeRow, "a", 0),
        Append("b", "log", b"{}"), DropLogs("a"), Append("a", "log", b"{}"),
    ]  # fmt: skip
    bad: list[Change] = [
        Insert(AgentRow(id="x", created_at_ns=0, config="", config_at_ns=0)), Expect(KvRow, ("z", "z")),
        AtMost(StateRow, (), -1),
    ]  # fmt: skip
    await commit(store, bad[0])
    model.commit(Unit((bad[0],)))
    for failing in bad:
        for at in range(len(good) + 1):
            try:
                await store.commit(Unit((*good[:at], failing, *good[at:])))
            except OSError:
                assert not (found := await differences(store, model)), f"{failing} at {at}: {found}"
            else:
                raise AssertionError(f"{failing} at {at} was committed")
    rows = await commit(store, *good)
    assert rows == tuple(model.commit(Unit(tuple(good))))
    assert not (found := await differences(await bench.reopen(), model)), found


async def malformed_units_are_refused(bench: Bench) -> None:
    """What no store can keep is EINVAL or EILSEQ, and the rest of its unit is not kept either."""
    bad: list[tuple[int, Change]] = [
        (errno.EILSEQ, Put(value("\ud800"))), (errno.EINVAL, Put(value("k", data="text"))),  # type: ignore[arg-type]
        (errno.EINVAL, Put(letter("x", seq=1 << 63))), (errno.EINVAL, Put(letter("x", seq=-1))),
        (errno.EINVAL, Put(letter("x", body=None))), (errno.EINVAL, Append("a", "l", b"[]")),  # type: ignore[arg-type]
        (errno.EINVAL, Append("a", "l", b"{}\n")), (errno.EILSEQ, Append("a", "l", b'{"x":"\xff"}')),
        (errno.EINVAL, Delete(KvRow, ("a", "b", "c"))), (errno.EINVAL, Expect(KvRow, ("a",))),
        (errno.EINVAL, Expect(KvRow, ("a", "k"), "absent")), (errno.EINVAL, Trim(KvRow, "a", 1)),
        (errno.EINVAL, AtMost(KvRow, (5,), 1)), (errno.EINVAL, DropLogs(None)),  # type: ignore[arg-type]
    ]  # fmt: skip
    for code, change in bad:
        await refused(bench.store, code, Put(value("good")), change)
    for bad_scan in ({"by": "body"}, {"by": "seq", "after": "x"}, {"after": 5}):
        try:
            await bench.store.scan(EnvelopeRow, "a", **bad_scan)
        except OSError as exc:
            assert exc.errno == errno.EINVAL
        else:
            raise AssertionError(f"scan took {bad_scan}")
    assert not await differences(bench.store, Model())


async def numbers_rise(bench: Bench) -> None:
    """Numbers are the store's, rise in commit order over all tables and are never given twice."""
    store = bench.store
    first = await commit(store, Insert(letter("a")), Put(ReceiptRow(agent="b", id="r", hash="h", accepted_at_ns=1)))
    seqs = [row.seq for row in first]  # type: ignore[attr-defined]
    assert seqs[0] > 0
    assert seqs[1] > seqs[0]
    await commit(store, Delete(EnvelopeRow, ("a",)), Delete(ReceiptRow, ()))
    store = await bench.reopen()
    (row,) = await commit(store, Insert(letter("c")))
    assert row.seq > seqs[1], "a number was given twice"  # type: ignore[attr-defined]
    await commit(store, Put(letter("d", seq=1000)), Put(letter("c", seq=row.seq)))  # type: ignore[attr-defined]
    await refused(store, errno.EINVAL, Insert(letter("e", seq=1000)))
    await refused(store, errno.EEXIST, Insert(letter("d", seq=1000)))
    await commit(store, Delete(EnvelopeRow, ("a", "d")))
    store = await bench.reopen()
    (row,) = await commit(store, Insert(letter("f")))
    assert row.seq == 1001, f"an explicit number was not passed over: {row}"  # type: ignore[attr-defined]


async def scans_are_ordered_and_paged(bench: Bench) -> None:
    """By key and by index, forwards and back, behind a place, in pages; other agents' rows never show."""
    store = bench.store
    keys = ["", "Z", "a", "a\x00", "a/b", "aa", "b", "é", "😀"]
    mixed = random.Random(7).sample(keys, len(keys))
    await commit(store, *(Insert(letter(key)) for key in mixed), Insert(letter("q", "A")), Insert(letter("q", "ab")))
    assert [row.id for row in await store.scan(EnvelopeRow, "a")] == keys
    assert [row.id for row in await store.scan(EnvelopeRow, "a", newest=True, limit=2)] == ["😀", "é"]
    assert [row.id for row in await store.scan(EnvelopeRow, "a", newest=True, after="aa")] == keys[4::-1]
    assert [row.id for row in await store.scan(EnvelopeRow, "a", after="a", limit=1)] == ["a\x00"]
    assert [row.agent for row in await store.scan(EnvelopeRow, after="A")] == ["a"] * len(keys) + ["ab"]
    assert [row.id for row in await store.scan(EnvelopeRow, "a", by="seq")] == mixed
    assert [row.id for row in await store.scan(EnvelopeRow, by="seq")] == [*mixed, "q", "q"]
    assert [row.id for row in await store.scan(EnvelopeRow, "a", "aa")] == ["aa"]
    assert not await store.scan(EnvelopeRow, "a", limit=0)
    for newest in (False, True):
        paged: list[str] = []
        place: int | None = None
        while page := await store.scan(EnvelopeRow, "a", by="seq", after=place, limit=2, newest=newest):
            paged += [row.id for row in page]
            place = page[-1].seq
        assert paged == (mixed[::-1] if newest else mixed)
    assert list(await store.agents(EnvelopeRow)) == ["A", "a", "ab"]
    await commit(store, Put(value("k", data=b"123")), Put(value("l", data=b"45")), Put(value("m", "b")))
    assert (await store.total(KvRow, "size", "a"), await store.total(KvRow, "size")) == (5, 6)
    assert await store.total(StateRow, "version", "a") == 0


async def trim_keeps_the_newest(bench: Bench) -> None:
    """Trim removes the oldest by number, of one agent, and counts what its own unit added."""
    store = bench.store
    await commit(store, *(Insert(letter(name)) for name in "abcde"), Insert(letter("z", "b")))
    await commit(store, Trim(EnvelopeRow, "a", 9), Trim(EnvelopeRow, "a", 4))
    assert await names(store, EnvelopeRow, "a") == "bcde"
    await commit(store, Insert(letter("f")), Trim(EnvelopeRow, "a", 2), Insert(letter("a")))
    assert await names(store, EnvelopeRow, "a") == "efa"
    await commit(store, Put(letter("e", seq=0)), Trim(EnvelopeRow, "a", 1))
    assert (await names(store, EnvelopeRow, "a"), await names(store, EnvelopeRow, "b")) == ("e", "z")


async def logs_hold_exact_bytes(bench: Bench) -> None:
    """Lines are composed as documented and read exactly, by number and by offset, across a restart."""
    store = bench.store
    assert not await store.log("a", "l")
    docs = [b'{"t":"%d"}' % at for at in range(30)]
    done = await store.commit(Unit(tuple(Append("a", "l", doc) for doc in docs)))
    store = await bench.reopen()
    (head,) = await store.log("a", "l")
    lines = [b'{"seq":%d,"t":"%d"}\n' % (at + 1, at) for at in range(30)]
    assert [record.line for record in done.records] == lines
    assert [record.cursor for record in done.records] == [f"{head.epoch}-{at + 1}" for at in range(30)]
    assert (head.generation, head.first, head.next, head.size) == (1, 1, 31, sum(map(len, lines)))
    end = 0
    for at, line in enumerate(lines):
        for offset in (end, end + 1, end + len(line) - 1):
            (got,) = await store.lines("a", "l", 1, offset=offset, limit=1)
            assert (got.seq, got.line, got.end) == (at + 1, line, end + len(line)), f"offset {offset}"
        end += len(line)
    assert [line.seq for line in await store.lines("a", "l", 1, seq=29)] == [29, 30]
    assert [line.seq for line in await store.lines("a", "l", 1, seq=3, offset=head.size - 1)] == [30]
    assert not await store.lines("a", "l", 1, offset=head.size)
    assert not await store.lines("a", "l", 2)
    assert len(await store.lines("a", "l", 1, limit=7)) == 7


async def logs_rotate(bench: Bench) -> None:
    """At its limit a log begins a new generation: a new epoch, numbers and hashes going on, one kept behind."""
    store, epochs = bench.store, []
    prev, seq = "0" * 64, 1
    for _ in range(4):
        for _ in range(2):
            done = await store.commit(Unit((Append("a", "trajectory", b'{"t":1}', chain=True, limit=100),)))
            (record,) = done.records
            doc = json.loads(record.line)
            assert (doc["seq"], doc["prev"]) == (seq, prev), f"chain breaks at {seq}: {doc}"
            prev, seq = hashlib.sha256(record.line).hexdigest(), seq + 1
        store = await bench.reopen()
        epochs.append((await store.log("a", "trajectory"))[-1].epoch)
    heads = await store.log("a", "trajectory")
    assert [(h.generation, h.first, h.next) for h in heads] == [(3, 5, 7), (4, 7, 9)]
    assert len(set(epochs)) == 4
    assert [h.epoch for h in heads] == epochs[2:]
    assert heads[-1].tail_hash == prev
    assert not await store.lines("a", "trajectory", 2)
    await commit(store, Append("b", "trajectory", b"{}"), Append("a", "other", b"{}"), DropLogs("a"))
    assert not await store.log("a", "trajectory")
    assert len(await store.log("b", "trajectory")) == 1
    await commit(store, Append("a", "trajectory", b"{}", chain=True))
    (head,) = await store.log("a", "trajectory")
    assert (head.generation, head.first, head.next) == (1, 1, 2)
    assert head.epoch not in epochs
    await commit(store, Append("b", "other", b"{}"), DropLogs("b", "trajectory"))
    assert not await store.log("b", "trajectory") and len(await store.log("b", "other")) == 1
    full = Append("c", "l", b'{"t":1}', limit=16)  # its line has 16 bytes: at its limit, not only over it
    await commit(store, full, full)
    assert [h.first for h in await store.log("c", "l")] == [1, 2]


async def facets_name_what_changed(bench: Bench) -> None:
    """A commit says which tables and logs of which agents it touched, no more and no less."""
    store = bench.store
    agent = AgentRow(id="a", created_at_ns=0, config="", config_at_ns=0)
    done = await store.commit(
        Unit((Insert(letter("x")), Put(value("k", "b")), Append("c", "log", b"{}"), Insert(agent)))
    )
    inbox, kv, agents = ("a", "inbox"), ("b", "kv"), ("", "agents")
    names = {names_of(facet) for facet in (inbox, kv, agents)}
    assert done.facets == {inbox, kv, ("c", "log"), agents} | names
    assert (await store.commit(Unit((Put(value("k", "b")), Put(agent))))).facets == {kv, agents}
    assert (await store.commit(Unit((Put(value("new", "b")),)))).facets == {kv, names_of(kv)}
    quiet = (Delete(KvRow, ("z",)), Trim(EnvelopeRow, "a", 5), Expect(KvRow, ("b", "k")), AtMost(KvRow, (), 9))
    assert (await store.commit(Unit((*quiet, DropLogs("z"))))).facets == frozenset()
    done = await store.commit(
        Unit((Trim(EnvelopeRow, "a", 0), Delete(KvRow, ()), DropLogs("c"), Delete(AgentRow, ("a",))))
    )
    assert done.facets == {inbox, kv, ("c", "log"), agents} | names
    assert (await store.commit(Unit(()))).rows == ()


async def concurrent_commits(bench: Bench) -> None:
    """64 tasks: each unit once and whole, the failing ones alone, order kept within a task."""
    store, stored, failed = bench.store, set[int](), list[int]()

    async def write(task: int) -> None:
        for at in range(8):
            row = letter(f"{task}-{at}", agent=f"a{task % 4}")
            unit = Unit((Insert(row), Append("a", "l", b'{"t":"%d-%d"}' % (task, at)), Insert(value(f"{at}"))))
            try:
                stored.add((await store.commit(unit)).rows[0].seq)  # type: ignore[attr-defined]
            except OSError as exc:
                assert exc.errno == errno.EEXIST
                failed.append(task)
                (kept,) = await commit(store, Insert(row))
                stored.add(kept.seq)  # type: ignore[attr-defined]

    async with anyio.create_task_group() as group:
        for task in range(64):
            group.start_soon(write, task)
    assert (len(stored), len(failed)) == (512, 504)
    assert await store.count(EnvelopeRow) == 512
    (head,) = await store.log("a", "l")
    assert head.next == 9
    for agent in range(4):
        ids = [row.id.split("-") for row in await store.scan(EnvelopeRow, f"a{agent}", by="seq")]
        for task in range(agent, 64, 4):
            assert [int(at) for who, at in ids if int(who) == task] == list(range(8)), "order of a task was lost"
    assert not await store.check()


async def cancelled_callers(bench: Bench) -> None:
    """A unit is whole or absent whenever its caller is cancelled; one never handed over has no effect."""
    store = bench.store
    with anyio.CancelScope() as scope:
        scope.cancel()
        await commit(store, Insert(letter("never")))
    assert scope.cancelled_caught
    async with anyio.create_task_group() as group:
        for at in range(40):
            group.start_soon(commit, store, Insert(letter(f"{at}")), Insert(value(f"{at}")))
        await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    await commit(store, Put(value("barrier")))
    ids = {row.id for row in await store.scan(EnvelopeRow, "a")}
    assert "never" not in ids
    assert ids == {row.key for row in await store.scan(KvRow, "a")} - {"barrier"}
    assert not await store.check()


async def closing(bench: Bench) -> None:
    """Close finishes what was handed over, is idempotent, and afterwards everything is ENOTCONN."""
    store, done = bench.store, list[str]()

    async def write(name: str) -> None:
        try:
            await commit(store, Insert(letter(name)))
            done.append(name)
        except OSError as exc:
            assert exc.errno == errno.ENOTCONN

    async with anyio.create_task_group() as group:
        for at in range(20):
            group.start_soon(write, f"{at}")
        group.start_soon(store.aclose)
        group.start_soon(store.aclose)
    await store.aclose()
    calls = (partial(store.commit, Unit(())), partial(store.get, KvRow, "a", "k"), store.usage, store.check)
    for call in (*calls, partial(store.scan, KvRow), partial(store.log, "a", "l"), partial(store.lines, "a", "l", 1)):
        try:
            await call()
        except OSError as exc:
            assert exc.errno == errno.ENOTCONN
        else:
            raise AssertionError("a closed store answered")
    if bench.is_durable:
        again = await bench.reopen()
        assert {row.id for row in await again.scan(EnvelopeRow, "a")} == set(done)


async def usage_grows(bench: Bench) -> None:
    """Usage is positive and grows with what is stored; something is free."""
    before, free = await bench.store.usage()
    await commit(bench.store, *(Put(value(f"{at}", data=bytes(10_000))) for at in range(20)))
    after, _ = await bench.store.usage()
    assert after - before >= 200_000
    assert free > 0


async def ten_thousand_rows(bench: Bench) -> None:
    """Ten thousand rows of one agent: pages, a bound, a trim and a delete stay right."""
    store = bench.store
    for base in range(0, 10_000, 1000):
        await commit(store, *(Insert(letter(f"{at:05}")) for at in range(base, base + 1000)))
    await refused(store, errno.ENOBUFS, Insert(letter("x")), AtMost(EnvelopeRow, ("a",), 10_000))
    middle = await store.get(EnvelopeRow, "a", "05000")
    assert middle is not None
    page = await store.scan(EnvelopeRow, "a", by="seq", after=middle.seq, limit=3)
    assert [row.id for row in page] == ["05001", "05002", "05003"]
    await commit(store, Trim(EnvelopeRow, "a", 10))
    assert [row.id for row in await store.scan(EnvelopeRow, "a")] == [f"{at:05}" for at in range(9990, 10_000)]


CHECKS: tuple[Check, ...] = (
    rows_come_back_whole, insert_put_delete, preconditions, units_are_atomic, malformed_units_are_refused,
    numbers_rise, scans_are_ordered_and_paged, trim_keeps_the_newest, logs_hold_exact_bytes, logs_rotate,
    facets_name_what_changed, concurrent_commits, cancelled_callers, closing, usage_grows, ten_thousand_rows,
)  # fmt: skip


async def violation(check: Check, bench: Bench) -> str:
    """What *check* finds wrong with the fresh store of *bench*; empty when nothing is."""
    await bench.start()
    try:
        await check(bench)
    except Exception as exc:  # noqa: BLE001 (whatever a store does wrong is this suite's result)
        return f"{getattr(check, '__name__', check)}: {type(exc).__name__}: {exc}"
    finally:
        await bench.store.aclose()
    return ""


async def violations(fresh: Callable[[], Bench]) -> list[str]:
    """Run every check on a bench of its own; all misbehaviours found."""
    return [text for check in CHECKS if (text := await violation(check, fresh()))]
