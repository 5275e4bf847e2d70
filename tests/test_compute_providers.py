"""The providers of models, each over a real socket: what they send, what they make of answers, what they let out."""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import fake_anthropic
import fake_openai
import fake_workers_ai
import pytest
from fake_anthropic import FakeAnthropic
from fake_workers_ai import FakeWorkersAI

from agentfs.compute.documents import Usage
from agentfs.compute.port import ComputeProvider, Part, Task, Unserved
from agentfs.providers.compute import catalog
from agentfs.providers.compute.anthropic import Anthropic
from agentfs.providers.compute.openai import OpenAI
from agentfs.providers.compute.workers_ai import WorkersAI

# httpx leaves the generators of a stream that was left half-way to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
KEY = "sk-test-0123456789"
TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}


async def parts(provider: ComputeProvider, task: Task) -> list[Part]:
    """All of an answer."""
    async with aclosing(provider.run(task)) as found:
        return [part async for part in found]


def chat(model: str, *messages: dict[str, Any], stream: bool = False, most: int | None = None, **more: Any) -> Task:
    return Task(model, "chat", {"messages": list(messages), **more}, stream, KEY, most)


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest.fixture
async def claude() -> AsyncIterator[tuple[FakeAnthropic, Anthropic]]:
    async with fake_anthropic.serving() as fake:
        provider = Anthropic(fake.url)
        yield fake, provider
        await provider.aclose()


@pytest.fixture
async def workers() -> AsyncIterator[tuple[FakeWorkersAI, WorkersAI]]:
    async with fake_workers_ai.serving() as fake:
        provider = WorkersAI(fake.url)
        yield fake, provider
        await provider.aclose()


Claude = tuple[FakeAnthropic, Anthropic]
Workers = tuple[FakeWorkersAI, WorkersAI]


# -- Anthropic ---------------------------------------------------------------------------------------------------------


async def test_a_message_is_answered_whole_and_in_pieces(claude: Claude) -> None:
    fake, provider = claude
    (whole,) = await parts(provider, chat("echo", user("one two three")))
    assert (whole.text, whole.finish_reason, whole.usage) == (
        "one two three",
        "stop",
        Usage(input_tokens=10, output_tokens=7),
    )
    assert whole.output == {"role": "assistant"}
    *pieces, last = await parts(provider, chat("echo", user("one two three"), stream=True))
    assert [part.text for part in pieces] == ["one", " two", " three"]
    assert (last.finish_reason, last.usage, last.output) == (
        "stop",
        Usage(input_tokens=10, output_tokens=7),
        {"role": "assistant"},
    )
    assert set(fake.keys) == {KEY} and fake.requests[0]["max_tokens"] == 4096
    assert list(await provider.models(KEY)) == list(fake_anthropic.MODELS)


async def test_a_talk_with_tools_has_the_form_the_api_wants(claude: Claude) -> None:
    fake, provider = claude
    calls = [
        {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}},
        {"id": "b", "type": "function", "function": {"name": "now", "arguments": ""}},
    ]
    picture = {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0"}}
    talk: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Now."}]},
        user([{"type": "text", "text": "see"}, picture]),
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "here"},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "noon"}]},
        user("and?"),
    ]  # fmt: skip
    choice = {"type": "function", "function": {"name": "look"}}
    await parts(provider, chat("echo", *talk, tools=[TOOL], tool_choice=choice, stop="END", temperature=0, most=50))
    assert fake.requests[-1] == {
        "model": "echo", "max_tokens": 50, "temperature": 0, "stop_sequences": ["END"],
        "system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Now."}],
        "tools": [{"name": "look", "description": "Look.", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "look"},
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "see"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "R0"}},
            ]},
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": "a", "name": "look", "input": {"at": 1}},
                {"type": "tool_use", "id": "b", "name": "now", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": "here"},
                {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "noon"}]},
            ]},
            {"role": "user", "content": [{"type": "text", "text": "and?"}]},
        ],
    }  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
