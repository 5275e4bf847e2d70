"""The messages of a conversation with a model: as they are stored, and as many as fit into one request.

Pure: what is not a message is dropped; nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import msgspec

from agentfs.compute.prices import likely_tokens

Message: TypeAlias = dict[str, Any]
Exchange: TypeAlias = list[Message]
"""What was said from one message of a sender to the reply."""

DROPPED: Final = "[dropped: no room left]"
TEXT_MAX: Final = 256 << 10
"""Bytes of one text, as JSON has it, in a reply, a request that repeats it or a record of a conversation."""
_ARGUMENTS_MAX: Final = 64 << 10
_SHOWN: Final = 256  # characters of an argument in a call that is too large to be repeated
_FIELDS: Final = ("role", "content", "tool_calls", "tool_call_id")


def cut(text: str) -> str:
    """*text*, or as much of its beginning as there is room for."""
    kept = text[:TEXT_MAX]
    while len(msgspec.json.encode(kept)) > TEXT_MAX:
        kept = kept[: len(kept) // 2]
    return text if kept == text else f"{kept}\n[cut]"


def repeated(call: Message) -> Message:
    """*call* as later requests say it: servers refuse a talk with arguments that are no JSON object, or too large."""
    function = call["function"]
    try:
        given = msgspec.json.decode(function["arguments"], type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        given = {}
    if len(function["arguments"]) <= _ARGUMENTS_MAX:
        return call if given else {**call, "function": {**function, "arguments": "{}"}}
    short = {name: DROPPED if _is_long(value) else value for name, value in list(given.items())[:16]}
    return {**call, "function": {**function, "arguments": msgspec.json.encode(short).decode()}}


def _is_long(value: Any) -> bool:
    return len(msgspec.json.encode(value)) > _SHOWN


def stored(tail: bytes) -> list[Exchange]:
    """The whole exchanges in the end of a conversation's file, oldest first."""
    found: dict[str, Exchange] = {}
    for line in tail.splitlines():
        try:
            record = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue  # the first line may be cut
        if isinstance(record, dict) and isinstance(record.get("role"), str):
            message = {name: record[name] for name in _FIELDS if name in record}
            found.setdefault(str(record.get("envelope_id")), []).append(message)
    return [exchange for exchange in found.values() if exchange[0]["role"] == "user"]


def spoken(exchange: Exchange) -> Exchange:
    """*exchange* without tools: who wrote what."""
    kept = [message for message in exchange if message["role"] != "tool" and message.get("content")]
    return [{"role": message["role"], "content": message["content"]} for message in kept]


def fitted(system: Message, past: Sequence[Exchange], turn: Exchange, tokens: int) -> Exchange:
    """As much of it as *tokens* hold, *system* first: the past gives way, its tools first, then its oldest exchanges.

    Of the *turn* itself only results of tools are dropped, the oldest first.
    """
    kept, room = list(past), tokens - likely_tokens([system])
    for place, exchange in enumerate(kept):
        if _size(kept, turn) <= room:
            break
        kept[place] = spoken(exchange)
    while kept and _size(kept, turn) > room:
        del kept[0]
    return [system, *(message for exchange in kept for message in exchange), *_shortened(turn, room - _size(kept, []))]


def _size(past: Sequence[Exchange], turn: Exchange) -> int:
    return sum(likely_tokens(exchange) for exchange in past) + likely_tokens(turn)


def _shortened(turn: Exchange, room: int) -> Exchange:
    kept = list(turn)
    for place, message in enumerate(kept):
        if likely_tokens(kept) <= room:
            break
        if message["role"] == "tool" and len(message["content"]) > len(DROPPED):
            kept[place] = {**message, "content": DROPPED}
    return kept
