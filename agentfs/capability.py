"""Capability tokens as text: a chain of HMACs over caveats that anyone can lengthen and nobody can shorten.

After Birgisson et al., "Macaroons: Cookies with Contextual Caveats", NDSS 2014. Checking one needs the root key and
nothing else; whether it was revoked is not known here.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from agentfs.errors import error
from agentfs.types import OPERATIONS, Caveat, Path, clean

HEAD: Final = "cap1"
LINKS_MAX: Final = 32
SIZE_MAX: Final = 16_384
_ID_BYTES: Final = 12
_ID: Final = re.compile(rf"[0-9a-f]{{{2 * _ID_BYTES}}}\Z")


class _Root(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    by: str
    at: int
    nonce: str


class _Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    nonce: str
    allow: list[tuple[str, list[str]]] | None = None
    exp: int | None = None
    usd: int | None = None
    depth: int | None = None


@dataclass(frozen=True, slots=True)
class Capability:
    """A token whose chain is sound: who made it (``operator`` or ``agent:<id>``), when, and what narrows it."""

    by: str
    at_ns: int
    id: str
    caveats: tuple[Caveat, ...] = ()

    @property
    def ids(self) -> frozenset[str]:
        """The id of every link: revoking one revokes the token."""
        return frozenset({self.id, *(caveat.id for caveat in self.caveats)})

    @property
    def expires_ns(self) -> int | None:
        """When the first of its links expires."""
        return min((c.expires_ns for c in self.caveats if c.expires_ns is not None), default=None)


def is_id(text: str) -> bool:
    """Whether *text* has the form of a link's id."""
    return _ID.match(text) is not None


def root_key(secret: str) -> bytes:
    """The key that signs roots, derived from the operator's secret."""
    return hmac.new(secret.encode(), b"agentfs capability root 1", hashlib.sha256).digest()


def mint(key: bytes, by: str, at_ns: int) -> str:
    """A token with all the rights of *by*."""
    block = msgspec.json.encode(_Root(by, at_ns, secrets.token_hex(_ID_BYTES)))
    return _join([block], _mac(key, block))


def narrow(token: str, caveat: Caveat) -> tuple[str, str]:
    """*token* with one more caveat (whose id is ignored), and the id of that link.

    Needs no key; the result allows what both allow. EINVAL; EPERM past the token's depth.
    """
    blocks, mac = _split(token)
    links = [_link(block, "") for block in blocks[1:]]
    if not _is_deep_enough([*links, caveat]):
        raise error(errno.EPERM, detail="depth: the token may not be handed on that often")
    if len(blocks) > LINKS_MAX:
        raise error(errno.EINVAL, detail=f"token: more than {LINKS_MAX} links")
    allow = None if caveat.allow is None else [(str(path), sorted(ops)) for path, ops in caveat.allow]
    block = msgspec.json.encode(
        _Link(secrets.token_hex(_ID_BYTES), allow, caveat.expires_ns, caveat.budget_usd, caveat.depth)
    )
    end = _mac(mac, block)
    made = _join([*blocks, block], end)
    if len(made) > SIZE_MAX:
        raise error(errno.EINVAL, detail=f"token over {SIZE_MAX} bytes")
    return made, _id(end)


def verify(key: bytes, token: str) -> Capability:
    """What *token* says, if its chain is sound. EACCES otherwise, whatever the fault; compares in constant time."""
    try:
        blocks, mac = _split(token)
        macs = [_mac(key, blocks[0])]
        for block in blocks[1:]:
            macs.append(_mac(macs[-1], block))
        if not hmac.compare_digest(macs[-1], mac):
            raise error(errno.EACCES, detail="token: not one of this runtime")
        root = msgspec.json.decode(blocks[0], type=_Root)
        links = tuple(_link(block, _id(end)) for block, end in zip(blocks[1:], macs[1:], strict=True))
    except (msgspec.DecodeError, RecursionError, OSError) as exc:
        raise error(errno.EACCES, detail="token: not one of this runtime") from exc
    if not _is_deep_enough(links):
        raise error(errno.EACCES, detail="token: handed on too often")
    return Capability(root.by, root.at, _id(macs[0]), links)


def parse_allow(words: Sequence[str]) -> tuple[tuple[Path, frozenset[str]], ...]:
    """``PATH:OP[+OP...]`` of each word; without operations it is ``read``. EINVAL naming the word."""
    found = []
    for word in words:
        path, sep, ops = word.rpartition(":")
        path, ops = (path, ops) if sep else (word, "read")
        named = frozenset(ops.replace("+", ",").split(","))
        if not named <= OPERATIONS:
            raise error(
                errno.EINVAL, detail=f"allow: {word[:80]!r}: want PATH:OP with OP of {' '.join(sorted(OPERATIONS))}"
            )
        found.append((clean(path.strip("/")), named))
    return tuple(found)


def expired(caveats: Sequence[Caveat], now_ns: int) -> bool:
    """Whether any of *caveats* is over."""
    return any(c.expires_ns is not None and c.expires_ns <= now_ns for c in caveats)


def _id(mac: bytes) -> str:
    """The id of the link that ends in *mac*: a bearer cannot choose it, so it cannot be somebody else's."""
    return hashlib.sha256(mac).hexdigest()[: 2 * _ID_BYTES]


def _link(block: bytes, link_id: str) -> Caveat:
    try:
        link = msgspec.json.decode(block, type=_Link)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise error(errno.EINVAL, detail=f"token: {exc}") from exc
    allow = None if link.allow is None else tuple((clean(path), frozenset(ops)) for path, ops in link.allow)
    return Caveat(link_id, allow, link.exp, link.usd, link.depth)


def _is_deep_enough(links: Sequence[Caveat]) -> bool:
    return all(link.depth is None or len(links) - i - 1 <= link.depth for i, link in enumerate(links))


def _mac(key: bytes, block: bytes) -> bytes:
    return hmac.new(key, block, hashlib.sha256).digest()


def _join(blocks: Sequence[bytes], mac: bytes) -> str:
    return ".".join([HEAD, *(_text(part) for part in [*blocks, mac])])


def _text(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def _split(token: str) -> tuple[list[bytes], bytes]:
    """The blocks and the MAC; EINVAL for anything but the one way to write them."""
    head, *parts = token.split(".")
    if head != HEAD or not 2 <= len(parts) <= LINKS_MAX + 2 or len(token) > SIZE_MAX or not token.isascii():
        raise error(errno.EINVAL, detail="token: not a capability token")
    try:
        found = [base64.b64decode(part + "=" * (-len(part) % 4), b"-_", validate=True) for part in parts]
    except (binascii.Error, ValueError) as exc:
        raise error(errno.EINVAL, detail="token: not a capability token") from exc
    if [_text(part) for part in found] != parts:
        raise error(errno.EINVAL, detail="token: not a capability token")
    return found[:-1], found[-1]
