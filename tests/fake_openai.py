"""A fake server of models that speaks OpenAI's HTTP API on a real socket: what a model does is in its name.

``echo`` repeats the last message word by word; ``slow`` the same, waiting for `FakeOpenAI.go` behind its first word;
``silent`` waits before anything; ``cut`` breaks off after two words; ``mute`` ends its stream without a reason;
``garbage`` sends what is no JSON; ``busy-N`` is 429 N times, then ``echo``; ``broken`` is 500, telling the key it was
sent, ``fails`` does so within its stream; ``bare`` reports no usage; ``tools`` calls one; ``script`` gives what
`FakeOpenAI.script` holds, one a request: a text, or calls as ``[("read", {"path": "status"})]``. `FakeOpenAI.requests`
are the bodies that came, in order.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MODELS = (
    "echo", "slow", "silent", "cut", "mute", "garbage", "busy-1", "busy-9", "broken", "bare", "tools", "weird",
    "fails", "script",
)  # fmt: skip
CALL = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "look", "arguments": '{"at":'}}
REST = {"index": 0, "function": {"arguments": '"status"}'}}

Said: TypeAlias = str | Sequence[tuple[str, Mapping[str, Any] | str]]


class FakeOpenAI:
    """One fake server; `url` once it listens."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.script: deque[Said] = deque()
        self.keys: list[str] = []
        self.go = trio.Event()
        self.token: trio.lowlevel.TrioToken | None = None
        self.gone = 0
        self.url = ""
        self._busy: Counter[str] = Counter()
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._chat, methods=["POST"]),
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            Route("/v1/audio/transcriptions", self._transcribe, methods=["POST"]),
            Route("/v1/audio/speech", self._speak, methods=["POST"]),
            Route("/v1/images/generations", self._draw, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)

    def release(self) -> None:
        """Set `go`, from another thread."""
        assert self.token is not None
        self.token.run_sync_soon(self.go.set)

    def of(self, model: str) -> list[dict[str, Any]]:
        """The requests for one model."""
        return [request for request in self.requests if request["model"] == model]

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS]})

    async def _chat(self, request: Request) -> Response:
        body = json.loads(await request.body())
        key = request.headers.get("authorization", "")
        self.requests.append(body)
        self.keys.append(key)
        model = body["model"]
        if model == "broken":
            return JSONResponse({"error": {"message": f"cannot serve {key}"}}, 500)
        if model == "weird":
            return JSONResponse({"choices": [7]})
        if model.startswith("busy-") and self._busy[model] < int(model[5:]):
            self._busy[model] += 1
            return JSONResponse({"error": {"message": "later"}}, 429, {"Retry-After": "1"})
        if model == "script":
            return self._scripted(body)
        if model == "silent":
            await self.go.wait()
        said = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        words = [f"{word} " for word in str(said).split()][: body.get("max_tokens", 10_000)]
        counts = {"prompt_tokens": len(str(said).split()), "completion_tokens": len(words)}
        usage: dict[str, Any] = {} if model == "bare" else {"usage": {**counts, "total_tokens": sum(counts.values())}}
        if body.get("stream"):
            return StreamingResponse(self._stream(model, words, usage, key), media_type="text/event-stream")
        text = "".join(words)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        choice |= {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
        return JSONResponse({"object": "chat.completion", "model": model, "choices": [choice], **usage})

    def _scripted(self, body: dict[str, Any]) -> Response:
        said = self.script.popleft() if self.script else "[end of the script]"
        words = [f"{word} " for word in said.split()] if isinstance(said, str) else []
        calls = [] if isinstance(said, str) else [_call(number, *call) for number, call in enumerate(said)]
        asked, told = len(json.dumps(body["messages"])) // 4, max(1, len(words))
        usage = {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told}

        def stream() -> Iterator[str]:
            for word in words:
                yield _event({"content": word})
            for call in calls:
                yield _event({"tool_calls": [call]})
            yield _event({}, "tool_calls" if calls else "stop")
            yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def _stream(self, model: str, words: list[str], usage: dict[str, Any], key: str) -> AsyncIterator[str]:
        try:
            if model == "garbage":
                yield "data: {not json\n\n"
            if model == "fails":
                yield f"data: {json.dumps({'error': {'message': f'broken for {key}'}})}\n\n"
            if model == "tools":
                for piece in (CALL, REST):
                    yield _event({"tool_calls": [piece]})
            for number, word in enumerate(words):
                yield _event({"content": word})
                if model == "slow" and not number:
                    await self.go.wait()
                if model == "cut" and number == 1:
                    raise ConnectionResetError("as its name says")
            if model != "mute":
                yield _event({}, "tool_calls" if model == "tools" else "stop")
                yield f"data: {json.dumps({'choices': [], **usage})}\n\n" if usage else ""
                yield "data: [DONE]\n\n"
        except trio.Cancelled:
            self.gone += 1
            raise

    async def _embeddings(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.requests.append(body)
        rows = [{"index": n, "embedding": [float(len(text)), 1.0]} for n, text in enumerate(body["input"])]
        return JSONResponse({"data": rows, "usage": {"prompt_tokens": 3, "total_tokens": 3}})

    async def _transcribe(self, request: Request) -> Response:
        body = await request.body()
        return JSONResponse({"text": f"heard {[word for word in (b'RIFFxx', b'echo') if word in body]}"})

    async def _speak(self, request: Request) -> Response:
        return Response(json.loads(await request.body())["input"].encode(), media_type="audio/wav")

    async def _draw(self, request: Request) -> Response:
        return JSONResponse({"data": [{"b64_json": "aW1n"}]})


def _call(number: int, name: str, arguments: Mapping[str, Any] | str) -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"index": number, "id": f"c{number}", "type": "function", "function": {"name": name, "arguments": text}}


def _event(delta: dict[str, Any], reason: str | None = None) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': reason}]})}\n\n"


@contextmanager
def in_thread() -> Iterator[FakeOpenAI]:
    """A fake server in a thread of its own, for tests without an event loop."""
    found: list[FakeOpenAI] = []
    ready, over = threading.Event(), trio.Event()
    tokens: list[trio.lowlevel.TrioToken] = []

    async def main() -> None:
        tokens.append(trio.lowlevel.current_trio_token())
        async with serving() as fake:
            fake.token = tokens[0]
            found.append(fake)
            ready.set()
            await over.wait()

    thread = threading.Thread(target=trio.run, args=(main,), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield found[0]
    finally:
        tokens[0].run_sync_soon(over.set)
        thread.join(10)


@asynccontextmanager
async def serving() -> AsyncIterator[FakeOpenAI]:
    """A fake server on a port of its own."""
    fake, config = FakeOpenAI(), Config()
    config.bind, config.accesslog, config.errorlog, config.graceful_timeout = ["127.0.0.1:0"], None, None, 0.1
    over = trio.Event()
    async with trio.open_nursery() as nursery:
        binds = await nursery.start(
            lambda task_status: serve(
                fake.app,  # type: ignore[arg-type]  # hypercorn's own typing of ASGI
                config, shutdown_trigger=over.wait, task_status=task_status,
            )
        )  # fmt: skip
        fake.url = f"{binds[0]}/v1"
        try:
            yield fake
        finally:
            fake.go.set()
            over.set()
            nursery.cancel_scope.cancel()