async def test_tools_are_called_in_the_form_of_compute(claude: Claude, stream: bool) -> None:
    _, provider = claude
    found = await parts(provider, chat("tools", user("go"), stream=stream, tools=[TOOL]))
    calls = found[-1].output["tool_calls"]
    assert [(c["id"], c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls] == [
        ("t1", "look", {"at": "status"}), ("t2", "now", {}),
    ]  # fmt: skip
    assert "".join(part.text for part in found) == "looking" and found[-1].finish_reason == "tool_calls"
    if stream:
        pieces = [piece for part in found for piece in part.data or []]
        assert "".join(p["function"]["arguments"] for p in pieces if p["index"] == 0) == '{"at": "status"}'
        assert [p["id"] for p in pieces if "id" in p] == ["t1", "t2"]


@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_are_no_text(claude: Claude, stream: bool) -> None:
    _, provider = claude
    found = await parts(provider, chat("thinks", user("hm"), stream=stream))
    assert "".join(part.text for part in found) == "hm"
    assert found[-1].output["reasoning_content"] == "let me see"


async def test_a_picture_is_looked_at(claude: Claude) -> None:
    fake, provider = claude
    task = Task("echo", "image_analyze", {"prompt": "what?", "image": "iVBORw0"}, False, KEY)
    (part,) = await parts(provider, task)
    picture, text = fake.requests[-1]["messages"][0]["content"]
    assert part.text == "what?" == text["text"]
    assert picture["source"] == {"type": "base64", "media_type": "image/png", "data": "iVBORw0"}
    url = {"prompt": "what?", "image": "https://example.org/a.png"}
    await parts(provider, Task("echo", "image_analyze", url, False, KEY))
    source = fake.requests[-1]["messages"][0]["content"][0]["source"]
    assert source == {"type": "url", "url": "https://example.org/a.png"}


@pytest.mark.parametrize(("asked", "most", "sent"), [(None, None, 4096), (9, None, 9), (9, 3, 3), (None, 3, 3)])
async def test_no_more_comes_out_than_is_paid_for(
    claude: Claude, asked: int | None, most: int | None, sent: int
) -> None:
    fake, provider = claude
    given: dict[str, Any] = {} if asked is None else {"max_tokens": asked}
    (part,) = await parts(provider, chat("echo", user("a b c d e"), most=most, **given))
    assert fake.requests[-1]["max_tokens"] == sent
    assert part.finish_reason == ("length" if sent == 3 else "stop")


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "[1]"}}]}], "JSON"),
        ([{"role": "tool", "content": "x"}], "KeyError"), ([user(7)], "TypeError"), ([user(["x"])], "AttributeError"),
    ],
)  # fmt: skip
async def test_an_input_of_another_form_is_refused_unsent(
    claude: Claude, messages: list[dict[str, Any]], named: str
) -> None:
    fake, provider = claude
    with pytest.raises(Unserved, match=named) as caught:
        await parts(provider, chat("echo", *messages))
    assert caught.value.why == "refused" and fake.requests == []


@pytest.mark.parametrize(
    ("model", "why", "words"),
    [
        ("overloaded", "failed", "status 529: Overloaded"), ("cut", None, "cut off"),
        ("fails", None, r"stream: api_error: broken for \[key\]"),
    ],
)  # fmt: skip
async def test_what_anthropic_says_goes_wrong(claude: Claude, model: str, why: str | None, words: str) -> None:
    _, provider = claude
    with pytest.raises(OSError, match=words) as caught:
        await parts(provider, chat(model, user("one two"), stream=True))
    assert caught.value.errno == errno.EREMOTEIO and KEY not in str(caught.value)
    assert getattr(caught.value, "why", None) == why


async def test_a_key_that_is_not_taken_is_not_told(claude: Claude) -> None:
    fake, provider = claude
    fake.needs = "another"
    for asking in (provider.models(KEY), parts(provider, chat("echo", user("x")))):
        with pytest.raises(Unserved, match=r"status 401: invalid x-api-key \[key\]") as caught:
            await asking
        assert caught.value.why == "denied" and not caught.value.is_passing


# -- Workers AI --------------------------------------------------------------------------------------------------------


