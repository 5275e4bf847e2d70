"""What a program may ask for in a tick: one frozen struct an effect, the same for exec lines and `AgentContext` calls.

Pure values: `commit` turns them into store changes.
"""

from __future__ import annotations

import errno
from typing import Any, TypeAlias

import msgspec

from agentfs.errors import error


class Effect(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    """One effect; on stdout of an exec program it is a JSON object whose ``type`` is the tag."""


class Reply(Effect, frozen=True, kw_only=True, tag="reply"):
    """Answer the sender of the trigger; for an alarm, whoever's message set it."""

    payload: Any
    extra: dict[str, Any] = {}


class Send(Effect, frozen=True, kw_only=True, tag="send"):
    """Send *payload* to an agent, or to any other name (it then only appears in the outbox)."""

    to: str
    payload: Any
    id: str = ""
    priority: int = 0
    expires_at: str | None = None
    extra: dict[str, Any] = {}


class SetState(Effect, frozen=True, kw_only=True, tag="state"):
    """Replace the program's state by a JSON value; ``schema`` is the state's version."""

    state: Any
    schema: int = 0


class PutKv(Effect, frozen=True, kw_only=True, tag="kv"):
    """Store a value under ``kv/<key>``: text, or bytes from a program in the runtime; None removes the key."""

    key: str
    value: Any


class SetAlarm(Effect, frozen=True, kw_only=True, tag="alarm"):
    """Set or replace the alarm *name*: exactly one of ``at`` (RFC 3339), ``in_ms``, ``every_ms``."""

    name: str
    at: str | None = None
    in_ms: int | None = None
    every_ms: int | None = None
    payload: Any = None
    missed: str = "once"


class CancelAlarm(Effect, frozen=True, kw_only=True, tag="cancel_alarm"):
    """Remove the alarm *name*; absent is no error."""

    name: str


class MarkSeen(Effect, frozen=True, kw_only=True, tag="seen"):
    """Remember *key* so that `AgentContext.seen` answers true from now on."""

    key: str


class LogLine(Effect, frozen=True, kw_only=True, tag="log"):
    """A line of the program's own in the trajectory."""

    text: str


class Remember(Effect, frozen=True, kw_only=True, tag="remember"):
    """Append *records*, JSON objects, to ``memory/conversations/<conversation>``."""

    conversation: str
    records: list[dict[str, Any]]


AnyEffect: TypeAlias = Reply | Send | SetState | PutKv | SetAlarm | CancelAlarm | MarkSeen | LogLine | Remember
_DECODER: msgspec.json.Decoder[AnyEffect] = msgspec.json.Decoder(AnyEffect)


def decode_line(line: bytes) -> AnyEffect:
    """One line of an exec program's stdout. EINVAL naming the field."""
    try:
        effect = _DECODER.decode(line)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise error(errno.EINVAL, detail=f"effect {line[:80].decode(errors='replace')!r}: {exc}") from exc
    return effect
