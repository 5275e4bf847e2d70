"""compute on every face: models asked through files, over a real socket, within a budget."""

from __future__ import annotations

import base64
import errno
import json
from collections.abc import AsyncIterator
from pathlib import Path as FsPath
from typing import Any

import msgspec
import pytest
import trio
from engines import fails
from faces import call, load, put, whole
from fake_openai import FakeOpenAI, serving
from llms import computing

from agentfs.providers.compute.openai import OpenAI
from agentfs.service import FileService
from agentfs.types import Mode, Path, Want
from agentfs.views import Below
from conformance.drivers import DRIVERS, STORES, Driver, in_process

# httpx leaves the generators of a stream that was cancelled half-way to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenAI]:
    async with serving() as fake:
        yield fake


@pytest.fixture(params=[f"{driver}-{store}" for driver in DRIVERS for store in STORES])
async def driver(request: pytest.FixtureRequest, tmp_path: FsPath, fake: FakeOpenAI) -> AsyncIterator[Driver]:
    async with computing(request.param, tmp_path, fake) as driver:
        yield driver


async def pair(driver: Driver, name: str = "thinker") -> tuple[FileService, FileService]:
    """The agent as the operator sees it, and as it sees itself."""
    return await driver.agent(name), Below(driver.tree, Path(f"views/{name}"))


def chat(text: str, model: str = "echo", **more: Any) -> dict[str, Any]:
    return {"model": model, "input": {"messages": [{"role": "user", "content": text}]}, **more}


async def chunks(agent: FileService, job: str, *, until: str = "finish_reason") -> list[dict[str, Any]]:
    """The chunks of a job as they come, until one has the field *until*."""
    held = b""
    with trio.fail_after(60):
        async with await agent.open(Path(f"compute/jobs/{job}/stream@follow"), Mode.READ) as follow:
            while True:
                found = [msgspec.json.decode(line) for line in held.splitlines(keepends=True) if line.endswith(b"\n")]
                if found and until in found[-1]:
                    return found
                held += await follow.read(1 << 16, 0)


async def ended(agent: FileService, job: str) -> dict[str, Any]:
    """The status of a job once its last chunk has come."""
    await chunks(agent, job)
    return dict(await load(agent, f"compute/jobs/{job}/status"))


async def test_a_chat_is_answered(driver: Driver, fake: FakeOpenAI) -> None:
    agent, own = await pair(driver)
    made = await call(own, "compute/new", chat("one two three"))
    assert made["status"] == "pending" and made["result_path"] == f"compute/jobs/{made['job_id']}/result"
    status = await ended(own, made["job_id"])
    assert (status["status"], status["provider_id"], status["model"]) == ("complete", "local", "echo")
    result = await load(own, made["result_path"])
    assert result["output"] == {"role": "assistant", "content": "one two three "}
    assert result["usage"] == {"input_tokens": 3, "output_tokens": 3, "total_tokens": 6}
    assert result["cost_usd"] == 3 * 1 + 3 * 2
    day = (await load(own, "compute/usage"))["day"]
    assert (day["reserved_usd"], day["spent_usd"]) == (0, 9)
    (chunk,) = await chunks(own, made["job_id"])
    assert chunk["delta"] == "one two three " and chunk["finish_reason"] == "stop"
    assert [st.name for st in await agent.list(Path("compute/jobs"))] == [made["job_id"]]


async def test_a_stream_is_followed_while_it_comes(driver: Driver, fake: FakeOpenAI) -> None:
    _, own = await pair(driver)
    made = await call(own, "compute/new", chat("a b c", "slow", stream=True))
    (first,) = await chunks(own, made["job_id"], until="delta")
    assert first["delta"] == "a " and first["job_id"] == made["job_id"]
    await fails(errno.EAGAIN, whole(own, made["result_path"]))
    fake.go.set()
    found = await chunks(own, made["job_id"])
    assert "".join(chunk["delta"] for chunk in found) == "a b c "
    assert found[-1]["finish_reason"] == "stop" and found[-1]["usage"]["total_tokens"] == 6
    assert [msgspec.json.decode(line) for line in (await whole(own, made["stream_path"])).splitlines()] == found


