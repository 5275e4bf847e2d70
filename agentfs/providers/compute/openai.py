"""Any server that speaks OpenAI's HTTP API: llama.cpp, Ollama, vLLM, LM Studio, OpenRouter, OpenAI itself.

Source: the OpenAI API reference (chat/completions, completions, embeddings, images, audio, models). What a request has
in its input beside what is named here is passed on as it is.
"""

from __future__ import annotations

import base64
import binascii
import errno
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

from agentfs.compute.documents import CUSTOM, Usage, texts_of
from agentfs.compute.port import Part, Task, Unserved
from agentfs.errors import error
from agentfs.providers.compute.wire import Wire, count, decoded, events, formed, listing, whole

KINDS: Final = frozenset(
    {"chat", "complete", "embeddings", "image_generate", "image_analyze", "transcribe", "speak", CUSTOM}
)
_DONE: Final = b"[DONE]"


class OpenAI:
    """Implements `agentfs.compute.port.ComputeProvider`; *url* is the API's root, mostly one that ends in ``/v1``."""

    kinds = KINDS

    def __init__(self, url: str, *, is_local: bool = False, needs_key: bool = False) -> None:
        self._wire = Wire(url)
        self.is_local, self.needs_key = is_local, needs_key

    async def models(self, key: str) -> Sequence[str]:
        """See `ComputeProvider.models`."""
        with listing():
            found = await self._wire.get("/models", bearer(key))
        rows = found.get("data") if isinstance(found, dict) else None
        if not isinstance(rows, list):
            raise error(errno.EREMOTEIO, detail="models: want {data: [...]}")
        return [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]

    async def run(self, task: Task) -> AsyncGenerator[Part]:
        """See `ComputeProvider.run`."""
        path, document = _request(task)
        key = bearer(task.key)
        if task.kind == "transcribe":
            yield await self._transcribe(task, key)
        elif task.kind == "speak":
            yield await self._speak(document, key)
        elif task.is_stream:
            async with (
                self._wire.asked("POST", path, key, json=document) as answer,
                aclosing(events(answer)) as found,
                aclosing(_streamed(found)) as parts,
            ):
                async for part in parts:
                    yield part
        else:
            with formed():
                part = part_of(task, await self._wire.post(path, key, document))
            yield part

    async def _transcribe(self, task: Task, key: Mapping[str, str]) -> Part:
        fields = {k: str(v) for k, v in task.input.items() if k not in ("audio", "filename")}
        name = str(task.input.get("filename", "audio.wav"))
        kw: dict[str, Any] = {"data": {**fields, "model": task.model}, "files": {"file": (name, _bytes(task.input))}}
        async with self._wire.asked("POST", "/audio/transcriptions", key, **kw) as answer:
            found = decoded(await whole(answer, key))
        return Part(text=_text(found, "text"), finish_reason="stop", usage=usage_of(found))

    async def _speak(self, document: Mapping[str, Any], key: Mapping[str, str]) -> Part:
        async with self._wire.asked("POST", "/audio/speech", key, json=document) as answer:
            audio = await whole(answer, key)
            kind = answer.headers.get("content-type", "")
        output = {"audio": base64.b64encode(audio).decode(), "content_type": kind}
        return Part(finish_reason="stop", output=output)

    async def aclose(self) -> None:
        """See `ComputeProvider.aclose`."""
        await self._wire.aclose()


