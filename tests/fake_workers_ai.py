"""A fake of Cloudflare's Workers AI REST API on a real socket, for one account: what a model does is in its name.

``@cf/echo`` repeats the last message word by word, ``@cf/new`` the same in OpenAI's form; ``@cf/tools`` calls one tool;
``@cf/embed`` embeds, ``@cf/draw`` and ``@cf/png`` draw; ``@cf/cut`` has no end mark, ``@cf/unlucky`` no success;
``@cf/fails`` ends its stream with errors that tell the key it was sent. There are more models than fit on a page.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fakes import listening
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

NAMED = ("echo", "new", "tools", "embed", "draw", "png", "cut", "unlucky", "fails")
MODELS = tuple(f"@cf/{name}" for name in NAMED) + tuple(f"@cf/more/{n}" for n in range(120))
CALL = {"name": "look", "arguments": {"at": "status"}}


class FakeWorkersAI:
    """One fake server; `url` (the account's root) once it listens."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.url = ""
        routes = [
            Route("/accounts/abc/ai/models/search", self._models),
            Route("/accounts/abc/ai/run/{model:path}", self._run, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)

    async def _models(self, request: Request) -> Response:
        self.keys.append(request.headers.get("authorization", ""))
        if self.keys[-1] == "Bearer wrong-key-0000":
            return _failed(401, 10000, "Authentication error for wrong-key-0000")
        page, size = int(request.query_params["page"]), int(request.query_params["per_page"])
        rows = [{"name": name} for name in MODELS[(page - 1) * size : page * size]]
        return _good(rows)

    async def _run(self, request: Request) -> Response:
        body, model = json.loads(await request.body()), request.path_params["model"]
        key = request.headers.get("authorization", "")
        self.requests.append({"model": model, **body})
        self.keys.append(key)
        if model == "@cf/unlucky":
            return _failed(200, 3040, "Capacity temporarily exceeded")
        if model == "@cf/embed":
            return _good({"shape": [len(body["text"]), 2], "data": [[float(len(t)), 1.0] for t in body["text"]]})
        if model == "@cf/draw":
            return _good({"image": "aW1n"})
        if model == "@cf/png":
            return Response(b"img", media_type="image/png")
        said = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        words = said.split()[: body.get("max_tokens", 256)]
        usage = {"prompt_tokens": len(said.split()), "completion_tokens": len(words)}
        if body.get("stream"):
            return StreamingResponse(_stream(model, words, usage, key), media_type="text/event-stream")
        if model == "@cf/new":
            choice = {"message": {"role": "assistant", "content": " ".join(words)}, "finish_reason": "length"}
            return _good({"choices": [choice], "usage": usage})
        calls = {"tool_calls": [CALL]} if model == "@cf/tools" else {}
        return _good({"response": " ".join(words), "usage": usage, **calls})


async def _stream(model: str, words: list[str], usage: dict[str, int], key: str) -> AsyncIterator[str]:
    for number, word in enumerate(words):
        text = f" {word}" if number else word
        yield _data({"choices": [{"delta": {"content": text}}]} if model == "@cf/new" else {"response": text, "p": "x"})
    if model == "@cf/fails":
        yield _data({"errors": [{"message": f"broken for {key}"}]})
    if model == "@cf/tools":
        yield _data({"response": "", "tool_calls": [CALL]})
    end: dict[str, Any] = {"response": "", "usage": usage}
    if model == "@cf/new":
        end = {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": usage}
    yield _data(end)
    if model != "@cf/cut":
        yield "data: [DONE]\n\n"


def _data(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document)}\n\n"


def _good(result: Any) -> Response:
    return JSONResponse({"result": result, "success": True, "errors": [], "messages": []})


def _failed(status: int, code: int, message: str) -> Response:
    errors = [{"code": code, "message": message}]
    return JSONResponse({"result": None, "success": False, "errors": errors, "messages": []}, status)


@asynccontextmanager
async def serving() -> AsyncIterator[FakeWorkersAI]:
    """A fake server on a port of its own."""
    fake = FakeWorkersAI()
    async with listening(fake.app) as url:
        fake.url = f"{url}/accounts/abc"
        yield fake
