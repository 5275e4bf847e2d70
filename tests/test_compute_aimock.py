"""The providers against somebody else's server of scripted models, aimock for JavaScript: whole and streamed."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest
from machine import free_port

from agentfs.compute.port import Part, Task
from agentfs.providers.compute import catalog

# httpx leaves the generators of a stream that was left half-way to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
VERSION = "1.43.0"
CALL = {"name": "get_weather", "arguments": '{"city":"SF"}'}
SCRIPT = {
    "fixtures": [
        {"match": {"userMessage": "weather"}, "response": {"toolCalls": [CALL]}},
        {"match": {"userMessage": "hello"}, "response": {"content": "Hello there, friend!"}},
    ]
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The root URL of the peer. Without npm there is none, and the test fails."""
    place = tmp_path_factory.mktemp("aimock")
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    install = ["npm", "install", *options, "--prefix", str(place), f"@copilotkit/aimock@{VERSION}"]
    # node has a list of authorities of its own: those that this machine trusts are added
    env = {"NODE_EXTRA_CA_CERTS": "/etc/ssl/certs/ca-certificates.crt"} | dict(os.environ)
    subprocess.run(install, check=True, timeout=110, stdin=subprocess.DEVNULL, cwd=place, env=env)
    (place / "script.json").write_text(json.dumps(SCRIPT))
    port = free_port()
    command = [str(place / "node_modules" / ".bin" / "llmock"), "-p", str(port), "-f", str(place / "script.json")]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as peer:
        try:
            _listening(peer)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            peer.kill()


def _listening(peer: subprocess.Popen[bytes]) -> None:
    assert peer.stdout
    told = b""
    while b"listening" not in told:
        ready, _, _ = select.select([peer.stdout], [], [], 60)
        piece = os.read(peer.stdout.fileno(), 1 << 12) if ready else b""
        assert piece, told
        told += piece


async def asked(kind: str, url: str, text: str, *, stream: bool) -> list[Part]:
    model = {"openai": "gpt-4o", "anthropic": "claude-sonnet-4"}[kind]
    given: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "tools": [TOOL]}
    provider = catalog.make(kind, url)
    async with aclosing(provider.run(Task(model, "chat", given, stream, "any-key-at-all"))) as found:
        parts = [part async for part in found]
    await provider.aclose()
    return parts


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_their_words_come_as_they_were_scripted(url: str, kind: str, stream: bool) -> None:
    parts = await asked(kind, url, "hello", stream=stream)
    assert "".join(part.text for part in parts) == "Hello there, friend!"
    assert parts[-1].finish_reason == "stop" and parts[-1].output["role"] == "assistant"
    assert len(parts) > 1 if stream else len(parts) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_their_tool_calls_come_whole(url: str, kind: str, stream: bool) -> None:
    *_, last = await asked(kind, url, "the weather, please", stream=stream)
    (call,) = last.output["tool_calls"]
    assert call["function"] == CALL and call["id"] and last.finish_reason == "tool_calls"


async def test_they_are_found(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_PROBE_SECONDS", 60.0)
    (provider,) = (await catalog.found({"vllm": url})).values()
    assert "gpt-4o" in await provider.models("")
    await provider.aclose()
