"""The file suite on everything that is registered, by every driver, over each store; and on services good and bad."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path as FsPath

import anyio
import msgspec
import pytest
from faces import call, put, whole
from httpfs import Running, running

from agentfs.service import FileHandle, FileService
from agentfs.services import discover
from agentfs.types import Mode, Path
from agentfs.views import Below
from conformance.bench import TIERS, Bench
from conformance.drivers import PROGRAM, STORES, Driver, Runtime
from conformance.golden import TRANSCRIPTS, Player, needs
from conformance.overhttp import HttpTree, Wire
from conformance.suite import violations

HERE = FsPath(__file__).parent
# httpx leaves the generators of a stream that was cancelled half-way to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
SAMPLES = {
    "inbox": b'{"payload": "x"}',
    "config": msgspec.json.encode({"program": PROGRAM}),
    "queue/overflow": b'{"policy": "reject", "max_depth": 900}',
}


def bench_of(agent: FileService, driver: Driver) -> Bench:
    """The agent's files to the suite; a message, and a payment that needs approval, make every log of it grow."""
    seen, own = 0, Below(driver.tree, Path("views/subject"))

    async def stir() -> None:
        nonlocal seen
        seen += 1
        async with await agent.open(Path("inbox"), Mode.WRITE) as handle:
            await handle.write(b'{"payload": "stir %d"}' % seen, 0)
        with pytest.raises(PermissionError):
            await call(own, "effects/new", {"provider": "bank", "request": seen, "max_cost_usd": 600_000})
        with anyio.fail_after(60):
            while not (await whole(agent, "outbox")).count(b'"payload":"stir %d"' % seen):  # noqa: ASYNC110
                await anyio.sleep(0.02)  # a mount and HTTP have no other event than their streams
            while b'"queue_depth": 0' not in await whole(agent, "status"):  # noqa: ASYNC110
                await anyio.sleep(0.02)

    samples: dict[str, bytes] = dict(SAMPLES)
    return Bench(agent, driver.expresses, samples, stir)


@pytest.mark.timeout(240)
async def test_every_registered_service(driver: Driver) -> None:
    agent = await driver.agent("subject")
    bench = bench_of(agent, driver)
    found = await violations(bench)
    assert found == [], "\n".join(found)
    tops = {path.partition("/")[0] for path, _ in bench.found}
    for service in discover():
        assert (service.at or {"mail": "inbox"}.get(service.name, service.name)) in tops, service.name


@pytest.mark.timeout(240)
@pytest.mark.parametrize("driver", ["pyfuse3-memory"], indirect=True)
async def test_the_other_binding(driver: Driver) -> None:
    agent = await driver.agent("subject")
    found = await violations(bench_of(agent, driver))
    assert found == [], "\n".join(found)


async def test_envelope_idempotency(driver: Driver) -> None:
    """The same id twice is one message; with another body it is refused, and nothing is lost."""
    agent = await driver.agent("twice")
    for _ in range(3):
        await put(agent, b'{"id": "m1", "payload": "once"}')
    with pytest.raises(FileExistsError):
        await put(agent, b'{"id": "m1", "payload": "other"}')
    await put(agent, b'{"id": "m2", "payload": "last"}')
    with anyio.fail_after(60):
        while b'"last"' not in await whole(agent, "outbox"):  # noqa: ASYNC110
            await anyio.sleep(0.02)
    replies = (await whole(agent, "outbox")).splitlines()
    assert [msgspec.json.decode(line)["payload"] for line in replies] == ["once", "last"]


