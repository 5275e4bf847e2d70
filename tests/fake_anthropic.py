"""A fake server that speaks Anthropic's Messages API on a real socket: what a model does is in its name.

``echo`` repeats the last text word by word; ``tools`` says one word and calls two tools; ``thinks`` thinks first;
``cut`` breaks off after a word; ``overloaded`` is 529; ``fails`` sends an error event that tells the key it was sent;
with `FakeAnthropic.needs` any other key is 401. It is strict: a request that the real API refuses is 400.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from fakes import listening
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MODELS = ("echo", "tools", "thinks", "cut", "overloaded", "fails")
USES = (("t1", "look", '{"at": "status"}'), ("t2", "now", ""))


class FakeAnthropic:
    """One fake server; `url` once it listens. `needs` is the key it wants, "" for any."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.url = self.needs = ""
        routes = [Route("/v1/models", self._models), Route("/v1/messages", self._messages, methods=["POST"])]
        self.app = Starlette(routes=routes)

    def _refused(self, request: Request) -> Response | None:
        key = request.headers.get("x-api-key", "")
        self.keys.append(key)
        if request.headers.get("anthropic-version") != "2023-06-01":
            return _error(400, "invalid_request_error", "anthropic-version: header is required")
        if self.needs and key != self.needs:
            return _error(401, "authentication_error", f"invalid x-api-key {key}")
        return None

    async def _models(self, request: Request) -> Response:
        rows = [{"type": "model", "id": name, "display_name": name} for name in MODELS]
        return self._refused(request) or JSONResponse({"data": rows, "has_more": False})

    async def _messages(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.requests.append(body)
        wrong = self._refused(request)
        if wrong is not None:
            return wrong
        reason = _wrong(body)
        if reason:
            return _error(400, "invalid_request_error", reason)
        if body["model"] == "overloaded":
            return _error(529, "overloaded_error", "Overloaded")
        if body.get("stream"):
            key = self.keys[-1]
            return StreamingResponse(self._stream(body, key), media_type="text/event-stream")
        blocks, reason = _answer(body)
        whole = [
            {**block, "input": json.loads(block["input"] or "{}")} if block["type"] == "tool_use" else block
            for block in blocks
        ]
        usage = {"input_tokens": 4, "cache_read_input_tokens": 6, "output_tokens": 7}
        return JSONResponse({"type": "message", "content": whole, "stop_reason": reason, "usage": usage})

    async def _stream(self, body: dict[str, Any], key: str) -> AsyncIterator[str]:
        usage = {"input_tokens": 4, "cache_read_input_tokens": 6, "output_tokens": 1}
        yield _event("message_start", message={"type": "message", "content": [], "usage": usage})
        yield _event("ping")
        if body["model"] == "fails":
            yield _event("error", error={"type": "api_error", "message": f"broken for {key}"})
            return
        blocks, reason = _answer(body)
        for index, block in enumerate(blocks):
            for number, event in enumerate(_pieces(index, block)):
                yield event
                if body["model"] == "cut" and number == 1:
                    raise ConnectionResetError("as its name says")
        yield _event("message_delta", delta={"stop_reason": reason}, usage={"output_tokens": 7})
        yield _event("message_stop")


def _wrong(body: dict[str, Any]) -> str:
    """What the real API would refuse of *body*."""
    if not isinstance(body.get("max_tokens"), int):
        return "max_tokens: Field required"
    allowed = {
        "model", "messages", "max_tokens", "system", "tools", "tool_choice", "stream", "temperature", "top_p",
        "top_k", "stop_sequences", "metadata", "thinking",
    }  # fmt: skip
    extra = set(body) - allowed
    if extra:
        return f"{min(extra)}: Extra inputs are not permitted"
    for place, message in enumerate(body["messages"]):
        if message["role"] not in ("user", "assistant"):
            return f"messages.{place}.role: Input should be 'user' or 'assistant'"
        if not message["content"]:
            return f"messages.{place}: content must be non-empty"
    return ""


def _answer(body: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Blocks (the input of a tool as text), and why it ended."""
    last = body["messages"][-1]["content"]
    found = [block.get("text", block.get("content", "")) for block in last if block["type"] in ("text", "tool_result")]
    blocks = [{"type": "text", "text": " ".join(found)}]
    if body["model"] == "thinks":
        return [{"type": "thinking", "thinking": "let me see", "signature": "s"}, *blocks], "end_turn"
    if body["model"] == "tools":
        uses = [{"type": "tool_use", "id": id, "name": name, "input": given} for id, name, given in USES]
        return [{"type": "text", "text": "looking"}, *uses], "tool_use"
    most = body["max_tokens"]
    words = str(blocks[0]["text"]).split()
    return ([{"type": "text", "text": " ".join(words[:most])}], "max_tokens" if len(words) > most else "end_turn")


def _pieces(index: int, block: dict[str, Any]) -> Iterator[str]:
    match block["type"]:
        case "tool_use":
            yield _event("content_block_start", index=index, content_block={**block, "input": {}})
            half = len(block["input"]) // 2
            for piece in (block["input"][:half], block["input"][half:]):
                yield _event(
                    "content_block_delta", index=index, delta={"type": "input_json_delta", "partial_json": piece}
                )
        case "thinking":
            yield _event("content_block_start", index=index, content_block={**block, "thinking": "", "signature": ""})
            yield _event(
                "content_block_delta", index=index, delta={"type": "thinking_delta", "thinking": block["thinking"]}
            )
            yield _event("content_block_delta", index=index, delta={"type": "signature_delta", "signature": "s"})
        case "text":
            yield _event("content_block_start", index=index, content_block={"type": "text", "text": ""})
            for number, word in enumerate(block["text"].split(" ")):
                text = f" {word}" if number else word
                yield _event("content_block_delta", index=index, delta={"type": "text_delta", "text": text})
    yield _event("content_block_stop", index=index)


def _event(type: str, **more: Any) -> str:
    return f"event: {type}\ndata: {json.dumps({'type': type, **more})}\n\n"


def _error(status: int, type: str, message: str) -> Response:
    return JSONResponse({"type": "error", "error": {"type": type, "message": message}}, status)


@asynccontextmanager
async def serving() -> AsyncIterator[FakeAnthropic]:
    """A fake server on a port of its own."""
    fake = FakeAnthropic()
    async with listening(fake.app) as url:
        fake.url = f"{url}/v1"
        yield fake
