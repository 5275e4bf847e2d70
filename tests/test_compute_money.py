"""Money under many jobs at once: reserved and settled to the micro-USD, whatever becomes of each; approvals; policy."""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator
from pathlib import Path as FsPath
from typing import Any

import pytest
import trio
from engines import fails
from faces import call, load, put, whole
from fake_openai import FakeOpenAI, serving
from llms import PRICES
from test_compute import chat, ended, pair

from agentfs.providers.compute.openai import OpenAI
from agentfs.service import FileService
from agentfs.types import Path
from conformance.drivers import STORES, Driver, in_process

# httpx leaves the generators of a stream that was cancelled half-way to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
JOBS = 200
LIMIT = 60_000


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenAI]:
    async with serving() as fake:
        yield fake


@pytest.fixture(params=STORES)
async def driver(request: pytest.FixtureRequest, tmp_path: FsPath, fake: FakeOpenAI) -> AsyncIterator[Driver]:
    provider = OpenAI(fake.url, is_local=True)
    async with in_process(request.param, tmp_path, {"local": (provider, ""), "other": (provider, "")}) as driver:
        await put(driver.tree, json.dumps(PRICES).encode(), "runtime/compute/prices")
        yield driver
    await provider.aclose()


async def budgeted(agent: FileService, words: str) -> None:
    """Mount compute with *words* as its budget."""
    lines = (await whole(agent, "ns")).decode().splitlines()
    kept = [line for line in lines if not line.startswith("mount compute ")]
    await put(agent, "\n".join([*kept, f"mount compute /compute budgeted {words}", ""]).encode(), "ns")


async def cancel_slow(own: FileService, made: list[dict[str, Any]]) -> None:
    """Cancel the jobs that wait for ever."""
    for job in made:
        status = await load(own, f"compute/jobs/{job['job_id']}/status")
        if status["request"]["model"] == "local/slow":
            try:
                await put(own, b"cancel\n", f"compute/jobs/{job['job_id']}/ctl")
            except FileExistsError:
                assert status["status"] not in ("pending", "running", "streaming")


async def test_200_jobs_at_once_settle_exactly(driver: Driver, fake: FakeOpenAI) -> None:
    """Done, failed, cut off, refused, cancelled: together they never pass the limit, and nothing stays held."""
    agent, own = await pair(driver)
    await budgeted(agent, f"per_day_usd={LIMIT}")
    models = ("local/echo", "local/echo", "local/cut", "other/broken", "local/bare", "local/slow")
    made: list[dict[str, Any]] = []
    refused = 0

    async def submit(number: int) -> None:
        nonlocal refused
        model = models[number % len(models)]
        try:
            made.append(await call(own, "compute/new", chat(f"w{number} x y z", model, stream=True, max_cost_usd=500)))
        except OSError as exc:
            assert exc.errno == errno.EDQUOT or (exc.errno == errno.ENOTCONN and model == "other/broken")
            refused += 1

    async with trio.open_nursery() as nursery:
        for number in range(JOBS):
            nursery.start_soon(submit, number)
        await trio.testing.wait_all_tasks_blocked()
    day = (await load(own, "compute/usage"))["day"]
    assert day["reserved_usd"] + day["spent_usd"] + day["remaining_usd"] == LIMIT
    await cancel_slow(own, made)
    statuses = [await ended(own, job["job_id"]) for job in made]
    day = (await load(own, "compute/usage"))["day"]
    assert day["reserved_usd"] == 0 and day["spent_usd"] == sum(status["cost_usd"] for status in statuses) <= LIMIT
    assert len(made) + refused == JOBS and refused > 0
    exact = {"local/echo": 4 * 1 + 4 * 2, "other/broken": 0, "local/cut": 500, "local/bare": 500}
    for status in statuses:
        model = status["request"]["model"]
        if model in exact:
            assert status["cost_usd"] == exact[model], status
        else:
            assert status["status"] == "cancelled" and status["cost_usd"] in (0, 500)


async def test_over_the_threshold_a_request_waits_without_its_key(driver: Driver, fake: FakeOpenAI) -> None:
    agent, own = await pair(driver)
    await budgeted(agent, "approval_threshold_usd=100")
    request = chat("x", "local/echo", max_cost_usd=400, idempotency_key="k", api_key="sk-nobody-may-see-this")
    await fails(errno.EPERM, call(own, "compute/new", request))
    (waiting,) = [st.name for st in await agent.list(Path("approvals")) if st.name != "events"]
    assert b"nobody-may" not in await whole(agent, f"approvals/{waiting}/request")
    assert fake.requests == []
    await put(agent, b"allow\n", f"approvals/{waiting}/ctl")
    made = await call(own, "compute/new", request)
    assert (await ended(own, made["job_id"]))["status"] == "complete"
    assert fake.keys == ["Bearer sk-nobody-may-see-this"]


async def test_no_more_comes_out_than_is_reserved(driver: Driver, fake: FakeOpenAI) -> None:
    """The server is told how much may come; one that sends more is cut off."""
    _, own = await pair(driver)
    words = " ".join(["w"] * 50)
    made = await call(own, "compute/new", chat(words, max_cost_usd=60, stream=True))
    assert (await ended(own, made["job_id"]))["status"] == "complete"
    assert fake.of("echo")[0]["max_tokens"] < 20


async def test_the_estimate_covers_the_dearest_answer(driver: Driver, fake: FakeOpenAI) -> None:
    _, own = await pair(driver)
    request = chat("a b c")
    request["input"]["max_tokens"] = 100
    made = await call(own, "compute/new", request)
    status = await ended(own, made["job_id"])
    assert made["reserved_usd"] >= 100 * 2 + 3 and status["cost_usd"] == 3 * 1 + 3 * 2


async def test_an_agent_cannot_settle_its_own_jobs(driver: Driver, fake: FakeOpenAI) -> None:
    """The journal shows them under effects/, but their outcome is not the agent's to tell, nor their names to take."""
    _, own = await pair(driver)
    made = await call(own, "compute/new", chat("a b c", "local/slow", stream=True, max_cost_usd=500))
    entry = f"effects/{made['job_id']}"
    assert (await load(own, f"{entry}/status"))["reserved_usd"] == 500
    for report in ({"error": "nothing happened"}, {"receipt": 1, "cost_usd": 0}):
        await fails(errno.EPERM, put(own, json.dumps(report).encode(), f"{entry}/result"))
    for provider in ("compute", "step"):
        request = {"provider": provider, "key": "k", "request": 1, "max_cost_usd": 1}
        await fails(errno.EINVAL, call(own, "effects/new", request))
    assert (await load(own, "compute/usage"))["day"]["reserved_usd"] == 500
    fake.go.set()
    assert (await ended(own, made["job_id"]))["cost_usd"] == 9
