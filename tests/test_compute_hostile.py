"""Servers of models that misbehave on the wire: odd bytes, drips, echoes of keys; each is an error of the port."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import msgspec
import pytest
import trio
from engines import fails

from agentfs.compute.port import ComputeProvider, Task, Unserved
from agentfs.providers.compute import catalog, wire
from agentfs.providers.compute.anthropic import Anthropic
from agentfs.providers.compute.openai import OpenAI, limited
from agentfs.providers.compute.workers_ai import WorkersAI

# httpx leaves the generators of a stream that was left half-way to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
KEY = "sk-test-0123456789abcdefghijklmnopqrstuvwxyz"
MAKERS: list[Callable[[str], ComputeProvider]] = [OpenAI, Anthropic, WorkersAI]
DEEP = b'{"error": ' + b"[" * 5_000 + b"]" * 5_000 + b"}"


@asynccontextmanager
async def answering(*pieces: bytes, status: int = 200, pause: float = 0) -> AsyncIterator[str]:
    """A server that gives these pieces for whatever is asked, one after another for ever where *pause* is not 0."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def answer(stream: trio.SocketStream) -> None:
        try:
            await stream.receive_some(1 << 16)
            await stream.send_all(b"HTTP/1.1 %d x\r\nconnection: close\r\n\r\n" % status)
            for piece in pieces:
                await stream.send_all(piece)
            while pause:
                await trio.sleep(pause)
                await stream.send_all(b" ")
            await stream.aclose()
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1"
        nursery.cancel_scope.cancel()


async def asked(provider: ComputeProvider, *, stream: bool = False, key: str = KEY) -> None:
    """One chat, to its end."""
    task = Task("m", "chat", {"messages": [{"role": "user", "content": "x"}]}, stream, key)
    async with aclosing(provider.run(task)) as parts:
        async for part in parts:
            assert isinstance(part.text, str)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("status", [200, 404, 500])
@pytest.mark.parametrize("body", [b'{"error": "caf\xe9"}', b'{"data": ["\xff"]}', DEEP], ids=["error", "data", "deep"])
async def test_odd_bytes_are_an_error_of_the_port(
    make: Callable[[str], ComputeProvider], status: int, body: bytes
) -> None:
    async with answering(body, status=status) as url:
        provider = make(url)
        await fails(errno.EREMOTEIO, provider.models(KEY))
        await fails(errno.EREMOTEIO, asked(provider))
        await fails(errno.EREMOTEIO, asked(provider, stream=True))
        await provider.aclose()
        assert await catalog.found({"llamacpp": url}) == {}


@pytest.mark.parametrize("make", MAKERS)
async def test_a_list_of_models_that_drips_is_given_up(
    make: Callable[[str], ComputeProvider], autojump_clock: trio.testing.MockClock
) -> None:
    async with answering(b"[", pause=1.0) as url:
        provider, before = make(url), trio.current_time()
        with trio.fail_after(3600):
            await fails(errno.ETIMEDOUT, provider.models(KEY))
        assert trio.current_time() - before < 10
        await provider.aclose()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("key", ["sk-caf\xe9-0123456789", "sk-two\nlines-0123456789", "sk-x\0y-0123456789", " sk-a "])
async def test_a_key_that_no_header_can_hold_is_refused_unsaid(
    make: Callable[[str], ComputeProvider], key: str
) -> None:
    async with answering(b"{}") as url:
        provider = make(url)
        for call in (provider.models(key), asked(provider, key=key), asked(provider, key=key, stream=True)):
            with pytest.raises(Unserved) as caught:
                await call
            assert caught.value.why == "denied" and "0123456789" not in str(caught.value)
        await provider.aclose()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [200, 500])
async def test_no_piece_of_a_key_is_told(make: Callable[[str], ComputeProvider], *, stream: bool, status: int) -> None:
    """Wherever the words are cut, the key in them was taken out before."""
    shapes = ['{"error": {"message": "%s"}}', '{"success": false, "errors": ["%s"]}', "%s"]
    for shape in shapes:
        for ahead in (*range(30, 210, 30), *range(440, 510, 30)):
            body = (shape % ("." * ahead + KEY)).encode()
            async with answering(
                b"data: " + body + b"\n\n" if stream and status == 200 else body, status=status
            ) as url:
                provider = make(url)
                with pytest.raises(OSError) as caught:
                    await asked(provider, stream=stream)
                assert KEY[:12] not in str(caught.value), (shape, ahead)
                await provider.aclose()


async def test_a_stream_without_an_end_and_without_a_text_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "WHOLE_MAX", 1 << 20)
    call = b'data: {"choices":[{"delta":{"tool_calls":[{"index":%d,"function":{"arguments":"x"}}]}}]}\n\n'
    async with answering(*[call % number for number in range(20_000)]) as url:
        provider = OpenAI(url)
        assert "stream over" in str(await fails(errno.EREMOTEIO, asked(provider, stream=True)))
        await provider.aclose()


@pytest.mark.parametrize("asked_for", [-1, 0, True, "9000", 9000.0, None, 9000])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_no_number_of_tokens_buys_more_than_was_reserved(name: str, asked_for: object) -> None:
    """To some servers a number below 1 says: without an end."""
    task = Task("m", "chat", {name: asked_for}, False, max_tokens=50)
    assert limited(task.input, task) == {name: 50}


@pytest.mark.parametrize("delta", [{"type": "text_delta", "text": 7}, {"type": "text_delta", "text": None}])
async def test_a_text_of_another_kind_is_an_error_of_the_port(delta: dict[str, object]) -> None:
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    events = [start, {"type": "content_block_delta", "index": 0, "delta": delta}]
    async with answering(*[b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events]) as url:
        provider = Anthropic(url)
        await fails(errno.EREMOTEIO, asked(provider, stream=True))
        await provider.aclose()
