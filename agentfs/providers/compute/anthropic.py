"""Any server that speaks Anthropic's Messages API: Anthropic itself, llama.cpp, gateways.

Source: the Anthropic API reference (messages, streaming, models). Requests and answers have the form of /compute, which
is OpenAI's; what goes over the wire is made in `agentfs.providers.compute.messages`.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from agentfs.compute.documents import Usage
from agentfs.compute.port import Part, Task
from agentfs.errors import error
from agentfs.providers.compute.messages import document, spoken
from agentfs.providers.compute.wire import Wire, count, decoded, events, formed, listing

KINDS: Final = frozenset({"chat", "image_analyze"})
VERSION: Final = "2023-06-01"
ROOT: Final = "https://api.anthropic.com/v1"
_PAGE: Final = 1000
_REASONS: Final = {
    "end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls",
    "refusal": "content_filter",
}  # fmt: skip


class Anthropic:
    """Implements `agentfs.compute.port.ComputeProvider`; *url* is the API's root, mostly one that ends in ``/v1``."""

    kinds = KINDS

    def __init__(self, url: str, *, is_local: bool = False, needs_key: bool = True) -> None:
        self._wire = Wire(url, {"anthropic-version": VERSION})
        self.is_local, self.needs_key = is_local, needs_key

    async def models(self, key: str) -> Sequence[str]:
        """See `ComputeProvider.models`."""
        with listing():
            found = await self._wire.get(f"/models?limit={_PAGE}", _keyed(key))
        rows = found.get("data") if isinstance(found, dict) else None
        if not isinstance(rows, list):
            raise error(errno.EREMOTEIO, detail="models: want {data: [...]}")
        return [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]

    async def run(self, task: Task) -> AsyncGenerator[Part]:
        """See `ComputeProvider.run`."""
        asked, key = document(task), _keyed(task.key)
        if not task.is_stream:
            with formed():
                part = _whole(await self._wire.post("/messages", key, asked))
            yield part
            return
        async with (
            self._wire.asked("POST", "/messages", key, json={**asked, "stream": True}) as answer,
            aclosing(events(answer)) as found,
            aclosing(_streamed(found)) as parts,
        ):
            async for part in parts:
                yield part

    async def aclose(self) -> None:
        """See `ComputeProvider.aclose`."""
        await self._wire.aclose()


def _keyed(key: str) -> Mapping[str, str]:
    return {"x-api-key": key} if key else {}


def _whole(found: Any) -> Part:
    """The answer to a request without a stream."""
    message = spoken(found["content"])
    text = message.pop("content", "")
    usage = _usage({}, found.get("usage") or {})
    return Part(text=text, finish_reason=_reason(found.get("stop_reason")), usage=usage, output=message)


def _reason(given: Any) -> str:
    return _REASONS.get(str(given or ""), str(given or "stop"))


def _usage(before: Mapping[str, int], found: Mapping[str, Any]) -> Usage | None:
    """Tokens as *found* counts them, with those that came *before*; what was read from a cache went in too."""
    counts = {**before, **{name: count(value) for name, value in found.items()}}
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    into, out = sum(counts.get(name, 0) for name in names), counts.get("output_tokens", 0)
    return Usage(input_tokens=into, output_tokens=out) if counts else None


# -- streams -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Said:
    """What has come of one message: its blocks by index, its counts, and why it ended."""

    blocks: dict[int, dict[str, Any]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    is_over: bool = False

    def take(self, event: Mapping[str, Any]) -> Part | None:
        """What one event adds for whoever reads along. EREMOTEIO for an error in the stream."""
        match event["type"]:
            case "message_start":
                self._count(event["message"].get("usage"))
            case "content_block_start":
                return self._begin(int(event["index"]), event["content_block"])
            case "content_block_delta":
                return self._go_on(int(event["index"]), event["delta"])
            case "message_delta":
                self._count(event.get("usage"))
                self.reason = str(event["delta"].get("stop_reason") or "")
            case "message_stop":
                self.is_over = True
            case "error":
                raise error(errno.EREMOTEIO, detail=f"stream: {_words(event.get('error'))}")
        return None

    def _count(self, usage: Mapping[str, Any] | None) -> None:
        self.counts |= {name: count(value) for name, value in (usage or {}).items()}

    def _begin(self, index: int, block: Mapping[str, Any]) -> Part | None:
        self.blocks[index] = held = {**block, "json": ""}
        if held["type"] == "tool_use":
            function = {"name": held["name"], "arguments": ""}
            return Part(data=[{"index": self._call(index), "id": held["id"], "type": "function", "function": function}])
        return Part(text=str(held["text"])) if held["type"] == "text" and held["text"] else None

    def _go_on(self, index: int, delta: Mapping[str, Any]) -> Part | None:
        block = self.blocks[index]
        match delta["type"]:
            case "text_delta":
                return Part(text=str(delta["text"] or ""))
            case "input_json_delta":
                block["json"] += delta["partial_json"]
                function = {"arguments": delta["partial_json"]}
                return Part(data=[{"index": self._call(index), "function": function}])
            case "thinking_delta":
                block["thinking"] += delta["thinking"]
        return None

    def _call(self, index: int) -> int:
        """Which of the tool calls the block *index* is."""
        return sum(block["type"] == "tool_use" for place, block in self.blocks.items() if place < index)

    def last(self) -> Part:
        """The end of the answer, with what is no text."""
        whole = [
            {**block, "input": block["json"] or block["input"]} if block["type"] == "tool_use" else block
            for _, block in sorted(self.blocks.items())
        ]
        message = spoken([block for block in whole if block["type"] != "text"])
        return Part(finish_reason=_reason(self.reason), usage=_usage(self.counts, {}), output=message)


async def _streamed(found: AsyncGenerator[tuple[str, bytes]]) -> AsyncGenerator[Part]:
    """The parts of a stream. EREMOTEIO for garbage, an error in it, or an end before the message's."""
    said = _Said()
    async for _, data in found:
        with formed():
            part = said.take(decoded(data))
        if part is not None:
            yield part
        if said.is_over:
            break
    if not said.is_over:
        raise error(errno.EREMOTEIO, detail="the stream ended before the message did")
    with formed():
        part = said.last()
    yield part


def _words(found: Any) -> str:
    if isinstance(found, dict) and isinstance(found.get("message"), str):
        return f"{found.get('type', 'error')}: {found['message']}"
    return msgspec.json.encode(found).decode()
