"""The tree of another runtime over its HTTP face: the file suite on it, and what only a remote one can do or suffer."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from pathlib import Path as FsPath

import anyio
import pytest
import trio
from faces import put, whole
from test_conformance import bench_of

from agentfs.providers.remote import RemoteService
from agentfs.types import Mode, Path
from conformance.drivers import ALL, STORES, Driver, Runtime
from conformance.golden import TRANSCRIPTS, Player
from conformance.suite import violations

# httpx leaves the generators of a stream that was cancelled half-way to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(params=STORES)
async def runtime(request: pytest.FixtureRequest, tmp_path: FsPath) -> AsyncIterator[Runtime]:
    runtime = Runtime(request.param, tmp_path, fuse=False)
    await trio.to_thread.run_sync(runtime.start)
    try:
        yield runtime
    finally:
        with trio.CancelScope(shield=True):
            assert await trio.to_thread.run_sync(runtime.stop) == 0, runtime.log.read_text()[-2000:]
    assert '"level":"error"' not in runtime.log.read_text(), runtime.log.read_text()[-4000:]


@pytest.fixture
async def driver(runtime: Runtime) -> AsyncIterator[Driver]:
    async with RemoteService(runtime.url, runtime.token) as service:
        yield Driver("remote", service, ALL)


@pytest.mark.timeout(240)
async def test_the_file_suite(driver: Driver) -> None:
    bench = bench_of(await driver.agent("subject"), driver)
    found = await violations(bench)
    assert found == [], "\n".join(found)
    assert not [note for note in bench.notes if "not expressed" in note]


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda path: path.stem)
async def test_golden_transcripts(driver: Driver, transcript: FsPath) -> None:
    assert await Player(await driver.agent("golden")).play(transcript.read_text()) == []  # noqa: ASYNC240


async def test_units_commit_in_their_write(driver: Driver) -> None:
    """A new document too; only the place in a queue is not held by an open."""
    agent = await driver.agent("full", overflow={"policy": "reject", "max_depth": 1})
    await put(agent, b"pause\n", "ctl")
    with pytest.raises(OSError) as caught:
        async with await agent.create(Path("schedule/bad"), Mode.WRITE) as handle:
            await handle.write(b'{"nosuch": 1}', 0)
    assert caught.value.errno == errno.EINVAL
    async with await agent.create(Path("schedule/daily"), Mode.WRITE) as handle:
        await handle.write(b'{"at": "2200-01-01T00:00:00Z", "payload": 1}', 0)
        assert "daily" in [st.name for st in await agent.list(Path("schedule"))]
    async with await agent.open(Path("inbox"), Mode.WRITE) as one, await agent.open(Path("inbox"), Mode.WRITE) as two:
        await one.write(b'{"id": "m1", "payload": 1}', 0)
        with pytest.raises(BlockingIOError):
            await two.write(b'{"id": "m2", "payload": 2}', 0)
        assert await two.write(b"\n", 0) == 1


async def test_waiting_for_a_stream_reads_nothing_away(driver: Driver) -> None:
    agent = await driver.agent("watched")
    async with await agent.open(Path("outbox@follow"), Mode.READ) as handle:
        with anyio.move_on_after(0.02):
            await handle.wait_ready()
        assert not handle.is_ready()
        await put(agent, b'{"payload": "seen"}')
        with anyio.fail_after(60):
            await handle.wait_ready()
            assert handle.is_ready()
            assert await handle.read(1, 0) + await handle.read(1 << 16, 1) == await whole(agent, "outbox")
