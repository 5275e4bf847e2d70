"""`authorize`: the Authorization header by which an agent signs one request to another runtime.

It sends nothing; what is signed is in `claims`.
"""

from __future__ import annotations

import errno
import hashlib
import re
import secrets
from typing import Final
from urllib.parse import urlsplit

import msgspec

from agentfs.engine import claims
from agentfs.engine.claims import ACTING, EMPTY, Sent
from agentfs.engine.identity import Identities, event_id, hex_of
from agentfs.errors import error

_FORMS: Final = ("own", "nostr")
_METHOD: Final = re.compile(r"[A-Z]{1,20}\Z")
_URL: Final = re.compile(r"https?://[!-~]{1,8192}\Z")
_VALUE: Final = re.compile(r"[!-~]([ -~]{0,1022}[!-~])?\Z")
_NONCE_BYTES: Final = 16


class Wish(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The request that is to be signed: its ``body`` as text, or the ``sha256`` of it in hex, or neither for none."""

    method: str
    url: str
    body: str | None = None
    sha256: str | None = None
    form: str = "own"
    headers: dict[str, str] = {}


async def authorize(identities: Identities, agent: str, now_ns: int, doc: bytes) -> str:
    """The header for the request that *doc* describes, signed by *agent* now. EINVAL naming the field."""
    try:
        wish = msgspec.json.decode(doc, type=Wish)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise error(errno.EINVAL, detail=f"request: {exc}") from exc
    sent, body, purpose = _sent(wish), _hash(wish), f"request {wish.method} {_place(wish.url)}"[:200]
    nonce = secrets.token_urlsafe(_NONCE_BYTES)
    if wish.form == "own":
        at_ms = str(now_ns // 1_000_000)
        digest = hashlib.sha256(claims.statement(sent, at_ms, nonce, body)).digest()
        row, sig = await identities.sign(agent, digest, purpose)
        return claims.own(row.pubkey, at_ms, nonce, body, sig)
    pubkey = (await identities.current(agent)).pubkey
    event = claims.event(pubkey, sent, now_ns // 1_000_000_000, nonce, body)
    row, sig = await identities.sign(agent, event_id(event), purpose)
    if row.pubkey != pubkey:
        raise error(errno.EBUSY, detail="the key was rotated meanwhile")
    return claims.nostr(event, sig)


def _sent(wish: Wish) -> Sent:
    if not _METHOD.match(wish.method):
        raise error(errno.EINVAL, detail="method: want GET, PUT, POST ...")
    if not _URL.match(wish.url) or "#" in wish.url:
        raise error(errno.EINVAL, detail="url: want http(s)://HOST/PATH as it is sent, without a fragment")
    if wish.form not in _FORMS:
        raise error(errno.EINVAL, detail=f"form: want one of {' '.join(_FORMS)}")
    if wish.form == "nostr" and wish.headers:
        raise error(errno.EINVAL, detail="headers: NIP-98 does not sign them, form own does")
    named = {name.lower(): value for name, value in wish.headers.items()}
    if len(named) < len(wish.headers) or set(named) - set(ACTING):
        raise error(errno.EINVAL, detail=f"headers: want each of {' '.join(ACTING)} at most once")
    if bad := [name for name, value in named.items() if not _VALUE.match(value)]:
        raise error(errno.EINVAL, detail=f"headers: {bad[0]}: want printable ASCII without space around it")
    return Sent(wish.method, wish.url, tuple((name, named[name]) for name in ACTING if name in named))


def _place(url: str) -> str:
    """*url* without its query, for the record."""
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise error(errno.EINVAL, detail=f"url: {exc}") from exc
    if not parts.hostname or "@" in parts.netloc:
        raise error(errno.EINVAL, detail="url: want http(s)://HOST/PATH, and nobody's name and password in it")
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def _hash(wish: Wish) -> str:
    if wish.body is not None and wish.sha256 is not None:
        raise error(errno.EINVAL, detail="body: give it or its sha256, not both")
    if wish.sha256 is not None:
        return hex_of(wish.sha256, 32, "sha256").hex()
    return hashlib.sha256(wish.body.encode()).hexdigest() if wish.body is not None else EMPTY
