"""Agents made of a prompt among models and messages that misbehave: a talk goes on, and its sender is told."""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator
from pathlib import Path as FsPath

import fake_anthropic
import msgspec
import pytest
from dictfs import DictHandle, DictService
from engines import fails
from faces import load, put, whole
from fake_anthropic import FakeAnthropic
from fake_openai import FakeOpenAI, serving
from llms import PRICES, made, own, said

from agentfs.compute.port import Task
from agentfs.engine.journal import hash_of
from agentfs.engine.settings import parse_settings
from agentfs.providers.clock import ManualClock
from agentfs.providers.compute.anthropic import Anthropic
from agentfs.providers.compute.messages import document
from agentfs.providers.compute.openai import OpenAI
from agentfs.providers.programs.tools import Tools
from agentfs.service import FileHandle
from agentfs.types import NO_WANT, Mode, Path, Record, Want
from conformance.drivers import Driver, in_process

# httpx leaves the generators of a stream that was cancelled half-way to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
MOST = 1 << 20  # bytes of a document


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenAI]:
    async with serving() as fake:
        yield fake


@pytest.fixture
async def claude() -> AsyncIterator[FakeAnthropic]:
    async with fake_anthropic.serving() as claude:
        yield claude


@pytest.fixture
async def here(tmp_path: FsPath, fake: FakeOpenAI, claude: FakeAnthropic) -> AsyncIterator[Driver]:
    """A house in this process, over servers of two kinds."""
    one, two = OpenAI(fake.url, is_local=True), Anthropic(claude.url, is_local=True)
    async with in_process("memory", tmp_path, {"local": (one, ""), "claude": (two, "")}) as driver:
        await put(driver.tree, json.dumps(PRICES).encode(), "runtime/compute/prices")
        yield driver
    await one.aclose()
    await two.aclose()


async def test_a_message_that_no_request_can_hold_is_answered(here: Driver, fake: FakeOpenAI) -> None:
    agent = await made(here)
    fake.script.append("well")
    assert (await said(agent, "x" * (MOST - 200)))["payload"].startswith("[stopped: EFBIG")
    assert (await said(agent, "and now?", "m2"))["payload"].strip() == "well"


async def test_an_answer_that_no_message_can_hold_is_cut(here: Driver, fake: FakeOpenAI) -> None:
    agent = await made(here)
    fake.script.extend(["\u00e9" * (MOST // 2), "well"])
    payload = (await said(agent, "tell me everything"))["payload"]
    assert payload.startswith("\u00e9" * 1000) and payload.endswith("[cut]")
    assert (await said(agent, "and now?", "m2"))["payload"].strip() == "well"


async def test_arguments_that_no_request_can_hold_are_used_and_not_repeated(here: Driver, fake: FakeOpenAI) -> None:
    agent = await made(here)
    fake.script.extend([[("write", {"path": "kv/x", "text": "w" * (MOST - 100)})], "done"])
    assert (await said(agent, "write"))["payload"].strip() == "done"
    assert len(await whole(own(here), "kv/x")) == MOST - 100
    (call,) = fake.requests[1]["messages"][-2]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["path"] == "kv/x" and len(json.dumps(call)) < 1000


@pytest.mark.parametrize("arguments", ['{"path": "kv', "[1]", "7", "[" * 5000, "\u00e9"])
async def test_arguments_that_are_no_object_are_not_repeated(here: Driver, fake: FakeOpenAI, arguments: str) -> None:
    """Servers refuse a talk that holds such a call, and it would be in every later one."""
    agent = await made(here)
    fake.script.extend([[("read", arguments)], "well", "again"])
    assert (await said(agent, "read"))["payload"].strip() == "well"
    assert (await said(agent, "and now?", "m2"))["payload"].strip() == "again"
    for request in fake.requests[1:]:
        (call,) = [call for m in request["messages"] for call in m.get("tool_calls", ())]
        assert call["function"]["arguments"] == "{}"
        assert [m["content"][:6] for m in request["messages"] if m["role"] == "tool"] == ["EINVAL"]


@pytest.mark.parametrize("nothing", ["", " \n"])
async def test_an_empty_answer_spoils_no_later_talk(
    here: Driver, fake: FakeOpenAI, claude: FakeAnthropic, nothing: str
) -> None:
    agent = await made(here, tools=[])
    fake.script.append(nothing)
    await said(agent, "are you there?")
    config = json.loads(await whole(agent, "config"))
    config["program"]["model"] = "claude/echo"
    await put(agent, json.dumps(config).encode(), "config")
    assert (await said(agent, "hello?", "m2"))["payload"] == "hello?"
    assert [m["role"] for m in claude.requests[-1]["messages"]] == ["user", "user"]


async def test_what_was_paid_for_nothing_is_told(here: Driver) -> None:
    agent = await made(here, model="mute")
    told = (await said(agent, "hello you"))["metadata"]["extra"]
    day = (await load(own(here), "compute/usage"))["day"]
    assert told["cost_usd"] == day["spent_usd"] > 0 and told["steps"] == 0


async def test_a_key_that_a_model_took_beforehand_ends_the_loop(here: Driver, fake: FakeOpenAI) -> None:
    """What it was talked into is its loss: the message is answered, and is no dead letter."""
    agent = await made(here)
    program = parse_settings(await whole(agent, "config")).program
    turn = hash_of([msgspec.to_builtins(program), []])[:8]
    ask = {"model": "echo", "input": {"messages": [{"role": "user", "content": "x"}]}, "max_cost_usd": 700}
    taken = json.dumps({**ask, "idempotency_key": f"m1/{turn}/2"})
    fake.script.extend([[("call", {"path": "compute/new", "text": taken})], "well"])
    assert (await said(agent, "go"))["payload"].startswith("[stopped: EEXIST")


async def test_deep_arguments_are_refused_by_the_provider() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "x", "arguments": '{"a":' + "[" * 5000}}
    task = Task("m", "chat", {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}, False)
    with pytest.raises(OSError, match="arguments"):
        document(task)


class _Gone(DictHandle):
    """A stream whose right is withdrawn while somebody waits for its next record."""

    async def next(self) -> Record | None:
        raise PermissionError(errno.EACCES, "revoked")


class _Streams(DictService):
    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        return _Gone(self.files, path, mode)


async def test_a_watch_that_is_ended_says_why() -> None:
    tools = Tools(_Streams(), ManualClock())
    await fails(errno.EACCES, tools.use("watch", '{"path": "logs/trace"}', ""))
