"""identity: an agent's keys, to be used and never read: sign, verify, encrypt, decrypt. Mount it sign_only.

``identity/pubkey`` (R) is the public key in hex, ``identity/npub`` (R) the same in the form of NIP-19.
``identity/sign`` (C) signs what is written: any text, of which the SHA-256 is signed and the signature answered in
hex; or {"text"}, {"digest"} (32 bytes in hex) or {"event"} (NIP-01), each with "purpose"?, answered as JSON.
``identity/verify`` (C) takes {"sig", "pubkey"?, and one of text, digest, event} and answers {valid}; without pubkey it
is about this agent's own keys, those rotated lately included, and an event is about its author's, who must be pubkey
where that is given; its own sig will do. ``identity/encrypt`` (C) takes {"to", "text"} and answers
the payload, ``identity/decrypt`` (C) takes {"from", "payload"} and answers the text (NIP-44; from older peers NIP-04).
``identity/authorize`` (C) takes {"method", "url", "body"? (text) or "sha256"? (of the body, in hex), "headers"?,
"form"? (own or nostr)} and answers the Authorization header of that very request, for a runtime that lets the key in:
see grants.
``identity/history`` (R) has a line a key: {pubkey since until handover signature}, where the key before signed the
SHA-256 of the handover. ``identity/ctl`` (X, the operator's): rotate, or import PUBKEY SEALED, which ``agentfs keys
import`` makes of a key from elsewhere. Signatures are BIP-340 over secp256k1. One handle is one request; each use is a
record in the trace, with its purpose and a hash. Mounted with ``confirm=operator`` each use but verify waits in
approvals/ until it is allowed.
"""

from __future__ import annotations

import base64
import errno
import hashlib
from typing import Any

import msgspec

from agentfs.bech32 import npub
from agentfs.engine.authorize import authorize
from agentfs.engine.identity import event_id, hex_of, key_of
from agentfs.errors import error
from agentfs.services import Scope, Service, jsonl
from agentfs.tree import At, Call, Ctl, File, Tree
from agentfs.tree.nodes import Verb
from agentfs.types import rfc3339

_WHAT = ("text", "digest", "event")


