"""Keys of providers in a whole runtime: set, rotated and brought along by callers; used, and nowhere written."""

from __future__ import annotations

import base64
import errno
import json
from collections.abc import AsyncIterator
from pathlib import Path as FsPath
from typing import Any

import fake_anthropic
import pytest
import trio
from engines import fails
from faces import call, load, put, whole
from fake_anthropic import FakeAnthropic
from test_compute import chat, ended, pair

from agentfs.service import FileService
from agentfs.types import Mode, Path
from conformance.drivers import Driver, Runtime

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # see test_compute
FIRST, SECOND, OWN, WRONG = (f"sk-{name}-0123456789abcdef" for name in ("first", "second", "own", "wrong"))


@pytest.fixture
async def claude() -> AsyncIterator[FakeAnthropic]:
    async with fake_anthropic.serving() as fake:
        yield fake


@pytest.fixture
async def driver(tmp_path: FsPath, claude: FakeAnthropic) -> AsyncIterator[Driver]:
    place = {"claude": {"kind": "anthropic", "url": claude.url, "key": "secret:claude"}}
    runtime = Runtime("sqlite", tmp_path, fuse=False, settings=[f"providers={json.dumps(place)}", "log_level=debug"])
    await trio.to_thread.run_sync(runtime.start)
    try:
        async with runtime.http() as driver:
            yield driver
    finally:
        with trio.CancelScope(shield=True):
            assert await trio.to_thread.run_sync(runtime.stop) == 0


async def submitted(own: FileService, text: str, **more: Any) -> str:
    """A job, as soon as the provider's list is there: the runtime asks for one again after a second."""
    with trio.fail_after(60):
        while True:
            try:
                made = await call(own, "compute/new", chat(text, "claude/echo", max_cost_usd=10, **more))
            except FileNotFoundError:
                await trio.lowlevel.checkpoint()
            else:
                return str(made["job_id"])


async def everything(tree: FileService, at: str) -> bytes:
    """All that can be read below *at*."""
    found = b""
    for entry in await tree.list(Path(at)):
        path = f"{at}/{entry.name}"
        try:
            found += await everything(tree, path) if entry.kind.value == "dir" else await whole(tree, path)
        except OSError as exc:
            found += str(exc).encode()
    return found


def written(folder: FsPath) -> bytes:
    """All files below *folder*."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def test_keys_are_rotated_without_a_restart_and_written_nowhere(
    driver: Driver, claude: FakeAnthropic, tmp_path: FsPath
) -> None:
    _, own = await pair(driver)
    claude.needs = FIRST
    refusal = await fails(errno.ENOENT, call(own, "compute/new", chat("x", "claude/echo", max_cost_usd=10)))
    assert "secrets/claude" in str(refusal) or "no such secret" in str(refusal)
    async with await driver.tree.create(Path("runtime/secrets/claude"), Mode.WRITE) as handle:
        await handle.write(FIRST.encode() + b"\n", 0)
        await handle.flush(final=True)
    job = await submitted(own, "one")
    assert (await ended(own, job))["status"] == "complete" and claude.keys[-1] == FIRST

    claude.needs = SECOND  # rotated over there first: until it is here, each job fails, and says why
    job = await submitted(own, "two")
    status = await ended(own, job)
    assert (status["status"], status["errno"], status["cost_usd"]) == ("failed", "EREMOTEIO", 0)
    assert "status 401: invalid x-api-key [key]" in status["error"]
    await put(driver.tree, SECOND.encode(), "runtime/secrets/claude")
    assert (await ended(own, await submitted(own, "three")))["status"] == "complete" and claude.keys[-1] == SECOND

    claude.needs = OWN
    assert (await ended(own, await submitted(own, "four", api_key=OWN)))["status"] == "complete"
    assert claude.keys[-1] == OWN
    status = await ended(own, await submitted(own, "five", api_key=WRONG))
    assert status["status"] == "failed" and "[key]" in status["error"]
    await fails(errno.EACCES, whole(driver.tree, "runtime/secrets/claude"))
    assert (await load(driver.tree, "runtime/secrets/status"))["claude"]["set"] is True

    shown = await everything(driver.tree, "agents/thinker") + await everything(driver.tree, "runtime")
    files = written(tmp_path)
    assert b"claude/echo" in shown and b"claude" in files
    for key in (FIRST, SECOND, OWN, WRONG):
        for form in (key.encode(), key.encode().hex().encode(), base64.b64encode(key.encode()).rstrip(b"=")):
            assert form not in shown and form not in files, key
