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
_FIELDS: Final = ("role", "content", "tool_calls", "tool_call_id")


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