class Keys:
    """The functions behind the table of one agent's identity."""

    def __init__(self, scope: Scope) -> None:
        self._identities, self._agent, self._clock = scope.engine.identities, scope.agent, scope.engine.core.clock

    async def pubkey(self, at: At) -> bytes:
        """The public key in hex."""
        return f"{(await self._identities.current(self._agent)).pubkey}\n".encode()

    async def npub(self, at: At) -> bytes:
        """The public key as NIP-19 writes it."""
        return f"{npub(bytes.fromhex((await self._identities.current(self._agent)).pubkey))}\n".encode()

    async def history(self, at: At) -> bytes:
        """Every key this agent ever had, the oldest first."""
        await self._identities.current(self._agent)
        rows = await self._identities.known(self._agent)
        return jsonl(
            [
                {
                    "pubkey": r.pubkey,
                    "since": rfc3339(r.since_ns),
                    "until": rfc3339(r.until_ns) if r.until_ns else None,
                    "handover": r.handover or None,
                    "signature": r.signature or None,
                }
                for r in rows
            ]
        )

    async def sign(self, at: At, doc: bytes) -> bytes:
        """Sign bytes, or what a JSON request names."""
        if doc[:1] not in (b"{", b"["):
            _, signature = await self._identities.sign(self._agent, hashlib.sha256(doc).digest())
            return f"{signature.hex()}\n".encode()
        request = _request(doc, {*_WHAT, "purpose"})
        purpose = str(request.get("purpose", ""))[:200]
        if isinstance(request.get("event"), dict):
            return await self._sign_event(request["event"], purpose)
        row, signature = await self._identities.sign(self._agent, _digest(request), purpose)
        return msgspec.json.encode({"pubkey": row.pubkey, "sig": signature.hex()}) + b"\n"

    async def _sign_event(self, event: dict[str, Any], purpose: str) -> bytes:
        row = await self._identities.current(self._agent)
        if event.get("pubkey", row.pubkey) != row.pubkey:
            raise error(errno.EPERM, detail="event.pubkey: not this agent's")
        whole = {"created_at": self._clock.now_ns() // 10**9, "tags": [], **event, "pubkey": row.pubkey}
        digest = event_id(whole)
        signer, signature = await self._identities.sign(self._agent, digest, purpose or f"event kind {whole['kind']}")
        if signer.pubkey != row.pubkey:
            raise error(errno.EBUSY, detail="the key was rotated meanwhile")
        return msgspec.json.encode({**whole, "id": digest.hex(), "sig": signature.hex()}) + b"\n"

    async def verify(self, at: At, doc: bytes) -> bytes:
        """Check a signature."""
        request = _request(doc, {*_WHAT, "sig", "pubkey"})
        event = request.get("event")
        if isinstance(event, dict):
            is_valid = event.get("id", event_id(event).hex()) == event_id(event).hex()
            signature, author = request.get("sig", event.get("sig")), event["pubkey"]
            pubkey = request.get("pubkey", author)
            is_valid = is_valid and key_of(pubkey, "pubkey") == key_of(author, "event.pubkey")
        else:
            signature, pubkey, is_valid = request.get("sig"), request.get("pubkey"), True
        key = key_of(pubkey, "pubkey") if pubkey is not None else None
        is_valid = is_valid and await self._identities.verify(
            self._agent, key, _digest(request), hex_of(signature, 64, "sig")
        )
        return msgspec.json.encode({"valid": is_valid}) + b"\n"

    async def authorize(self, at: At, doc: bytes) -> bytes:
        """Sign a request to another runtime, which its holder then sends."""
        return (await authorize(self._identities, self._agent, self._clock.now_ns(), doc) + "\n").encode()

    async def encrypt(self, at: At, doc: bytes) -> bytes:
        """Encrypt a text for somebody."""
        request = _request(doc, {"to", "text"})
        text = request.get("text")
        if not isinstance(text, str):
            raise error(errno.EINVAL, at.path, "text: missing")
        payload = await self._identities.encrypt(self._agent, key_of(request.get("to"), "to"), text)
        return f"{payload}\n".encode()

    async def decrypt(self, at: At, doc: bytes) -> bytes:
        """Decrypt what somebody sent."""
        request = _request(doc, {"from", "payload"})
        payload = request.get("payload")
        if not isinstance(payload, str):
            raise error(errno.EINVAL, at.path, "payload: missing")
        return (await self._identities.decrypt(self._agent, key_of(request.get("from"), "from"), payload)).encode()

    async def rotate(self, at: At) -> None:
        """Take a new key; the old one signs the record of it."""
        await self._identities.rotate(self._agent)

    async def adopt(self, at: At, pubkey: str, sealed: str) -> None:
        """Take a key from elsewhere, as the keeper sealed it."""
        try:
            held = base64.b64decode(sealed, validate=True)
        except ValueError as exc:
            raise error(errno.EINVAL, at.path, "SEALED: want base64") from exc
        await self._identities.adopt(self._agent, key_of(pubkey, "PUBKEY"), held)


def _request(doc: bytes, fields: set[str]) -> dict[str, Any]:
    try:
        request = msgspec.json.decode(doc, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as exc:
        raise error(errno.EINVAL, detail=f"request: {exc}") from exc
    if unknown := set(request) - fields:
        raise error(errno.EINVAL, detail=f"request: {min(unknown)[:40]!r}: want {' '.join(sorted(fields))}")
    return request


def _digest(request: dict[str, Any]) -> bytes:
    given = [name for name in _WHAT if name in request]
    if len(given) != 1:
        raise error(errno.EINVAL, detail="request: want one of text, digest, event")
    what = request[given[0]]
    if given[0] == "digest":
        return hex_of(what, 32, "digest")
    if given[0] == "event" and isinstance(what, dict):
        return event_id(what)
    if given[0] == "text" and isinstance(what, str):
        return hashlib.sha256(what.encode()).digest()
    raise error(errno.EINVAL, detail=f"{given[0]}: of another type")


def identity(scope: Scope) -> Tree:
    """The directory ``identity/`` of one agent."""
    keys = Keys(scope)
    verbs: dict[str, Verb] = {"rotate": keys.rotate, "import": keys.adopt}
    return scope.tree(
        File(name="pubkey", read=keys.pubkey),
        File(name="npub", read=keys.npub),
        File(name="history", read=keys.history),
        Call(name="sign", answer=keys.sign, usage="write any text and read its signature\n"),
        Call(
            name="verify",
            answer=keys.verify,
            usage='write {"text":"...","sig":"..."} and read {"valid":...}\n',
            harmless=True,
        ),
        Call(name="authorize", answer=keys.authorize, usage='write {"method":"GET","url":"..."} and read the header\n'),
        Call(name="encrypt", answer=keys.encrypt, usage='write {"to":"KEY","text":"..."} and read the payload\n'),
        Call(name="decrypt", answer=keys.decrypt, usage='write {"from":"KEY","payload":"..."} and read the text\n'),
        Ctl(name="ctl", verbs=verbs, operator_verbs=frozenset(verbs)),
    )


SERVICE = Service("identity", "identity", identity, level="sign_only", is_confirmable=True)
