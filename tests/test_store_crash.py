"""The SQLite store killed in the middle of its work: nothing acknowledged is lost, nothing is there in part."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from agentfs.providers.store.sqlite import SqliteStore
from agentfs.rows import EnvelopeRow, KvRow

CHILD = """
import os, sys, trio
from agentfs.ports import Append, Insert, Put, Trim, Unit
from agentfs.providers.store.sqlite import SqliteStore
from agentfs.rows import ReceiptRow
from conformance.storebench import letter, value

class Clock:
    def now_ns(self): return 1
    def monotonic_ns(self): return 1

async def work(store, name):
    at = 0
    while True:
        unit = f"{name}-{at}"
        body = "x" * (at % 5000)
        done = await store.commit(Unit((
            Insert(letter(unit, name, body=body)), Put(value("last", name, unit.encode())),
            Append(name, "trajectory", b'{"unit":"%s"}' % unit.encode(), chain=True, limit=4096),
            Insert(ReceiptRow(agent=name, id=unit, hash="h", accepted_at_ns=1)), Trim(ReceiptRow, name, 50),
        )))
        os.write(1, f"{unit} {done.rows[0].seq}\\n".encode())
        at += 1

async def main():
    store = await SqliteStore.open(sys.argv[1], Clock())
    os.write(1, b"open\\n")
    async with trio.open_nursery() as nursery:
        for task in range(int(sys.argv[3])):
            nursery.start_soon(work, store, f"{sys.argv[2]}{task}")

trio.run(main)
"""


class Clock:
    """Never moves."""

    def now_ns(self) -> int:
        return 7

    def monotonic_ns(self) -> int:
        return 7

    async def sleep_until(self, at_ns: int) -> None:
        raise AssertionError


def child_on(path: Path, name: str, tasks: int) -> subprocess.Popen[bytes]:
    """A process that has the store open and commits without end."""
    arguments = [sys.executable, "-c", CHILD, str(path), name, str(tasks)]
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    assert child.stdout is not None
    assert child.stdout.readline() == b"open\n"
    return child


def killed(path: Path, name: str, tasks: int, after: int) -> dict[str, int]:
    """Run a child that commits, kill it when *after* units are acknowledged; all it acknowledged."""
    with child_on(path, name, tasks) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(after)]
        child.kill()
        lines += child.stdout.readlines()
    pairs = [line.split() for line in lines if line.endswith(b"\n")]
    return {unit.decode(): int(seq) for unit, seq in pairs}


async def whole(path: Path, acknowledged: dict[str, int]) -> int:
    """Every acknowledged unit is there whole, every other whole or absent; the highest number given."""
    store = await SqliteStore.open(path, Clock())
    try:
        letters = {row.id: row for row in await store.scan(EnvelopeRow)}
        assert {name: letters[name].seq for name in acknowledged} == acknowledged
        for agent in await store.agents(EnvelopeRow):
            rows = await store.scan(EnvelopeRow, agent, by="seq")
            assert [row.id for row in rows] == [f"{agent}-{at}" for at in range(len(rows))], "a gap in a task's units"
            last = await store.get(KvRow, agent, "last")
            assert last is not None
            assert last.value.decode() == rows[-1].id
            assert (await store.log(agent, "trajectory"))[-1].next == len(rows) + 1
        assert not (faults := await store.check()), faults
        return max((row.seq for row in letters.values()), default=0)
    finally:
        await store.aclose()


@pytest.mark.parametrize("tasks", [1, 12])
def test_kills_lose_nothing_acknowledged(tasks: int, tmp_path: Path) -> None:
    path, dice, highest = tmp_path / "store.db", random.Random(tasks), 0
    acknowledged: dict[str, int] = {}
    for turn in range(4):
        new = killed(path, f"t{turn}-", tasks, dice.randrange(300))
        assert min(new.values(), default=highest + 1) > highest, "a number was given twice"
        acknowledged |= new
        highest = trio.run(whole, path, acknowledged)


async def refusal(path: Path) -> OSError:
    with pytest.raises(OSError) as caught:
        await SqliteStore.open(path, Clock())
    return caught.value


async def test_a_rival_is_told_who_has_it(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = await SqliteStore.open(path, Clock())
    exc = await refusal(path)
    assert (exc.errno, f"process {os.getpid()}" in str(exc)) == (errno.EBUSY, True)
    (tmp_path / "other.db").symlink_to(path)
    assert (await refusal(tmp_path / "other.db")).errno == errno.EBUSY
    await store.aclose()
    with child_on(path, "t", 1) as child:
        assert f"process {child.pid} " in str((await refusal(path)).strerror)
        child.kill()
    await (await SqliteStore.open(path, Clock())).aclose()
