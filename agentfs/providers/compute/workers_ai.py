"""Cloudflare Workers AI over its REST API.

Source: Cloudflare's API reference (accounts/ACCOUNT/ai/run/MODEL, ai/models/search). An answer is in ``result`` beside
``success`` and ``errors``; a stream has pieces ``{"response": TEXT}``, and that of newer models OpenAI's chunks.
"""

from __future__ import annotations

import base64
import errno
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import quote

import msgspec

from agentfs.compute.documents import CUSTOM, texts_of
from agentfs.compute.port import Part, Task
from agentfs.errors import error
from agentfs.providers.compute.openai import bearer, gather, limited, part_of, piece, usage_of
from agentfs.providers.compute.wire import Wire, decoded, events, formed, listing, whole

KINDS: Final = frozenset({"chat", "complete", "embeddings", "image_generate", CUSTOM})
_DONE: Final = b"[DONE]"
_PAGE: Final = 100
_PAGES: Final = 10


class WorkersAI:
    """Implements `agentfs.compute.port.ComputeProvider`.

    *url* is the account's root: ``https://api.cloudflare.com/client/v4/accounts/ACCOUNT``.
    """

    kinds = KINDS
    needs_key = True

    def __init__(self, url: str, *, is_local: bool = False) -> None:
        self._wire, self.is_local = Wire(url), is_local

    async def models(self, key: str) -> Sequence[str]:
        """See `ComputeProvider.models`."""
        with listing():
            return await self._listed(key)

    async def _listed(self, key: str) -> Sequence[str]:
        names: list[str] = []
        for page in range(1, _PAGES + 1):
            rows = _result(await self._wire.get(f"/ai/models/search?per_page={_PAGE}&page={page}", bearer(key)))
            if not isinstance(rows, list):
                raise error(errno.EREMOTEIO, detail="models: want {result: [...]}")
            names += [row["name"] for row in rows if isinstance(row, dict) and isinstance(row.get("name"), str)]
            if len(rows) < _PAGE:
                break
        return names

    async def run(self, task: Task) -> AsyncGenerator[Part]:
        """See `ComputeProvider.run`."""
        path, key = f"/ai/run/{quote(task.model, safe='@/')}", bearer(task.key)
        async with self._wire.asked("POST", path, key, json=_document(task)) as answer:
            if task.is_stream:
                async with aclosing(events(answer)) as found, aclosing(_streamed(found)) as parts:
                    async for part in parts:
                        yield part
                return
            body, kind = await whole(answer, key), answer.headers.get("content-type", "")
            with formed():
                part = _picture(body) if kind.startswith("image/") else _part(task, _result(decoded(body)))
        yield part

    async def aclose(self) -> None:
        """See `ComputeProvider.aclose`."""
        await self._wire.aclose()


def _document(task: Task) -> dict[str, Any]:
    if task.kind == "embeddings":
        return {**{k: v for k, v in task.input.items() if k != "texts"}, "text": texts_of(task.input)}
    if task.kind in ("chat", "complete"):
        return {**limited(task.input, task), **({"stream": True} if task.is_stream else {})}
    return dict(task.input)


def _result(found: Any) -> Any:
    """What is in the envelope. EREMOTEIO with the server's words where it is no success."""
    if not isinstance(found, dict) or not found.get("success"):
        words = found.get("errors") if isinstance(found, dict) else found
        raise error(errno.EREMOTEIO, detail=f"no success: {msgspec.json.encode(words).decode()}")
    return found.get("result")


def _picture(body: bytes) -> Part:
    images = [{"b64_json": base64.b64encode(body).decode()}]
    return Part(finish_reason="stop", output={"images": images})


def _part(task: Task, result: Any) -> Part:
    """The answer to a request without a stream."""
    if task.kind.startswith(CUSTOM):
        return Part(finish_reason="stop", output=result if isinstance(result, dict) else {"result": result})
    if task.kind == "embeddings":
        vectors = result["data"]
        if len(vectors) != len(texts_of(task.input)):
            raise error(errno.EREMOTEIO, detail="answer: want one vector a text")
        return Part(finish_reason="stop", usage=usage_of(result), output={"embeddings": vectors})
    if task.kind == "image_generate":
        return Part(finish_reason="stop", output={"images": [{"b64_json": result["image"]}]})
    if "choices" in result:
        return part_of(task, result)
    calls = [_call(call, place) for place, call in enumerate(result.get("tool_calls") or [])]
    message: dict[str, Any] | None = None
    if task.kind == "chat":
        message = {"role": "assistant", **({"tool_calls": calls} if calls else {})}
    reason = "tool_calls" if calls else "stop"
    return Part(text=_text(result["response"]), finish_reason=reason, usage=usage_of(result), output=message)


def _text(given: Any) -> str:
    """The text of ``response``; in JSON mode it comes as an object."""
    if given is None or isinstance(given, str):
        return given or ""
    return msgspec.json.encode(given).decode()


def _call(call: Mapping[str, Any], place: int) -> dict[str, Any]:
    """A tool call in OpenAI's form; older models give only name and arguments."""
    if "function" in call:
        return dict(call)
    arguments = msgspec.json.encode(call["arguments"]).decode()
    return {"id": f"call-{place}", "type": "function", "function": {"name": call["name"], "arguments": arguments}}


async def _streamed(found: AsyncGenerator[tuple[str, bytes]]) -> AsyncGenerator[Part]:
    """The parts of a stream. EREMOTEIO for garbage, an error in it, or an end that was not announced."""
    calls: dict[int, dict[str, Any]] = {}
    reason, is_over = "", False
    async for _, data in found:
        if is_over := data == _DONE:
            break
        with formed():
            part = _piece(decoded(data), calls)
        reason = part.finish_reason or reason
        yield part
    if not is_over:
        raise error(errno.EREMOTEIO, detail="the stream ended without its end mark")
    message: dict[str, Any] = {"role": "assistant", **({"tool_calls": list(calls.values())} if calls else {})}
    yield Part(finish_reason=reason or ("tool_calls" if calls else "stop"), output=message)


def _piece(chunk: Any, calls: dict[int, dict[str, Any]]) -> Part:
    if chunk.get("errors"):
        raise error(errno.EREMOTEIO, detail=f"stream: {msgspec.json.encode(chunk['errors']).decode()}")
    if "choices" in chunk or "error" in chunk:
        return piece(chunk, calls)
    pieces = [{**_call(call, n), "index": n} for n, call in enumerate(chunk.get("tool_calls") or [], len(calls))]
    gather(calls, pieces)
    return Part(text=_text(chunk.get("response")), data=pieces or None, usage=usage_of(chunk))
