"""Signed requests as text: two forms of an Authorization header, what each of them signs, made and taken apart.

Pure: no clock, no key, and no memory of what came before; those are `requests`'. The forms are NIP-98 (``Nostr
BASE64(event)``) and one of our own, which also covers the headers that change what a request does.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from agentfs.engine.identity import event_id
from agentfs.errors import error

NOSTR: Final = "Nostr"
OWN: Final = "Agentfs-Signature"
KIND: Final = 27_235
ACTING: Final = ("destination", "idempotency-key", "if-match", "if-none-match", "overwrite")
"""The headers that change what a request does, in the order in which they are signed."""
EMPTY: Final = hashlib.sha256(b"").hexdigest()

_HEAD: Final = "agentfs request 1"
_SIZE_MAX: Final = 16_384
_FORMS: Final = {name.lower(): name for name in (NOSTR, OWN)}
_HEX32: Final = re.compile(r"[0-9a-f]{64}\Z")
_HEX64: Final = re.compile(r"[0-9a-f]{128}\Z")
_PARAMETER: Final = re.compile(r'[ \t]*([a-z]+)="([A-Za-z0-9_-]+)"[ \t]*\Z')
_PARAMETERS: Final = {
    "pubkey": _HEX32, "at": re.compile(r"[1-9][0-9]{0,15}\Z"), "nonce": re.compile(r"[A-Za-z0-9_-]{16,64}\Z"),
    "body": _HEX32, "sig": _HEX64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sent:
    """A request as it came, or as it is to be sent: but for the body, all that is signed.

    ``url`` is scheme, Host header, path and query, byte for byte; ``acting`` holds (name in lower case, value) of the
    `ACTING` headers, in that order.
    """

    method: str
    url: str
    acting: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """What an Authorization header says: who signed what, when. ``sig`` (64 bytes) is to be of ``digest`` (32).

    ``at_ns`` is told in whole steps of ``step_ns``; ``body`` is the SHA-256 in hex, None where it is not said.
    """

    pubkey: str
    digest: bytes
    sig: bytes
    at_ns: int
    step_ns: int
    nonce: str
    body: str | None
    sent: Sent


class _Event(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    pubkey: str
    created_at: int
    kind: int
    tags: list[list[str]]
    content: str
    sig: str


def form_of(header: str) -> str:
    """`NOSTR` or `OWN`; "" for an Authorization header of another scheme."""
    return _FORMS.get(header.partition(" ")[0].lower(), "")


def parse(header: str, sent: Sent) -> Claim:
    """What *header*, of one of the two forms, claims about *sent*. EACCES saying what is malformed."""
    form = form_of(header)
    if not form:
        raise _malformed(f"want {NOSTR} or {OWN}")
    if len(header) > _SIZE_MAX:
        raise _malformed(f"over {_SIZE_MAX} bytes")
    if not (sent.url.isascii() and all(value.isascii() for _, value in sent.acting)):
        raise _malformed("what is signed has to be ASCII")
    rest = header.partition(" ")[2].strip(" ")
    return _parse_event(rest) if form == NOSTR else _parse_own(rest, sent)


# -- our own form ------------------------------------------------------------------------------------------------------


def statement(sent: Sent, at_ms: str, nonce: str, body: str) -> bytes:
    """What our form signs the SHA-256 of: lines, each ended by a newline."""
    lines = [_HEAD, sent.method, sent.url, at_ms, nonce, body, *(f"{name}: {value}" for name, value in sent.acting)]
    return "".join(f"{line}\n" for line in lines).encode()


def own(pubkey: str, at_ms: str, nonce: str, body: str, sig: bytes) -> str:
    """The header in our form; *body* is the SHA-256 of the body in hex."""
    return f'{OWN} pubkey="{pubkey}", at="{at_ms}", nonce="{nonce}", body="{body}", sig="{sig.hex()}"'


def _parse_own(text: str, sent: Sent) -> Claim:
    found: dict[str, str] = {}
    for part in text.split(","):
        match = _PARAMETER.match(part)
        if match is None or match[1] in found:
            raise _malformed(f"want {OWN} {', '.join(f'{name}=...' for name in _PARAMETERS)}, each once and quoted")
        found[match[1]] = match[2]
    for name, form in _PARAMETERS.items():
        if not form.match(found.get(name, "")):
            raise _malformed(f"{name}: missing or of another form")
    if unknown := set(found) - set(_PARAMETERS):
        raise _malformed(f"{min(unknown)[:40]}: unknown")
    digest = hashlib.sha256(statement(sent, found["at"], found["nonce"], found["body"])).digest()
    at_ns = int(found["at"]) * 1_000_000
    return Claim(
        found["pubkey"], digest, bytes.fromhex(found["sig"]), at_ns, 1_000_000, found["nonce"], found["body"], sent
    )


# -- NIP-98 ------------------------------------------------------------------------------------------------------------


def event(pubkey: str, sent: Sent, at_s: int, nonce: str, body: str) -> dict[str, Any]:
    """The event that NIP-98 signs, without its id and signature; *nonce* makes it another in the same second."""
    tags = [["u", sent.url], ["method", sent.method], ["nonce", nonce]]
    tags += [["payload", body]] if body != EMPTY else []
    return {"pubkey": pubkey, "created_at": at_s, "kind": KIND, "tags": tags, "content": ""}


def nostr(signed: dict[str, Any], sig: bytes) -> str:
    """The header in the form of NIP-98 for an `event`."""
    whole = {"id": event_id(signed).hex(), **signed, "sig": sig.hex()}
    return f"{NOSTR} {base64.b64encode(msgspec.json.encode(whole)).decode()}"


def _parse_event(text: str) -> Claim:
    try:
        raw = base64.b64decode(text, validate=True)
        found = msgspec.json.decode(raw, type=_Event)
    except (binascii.Error, ValueError, msgspec.DecodeError, RecursionError) as exc:
        raise _malformed(f"want {NOSTR} and a signed event in base64") from exc
    if base64.b64encode(raw).decode() != text:
        raise _malformed("base64 in another spelling than its own")
    if not (_HEX32.match(found.pubkey) and _HEX32.match(found.id) and _HEX64.match(found.sig)):
        raise _malformed("id, pubkey and sig have to be hex in lower case")
    digest = event_id(msgspec.to_builtins(found))
    if digest.hex() != found.id or found.kind != KIND:
        raise _malformed(f"want an event of kind {KIND} with its own id")
    tags = {name: _tag(found, name) for name in ("u", "method", "payload")}
    sent = Sent((tags["method"] or "").upper(), tags["u"] or "")
    at_ns = found.created_at * 1_000_000_000
    sig = bytes.fromhex(found.sig)
    return Claim(found.pubkey, digest, sig, at_ns, 1_000_000_000, found.id, tags["payload"], sent)


def _tag(found: _Event, name: str) -> str | None:
    """The value of the one tag *name*; None without it."""
    values = [tag[1] for tag in found.tags if len(tag) > 1 and tag[0] == name]
    if len(values) > 1 or (not values and name != "payload"):
        raise _malformed(f"want one tag {name!r}")
    return values[0] if values else None


def _malformed(why: str) -> OSError:
    return error(errno.EACCES, detail=f"Authorization: {why}")