async def test_workers_ai_answers_whole_and_in_pieces(workers: Workers) -> None:
    fake, provider = workers
    for model, reason in (("@cf/echo", "stop"), ("@cf/new", "length")):
        (whole,) = await parts(provider, chat(model, user("one two three"), most=2))
        assert (whole.text, whole.finish_reason, whole.usage) == (
            "one two",
            reason,
            Usage(input_tokens=3, output_tokens=2),
        )
        assert whole.output == {"role": "assistant"}
        *_, last = found = await parts(provider, chat(model, user("one two three"), stream=True))
        assert [part.text for part in found if part.text] == ["one", " two", " three"]
        assert (last.finish_reason, last.output) == ("stop", {"role": "assistant"})
        assert [part.usage for part in found if part.usage] == [Usage(input_tokens=3, output_tokens=3)]
    assert set(fake.keys) == {f"Bearer {KEY}"} and fake.requests[0]["max_tokens"] == 2
    assert list(await provider.models(KEY)) == list(fake_workers_ai.MODELS)


@pytest.mark.parametrize("stream", [False, True])
async def test_workers_ai_calls_tools(workers: Workers, stream: bool) -> None:
    _, provider = workers
    *_, last = await parts(provider, chat("@cf/tools", user("go"), stream=stream, tools=[TOOL]))
    (call,) = last.output["tool_calls"]
    assert call["function"] == {"name": "look", "arguments": '{"at":"status"}'} and call["type"] == "function"
    assert last.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("model", "kind", "given", "output"),
    [
        ("@cf/embed", "embeddings", {"texts": ["a", "bcd"]}, {"embeddings": [[1.0, 1.0], [3.0, 1.0]]}),
        ("@cf/embed", "embeddings", {"text": "ab"}, {"embeddings": [[2.0, 1.0]]}),
        ("@cf/draw", "image_generate", {"prompt": "a cat"}, {"images": [{"b64_json": "aW1n"}]}),
        ("@cf/png", "image_generate", {"prompt": "a cat"}, {"images": [{"b64_json": "aW1n"}]}),
        ("@cf/draw", "custom:draw", {"prompt": "a cat"}, {"image": "aW1n"}),
        ("@cf/echo", "complete", {"prompt": "x"}, None),
    ],
)  # fmt: skip
async def test_every_kind_of_workers_ai(
    workers: Workers, model: str, kind: str, given: dict[str, Any], output: dict[str, Any] | None
) -> None:
    _, provider = workers
    (part,) = await parts(provider, Task(model, kind, given, False, KEY))
    assert part.output == output


@pytest.mark.parametrize(
    ("model", "stream", "words"),
    [
        ("@cf/unlucky", False, "Capacity temporarily exceeded"), ("@cf/cut", True, "without its end mark"),
        ("@cf/fails", True, r"stream: .*broken for \[key\]"),
    ],
)  # fmt: skip
async def test_what_workers_ai_says_goes_wrong(workers: Workers, model: str, stream: bool, words: str) -> None:
    _, provider = workers
    with pytest.raises(OSError, match=words) as caught:
        await parts(provider, chat(model, user("one two"), stream=stream))
    assert caught.value.errno == errno.EREMOTEIO and KEY not in str(caught.value)


async def test_a_wrong_key_of_workers_ai(workers: Workers) -> None:
    _, provider = workers
    with pytest.raises(Unserved, match=r"status 401: Authentication error for \[key\]") as caught:
        await provider.models("wrong-key-0000")
    assert caught.value.why == "denied"


# -- OpenAI, and all of them -------------------------------------------------------------------------------------------


async def test_an_error_within_a_stream_tells_no_key() -> None:
    async with fake_openai.serving() as fake:
        provider = OpenAI(fake.url)
        with pytest.raises(OSError, match=r"broken for \[key\]"):
            await parts(provider, chat("fails", user("x"), stream=True))
        await provider.aclose()


@pytest.mark.parametrize("kind", ["openai", "anthropic", "workers_ai"])
async def test_nobody_there_is_away(kind: str) -> None:
    provider = catalog.make(kind, "http://127.0.0.1:9")
    with pytest.raises(Unserved) as caught:
        await parts(provider, chat("x", user("x")))
    assert caught.value.why == "away" and caught.value.errno == errno.ENOTCONN
    await provider.aclose()


def test_only_loopback_is_local() -> None:
    assert not any(catalog.make(kind, "https://example.org/v1").is_local for kind in ("openai", "workers_ai"))
    assert catalog.make("anthropic", "http://127.0.0.1:1/v1").is_local and not catalog.make("anthropic", "").is_local