async def test_the_same_key_is_one_request(driver: Driver, fake: FakeOpenAI) -> None:
    _, own = await pair(driver)
    jobs = {(await call(own, "compute/new", chat("x", idempotency_key="k")))["job_id"] for _ in range(3)}
    (job,) = jobs
    await ended(own, job)
    assert (await call(own, "compute/new", chat("x", idempotency_key="k")))["is_new"] is False
    await fails(errno.EEXIST, call(own, "compute/new", chat("y", idempotency_key="k")))
    assert len(fake.of("echo")) == 1
    if "version" in driver.expresses:  # a mount has no header for a key
        first = await call(own, "compute/new", chat("z"), Want(key="from-the-header"))
        again = await call(own, "compute/new", chat("z"), Want(key="from-the-header"))
        assert first["job_id"] == again["job_id"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("broken", "status 500: cannot serve"), ("cut", "cut off"), ("mute", "without a reason"),
        ("garbage", "not JSON"), ("busy-9", "status 429: later"),
    ],
)  # fmt: skip
async def test_what_a_provider_does_wrong_fails_the_job(
    driver: Driver, fake: FakeOpenAI, model: str, reason: str
) -> None:
    _, own = await pair(driver)
    made = await call(
        own, "compute/new", chat("one two three", f"local/{model}", stream=True, api_key="sk-my-very-own-key")
    )
    status = await ended(own, made["job_id"])
    assert status["status"] == "failed" and status["errno"] == "EREMOTEIO" and reason in status["error"]
    await fails(errno.EREMOTEIO, whole(own, made["result_path"]))
    spent = (await load(own, "compute/usage"))["day"]["spent_usd"]
    assert spent == (0 if model in ("broken", "busy-9") else made["reserved_usd"])
    assert fake.keys[-1] == "Bearer sk-my-very-own-key"
    shown = await whole(own, f"compute/jobs/{made['job_id']}/status") + await whole(own, "logs/trace")
    assert b"very-own" not in shown


async def test_a_busy_provider_is_asked_again(driver: Driver, fake: FakeOpenAI) -> None:
    _, own = await pair(driver)
    made = await call(own, "compute/new", chat("again", "busy-1"))
    assert (await ended(own, made["job_id"]))["status"] == "complete" and len(fake.of("busy-1")) == 2


async def test_a_job_is_cancelled(driver: Driver, fake: FakeOpenAI) -> None:
    _, own = await pair(driver)
    made = await call(own, "compute/new", chat("a b c", "slow", stream=True, max_cost_usd=5000))
    await chunks(own, made["job_id"], until="delta")
    await put(own, b"cancel\n", f"compute/jobs/{made['job_id']}/ctl")
    assert (await ended(own, made["job_id"]))["status"] == "cancelled"
    await fails(errno.ECANCELED, whole(own, made["result_path"]))
    day = (await load(own, "compute/usage"))["day"]
    assert (day["reserved_usd"], day["spent_usd"]) == (0, 5000)  # nobody knows what it came to
    await fails(errno.EEXIST, put(own, b"cancel\n", f"compute/jobs/{made['job_id']}/ctl"))


async def test_a_budget_is_never_passed(driver: Driver, fake: FakeOpenAI) -> None:
    agent, own = await pair(driver)
    script = "".join(  # with its last newline it is whole at the close; without, when the kernel releases the file
        f"{line}\n" if " compute " not in f" {line} " else "mount compute /compute budgeted per_day_usd=1000\n"
        for line in (await whole(agent, "ns")).decode().splitlines()
    )
    await put(agent, script.encode(), "ns")
    codes: list[int] = []

    async def submit() -> None:
        try:
            await call(own, "compute/new", chat("x", max_cost_usd=300))
        except OSError as exc:
            codes.append(exc.errno or 0)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(submit)
    assert set(codes) <= {errno.EDQUOT}
    day = (await load(own, "compute/usage"))["day"]
    assert day["spent_usd"] + day["reserved_usd"] <= 1000