def bearer(key: str) -> Mapping[str, str]:
    """The header that carries *key*; none for ""."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def _request(task: Task) -> tuple[str, dict[str, Any]]:
    """Path and document of *task*."""
    given = {**task.input, "model": task.model}
    stream: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if task.is_stream else {}
    match task.kind:
        case "chat":
            return "/chat/completions", {**limited(given, task), **stream}
        case "complete":
            return "/completions", {**limited(given, task), **stream}
        case "image_analyze":
            return "/chat/completions", {**limited(_looking(given), task), **stream}
        case "embeddings":
            rest = {k: v for k, v in given.items() if k not in ("text", "texts")}
            return "/embeddings", {**rest, "input": texts_of(task.input)}
        case "image_generate":
            return "/images/generations", given
        case "speak":
            rest = {k: v for k, v in given.items() if k != "text"}
            return "/audio/speech", {"voice": "alloy", **rest, "input": given["text"]}
        case "transcribe":
            return "/audio/transcriptions", {}
    return f"/{task.kind.removeprefix(CUSTOM)}", given


def limited(given: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """*given* so that no more comes out than is paid for."""
    if task.max_tokens is None:
        return dict(given)
    names = [name for name in ("max_completion_tokens", "max_tokens") if name in given] or ["max_tokens"]
    asked = [count(given.get(name)) for name in names]
    most = min([*filter(None, asked), task.max_tokens])  # below 1 is without an end, to some servers
    return {**given, **dict.fromkeys(names, most)}


def _looking(given: Mapping[str, Any]) -> dict[str, Any]:
    image = given["image"]
    url = image if image.startswith(("http:", "https:", "data:")) else f"data:image/png;base64,{image}"
    content = [{"type": "text", "text": given["prompt"]}, {"type": "image_url", "image_url": {"url": url}}]
    rest = {k: v for k, v in given.items() if k not in ("image", "prompt")}
    return {**rest, "messages": [{"role": "user", "content": content}]}


def _bytes(given: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(given["audio"], validate=True)
    except (binascii.Error, ValueError):
        raise Unserved("refused", "input.audio: want base64") from None


# -- answers -----------------------------------------------------------------------------------------------------------


async def _streamed(found: AsyncGenerator[tuple[str, bytes]]) -> AsyncGenerator[Part]:
    """The parts of a stream. EREMOTEIO for garbage, an error in it, or an end without a reason."""
    reason, calls = "", dict[int, dict[str, Any]]()
    async for _, data in found:
        if data == _DONE:
            break
        with formed():
            part = piece(decoded(data), calls)
        if part.finish_reason:
            reason, part = part.finish_reason, replace(part, finish_reason="")
        yield part
    if not reason:
        raise error(errno.EREMOTEIO, detail="the stream ended without a reason")
    message: dict[str, Any] = {"role": "assistant", **({"tool_calls": list(calls.values())} if calls else {})}
    yield Part(finish_reason=str(reason), output=message)


def piece(chunk: Any, calls: dict[int, dict[str, Any]]) -> Part:
    """What one chunk of a stream adds; its tool calls are put together in *calls*. EREMOTEIO for an error in it."""
    if not isinstance(chunk, dict) or chunk.get("error"):
        raise error(errno.EREMOTEIO, detail=f"stream: {chunk}")
    choice = next(iter(chunk.get("choices") or [{}]))
    delta = choice.get("delta") or {}
    text = delta.get("content") or choice.get("text") or ""
    gather(calls, delta.get("tool_calls"))
    reason = str(choice.get("finish_reason") or "")
    return Part(text=str(text), data=delta.get("tool_calls"), finish_reason=reason, usage=usage_of(chunk))


def gather(calls: dict[int, dict[str, Any]], pieces: Any) -> None:
    """Put together tool calls that come in pieces."""
    for piece in pieces or []:
        call = calls.setdefault(int(piece.get("index") or 0), {"id": "", "type": "function", "function": {}})
        call["id"] = piece.get("id") or call["id"]
        function = piece.get("function") or {}
        for name in ("name", "arguments"):
            call["function"][name] = call["function"].get(name, "") + (function.get(name) or "")


def part_of(task: Task, found: Any) -> Part:
    """The answer to a request without a stream. EREMOTEIO when it has another form."""
    if not isinstance(found, dict):
        raise error(errno.EREMOTEIO, detail="answer: want an object")
    if task.kind in ("chat", "image_analyze", "complete"):
        choice = next((c for c in found.get("choices") or [] if isinstance(c, dict)), None)
        if choice is None:
            raise error(errno.EREMOTEIO, detail="answer of another form: no choices")
        message = choice.get("message") or {}
        text = message.get("content") or choice.get("text") or ""
        output = None if task.kind == "complete" else {k: v for k, v in message.items() if k != "content"}
        reason = choice.get("finish_reason") or "stop"
        return Part(text=str(text), finish_reason=str(reason), usage=usage_of(found), output=output)
    if task.kind == "embeddings":
        rows = found.get("data")
        if not isinstance(rows, list) or len(rows) != len(texts_of(task.input)):
            raise error(errno.EREMOTEIO, detail="answer: want one vector a text")
        return Part(finish_reason="stop", usage=usage_of(found), output={"embeddings": [r["embedding"] for r in rows]})
    if task.kind == "image_generate":
        return Part(finish_reason="stop", usage=usage_of(found), output={"images": found.get("data") or []})
    return Part(finish_reason="stop", usage=usage_of(found), output=found)


def _text(found: Any, name: str) -> str:
    if not isinstance(found, dict) or not isinstance(found.get(name), str):
        raise error(errno.EREMOTEIO, detail=f"answer: no {name}")
    return str(found[name])


def usage_of(found: Mapping[str, Any]) -> Usage | None:
    """What ``usage`` of an answer counts; None where there is none."""
    usage = found.get("usage")
    if not isinstance(usage, dict):
        return None
    return Usage(input_tokens=count(usage.get("prompt_tokens")), output_tokens=count(usage.get("completion_tokens")))
