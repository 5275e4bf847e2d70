"""The tree of another runtime over its HTTP face: the file suite on it, and what only a remote one can do or suffer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path as FsPath

import pytest
import trio
from test_conformance import bench_of

from agentfs.providers.remote import RemoteService
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