async def test_overflow_through_the_files(driver: Driver) -> None:
    """A full inbox refuses at open with EAGAIN; a dead letter moved to the queue is replayed under its id."""
    agent = await driver.agent("full", overflow={"policy": "dead_letter", "max_depth": 1, "dead_letter_max": 1})
    await put(agent, b"pause\n", "ctl")
    await put(agent, b'{"id": "m1", "payload": "kept"}')
    await put(agent, b'{"id": "m2", "payload": "moved"}')
    with pytest.raises(BlockingIOError):
        await put(agent, b'{"id": "m3", "payload": "refused"}')
    assert (await whole(agent, "deadletter/count")).strip() == b"1"
    assert [st.name for st in await agent.list(Path("queue"))] == ["m1.json", "overflow"]
    await agent.remove(Path("queue/m1.json"))
    await agent.rename(Path("deadletter/m2.json"), Path("queue/m2.json"))
    assert [st.name for st in await agent.list(Path("queue"))] == ["m2.json", "overflow"]
    await put(agent, b"resume\n", "ctl")
    with anyio.fail_after(60):
        while b'"moved"' not in await whole(agent, "outbox"):  # noqa: ASYNC110
            await anyio.sleep(0.02)


GOOD_AND_BAD = """
from agentfs.service import FileService
from agentfs.tree import Call, Dir, Entry, File, Info, Tree

async def read(at): return b"text\\\\n"

def good():
    return Tree(File(name="a", read=read), Dir(name="d", entries=[File(name="b", read=read)]))

class Bad(Tree):
    async def list(self, path, after="", limit=1000):
        return await super().list(path, "", 1000)

def bad():
    return Bad(File(name="a", read=read), File(name="b", read=read))
"""


@pytest.mark.parametrize(("factory", "code"), [("good", 0), ("bad", 1), ("absent", 2)])
def test_the_command(tmp_path: FsPath, factory: str, code: int) -> None:
    (tmp_path / "someones.py").write_text(GOOD_AND_BAD.replace("\\\\", "\\"))
    done = subprocess.run(
        [sys.executable, "-m", "conformance", f"someones:{factory}"], text=True, capture_output=True, timeout=60,
        check=False, env={"PYTHONPATH": f"{tmp_path}:{HERE.parent}", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == code, done
    assert bool(done.stdout) is (code == 1)


@asynccontextmanager
async def watching() -> AsyncIterator[tuple[Running, FileHandle]]:
    """A face with one event, and a watch of it over HTTP that has read this one."""
    async with running() as it:
        it.world.events.append(b'{"n":1}')
        wire = Wire(f"http://{it.address}", "op")
        async with wire.client, await HttpTree(wire).open(Path("events@0"), Mode.READ) as handle:
            assert b'"n":1' in await following(handle)
            yield it, handle


async def following(handle: FileHandle) -> bytes:
    with anyio.fail_after(60):
        record = await handle.next()
    return record.line if record else b""


async def test_a_watch_may_be_cancelled_at_any_point() -> None:
    """While it waits, and while it connects again: the next read still gets the very next record."""
    async with watching() as (it, handle):
        for _ in range(3):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await handle.next()
            assert scope.cancelled_caught
        it.world.events.append(b'{"n":2}')
        assert b'"n":2' in await following(handle)


async def test_a_watch_of_a_face_that_drains_says_so() -> None:
    async with watching() as (it, handle):
        await it.face.close()
        with pytest.raises(OSError) as caught:
            await following(handle)
        assert caught.value.errno == errno.ENOTCONN


def test_every_tier_has_rules() -> None:
    from conformance.suite import RULES

    assert {rule.tier for rule in RULES} == set(TIERS)
    assert len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda path: path.stem)
async def test_golden_transcripts(driver: Driver, transcript: FsPath) -> None:
    text = transcript.read_text()  # noqa: ASYNC240
    if missing := needs(text) - driver.expresses:
        assert missing == {"open"} and driver.name == "http"  # a request is open, write and close in one
        return
    assert await Player(await driver.agent("golden")).play(text) == []


@pytest.mark.parametrize(("store", "binding"), [("memory", "pyfuse3"), *((store, "wire") for store in STORES)])
def test_posix_by_path_only(tmp_path: FsPath, store: str, binding: str) -> None:
    runtime = Runtime(store, tmp_path, settings=[f"fuse_binding={binding}"])
    runtime.start()
    try:
        (runtime.place / "agents/posix").mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "conformance.posix", str(runtime.place / "agents/posix/kv")],
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, ""), done
    finally:
        assert runtime.stop() == 0, runtime.log.read_text()[-2000:]