async def test_the_policy_is_the_operators(driver: Driver, fake: FakeOpenAI) -> None:
    agent, own = await pair(driver)
    with pytest.raises(PermissionError):
        await put(own, b"{}", "compute/policy")
    await put(agent, json.dumps({"blocked_models": ["slow"], "default_max_cost_usd": 77}).encode(), "compute/policy")
    await fails(errno.EACCES, call(own, "compute/new", chat("x", "slow")))
    assert (await call(own, "compute/new", chat("x")))["reserved_usd"] == 77
    await fails(errno.ENOENT, call(own, "compute/new", chat("x", "no-such-model")))
    await fails(errno.EINVAL, put(agent, b'{"allowed": 1}', "compute/policy"))
    names = [st.name for st in await own.list(Path("compute/providers"))]
    assert names == ["local"] and b"echo\n" in await whole(own, "compute/providers/local/models")
    assert (await load(own, "compute/providers/local/health"))["status"] == "closed"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "input"), ({"input": {}}, "messages"), ({"input": {"messages": []}}, "messages"),
        ({"input": {"messages": ["x"]}}, "messages[0]"), ({"kind": "dance", "input": {}}, "kind"),
        ({"kind": "embeddings", "input": {"texts": []}}, "texts"), (chat("x", timeout_ms=0), "timeout_ms"),
        (chat("x", max_cost_usd=-1), "max_cost_usd"), ({**chat("x"), "secret": 1}, "secret"),
        ({"kind": "embeddings", "input": {"text": "a"}, "stream": True}, "stream"),
        *(
            ({"input": {**chat("x")["input"], name: value}}, f"input.{name}")
            for name, value in (("model", "dear"), ("models", ["dear"]), ("stream", True), ("n", 9), ("best_of", 2))
        ),
    ],
)  # fmt: skip
async def test_bad_requests_name_the_field(
    tmp_path: FsPath, fake: FakeOpenAI, request_: dict[str, Any], field: str
) -> None:
    provider = OpenAI(fake.url, is_local=True)
    async with in_process("memory", tmp_path, {"local": (provider, "")}) as driver:
        _, own = await pair(driver)
        with pytest.raises(OSError, match=field.replace("[", r"\[")) as caught:
            await call(own, "compute/new", request_)
        assert caught.value.errno == errno.EINVAL
    await provider.aclose()


@pytest.mark.parametrize(
    ("kind", "given", "output"),
    [
        ("complete", {"prompt": "a b"}, {"text": "a b "}),
        ("embeddings", {"texts": ["a", "bcd"]}, {"embeddings": [[1.0, 1.0], [3.0, 1.0]]}),
        ("embeddings", {"text": "ab"}, {"embeddings": [[2.0, 1.0]]}),
        ("transcribe", {"audio": base64.b64encode(b"RIFFxx").decode()}, {"text": "heard [b'RIFFxx', b'echo']"}),
        ("speak", {"text": "hi"}, {"audio": base64.b64encode(b"hi").decode(), "content_type": "audio/wav"}),
        ("image_generate", {"prompt": "a cat"}, {"images": [{"b64_json": "aW1n"}]}),
        ("custom:embeddings", {"input": ["abc"]}, {"data": [{"index": 0, "embedding": [3.0, 1.0]}]}),
    ],
)  # fmt: skip
async def test_every_kind(
    tmp_path: FsPath, fake: FakeOpenAI, kind: str, given: dict[str, Any], output: dict[str, Any]
) -> None:
    provider = OpenAI(fake.url, is_local=True)
    async with in_process("memory", tmp_path, {"local": (provider, "")}) as driver:
        _, own = await pair(driver)
        made = await call(own, "compute/new", {"model": "echo", "kind": kind, "input": given})
        assert (await ended(own, made["job_id"]))["status"] == "complete"
        found = (await load(own, made["result_path"]))["output"]
        assert {name: found[name] for name in output} == output
    await provider.aclose()


async def test_tool_calls_come_whole(tmp_path: FsPath, fake: FakeOpenAI) -> None:
    provider = OpenAI(fake.url, is_local=True)
    async with in_process("memory", tmp_path, {"local": (provider, "")}) as driver:
        _, own = await pair(driver)
        made = await call(own, "compute/new", chat("", "tools", stream=True))
        await ended(own, made["job_id"])
        result = await load(own, made["result_path"])
        (made_call,) = result["output"]["tool_calls"]
        assert made_call["function"] == {"name": "look", "arguments": '{"at":"status"}'}
        assert result["finish_reason"] == "tool_calls"
    await provider.aclose()


async def test_an_answer_of_another_form_ends_its_job_only(tmp_path: FsPath, fake: FakeOpenAI) -> None:
    provider = OpenAI(fake.url, is_local=True)
    async with in_process("memory", tmp_path, {"local": (provider, "")}) as driver:
        _, own = await pair(driver)
        made = await call(own, "compute/new", chat("x", "weird"))
        assert "another form" in (await ended(own, made["job_id"]))["error"]
        good = await call(own, "compute/new", chat("x"))
        assert (await ended(own, good["job_id"]))["status"] == "complete"
    await provider.aclose()
