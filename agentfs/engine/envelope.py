"""`Envelope`, the wire form of every message: parsing what a caller wrote, and the hash that makes ids idempotent.

Pure values; accepting and storing is in `mail`.
"""

from __future__ import annotations

import errno
import hashlib
import re
from typing import Any

import msgspec

from agentfs.errors import error
from agentfs.types import Principal, new_id, parse_time, rfc3339

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")


class Metadata(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Everything about a message that is not its content. ``priority``: higher goes first, between sources only."""

    seq: int | None = None
    trace_id: str | None = None
    parent_id: str | None = None
    reply_to: str | None = None
    expires_at: str | None = None
    priority: int = 0
    hops: int = 0
    extra: dict[str, Any] = {}


class Envelope(msgspec.Struct, kw_only=True):
    """One message. ``payload`` is any JSON value: text is a string, binary travels as ``{"base64": "..."}``."""

    v: int = 1
    id: str = ""
    timestamp: str = ""
    source: str = ""
    to: str = ""
    payload: Any
    metadata: Metadata = msgspec.field(default_factory=Metadata)

    @property
    def expires_at_ns(self) -> int | None:
        """When the envelope expires, ns since the epoch."""
        return parse_time(self.metadata.expires_at) if self.metadata.expires_at else None


def encode(value: object) -> str:
    """*value* as one line of JSON text."""
    return msgspec.json.encode(value).decode()


def digest(envelope: Envelope) -> str:
    """SHA-256 of what the sender decides: two submits of one id with the same digest are the same message."""
    meta = envelope.metadata
    core = [envelope.source, envelope.to, envelope.payload, meta.reply_to, meta.expires_at, meta.priority, meta.extra]
    return hashlib.sha256(msgspec.json.encode(core, order="sorted")).hexdigest()


def decode(doc: bytes | str) -> Envelope:
    """A stored or sent envelope. EINVAL naming the field."""
    try:
        return msgspec.json.decode(doc, type=Envelope)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise error(errno.EINVAL, detail=f"envelope: {exc}") from exc


def parse(doc: bytes, *, is_json: bool, to: str, principal: Principal, key: str | None, now_ns: int) -> Envelope:
    """What *principal* wrote to the inbox of *to*: text, or a JSON envelope; missing fields are filled in.

    ``source`` comes from the principal; a body that names another is EPERM, except from the operator
    and drivers (not those with a capability token).
    *key* (an idempotency key) becomes the id where the body has none. EINVAL names the field and the reason.
    """
    envelope = decode(doc) if is_json else Envelope(payload=doc.decode().removesuffix("\n").removesuffix("\r"))
    is_free = principal.role in ("operator", "driver") and not principal.token
    if envelope.source and envelope.source != principal.source and not is_free:
        raise error(errno.EPERM, detail=f"source: {envelope.source[:60]!r} is not {principal.source!r}")
    if envelope.to and envelope.to != to:
        raise error(errno.EINVAL, detail=f"to: {envelope.to[:60]!r} is not {to!r}")
    envelope.id = envelope.id or key or new_id(now_ns)
    envelope.source, envelope.to = envelope.source or principal.source, to
    check(envelope)
    envelope.timestamp = rfc3339(parse_time(envelope.timestamp) if envelope.timestamp else now_ns)
    return envelope


def check(envelope: Envelope) -> None:
    """EINVAL for an id, source, time or counter out of form."""
    if not _ID.match(envelope.id):
        raise error(errno.EINVAL, detail="id: want 1-128 of A-Z a-z 0-9 . _ : -")
    if not _ID.match(envelope.source):
        raise error(errno.EINVAL, detail="source: want 1-128 of A-Z a-z 0-9 . _ : -")
    if envelope.v != 1:
        raise error(errno.EINVAL, detail=f"v: {envelope.v} is newer than 1")
    meta = envelope.metadata
    if not -1000 <= meta.priority <= 1000 or not 0 <= meta.hops <= 1000:
        raise error(errno.EINVAL, detail="metadata: priority within +-1000, hops within 0..1000")
    if meta.expires_at:
        parse_time(meta.expires_at)
