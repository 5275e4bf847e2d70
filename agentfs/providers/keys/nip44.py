"""NIP-44 version 2: text encrypted between two keys, with padding and a MAC.

It must not sign, keep keys, or say anything of the content of what it refuses.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hmac
import os
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from agentfs.errors import error
from agentfs.providers.keys.curve import shared_x

SALT: Final = b"nip44-v2"
VERSION: Final = 2
LONGEST: Final = 65535  # bytes of a text
PAYLOAD: Final = range(132, 87472 + 1)  # characters of a payload
RAW: Final = range(99, 65603 + 1)  # bytes of a payload
COUNTER: Final = bytes(4)  # the block that ChaCha20 begins with


class MessageKeys(NamedTuple):
    """What one message is encrypted (32 bytes, and a nonce of 12) and authenticated (32 bytes) with."""

    cipher: bytes
    nonce: bytes
    mac: bytes


def conversation_key(secret: bytes, public: bytes) -> bytes:
    """The 32-byte key that the owners of *secret* (32 bytes) and *public* (32 bytes, x-only) share, either way round.

    HKDF-extract of the shared x coordinate under the salt "nip44-v2". EINVAL when either is no key.
    """
    return hmac.digest(SALT, shared_x(secret, public), "sha256")


def message_keys(key: bytes, nonce: bytes) -> MessageKeys:
    """The keys of the one message under the 32-byte conversation *key* that has this 32-byte *nonce*.

    HKDF-expand to 76 bytes. EINVAL for other lengths.
    """
    if len(key) != 32 or len(nonce) != 32:
        raise _refused("a conversation key and a nonce are 32 bytes each")
    made = HKDFExpand(algorithm=SHA256(), length=76, info=nonce).derive(key)
    return MessageKeys(made[:32], made[32:44], made[44:])


def padded_length(size: int) -> int:
    """How many bytes a text of *size* bytes (1 or more) is padded to, less the two bytes of its length."""
    if size <= 32:
        return 32
    power = 1 << (size - 1).bit_length()
    chunk = max(32, power // 8)
    return chunk * ((size - 1) // chunk + 1)


def encrypt(text: str, key: bytes, nonce: bytes | None = None) -> str:
    """The payload, in base64, of *text* under a 32-byte conversation *key*.

    *nonce* is 32 fresh random bytes by default; only vectors name it. EINVAL for a text that is not 1 to 65535 bytes of
    UTF-8, or for a key or nonce of another length.
    """
    nonce = os.urandom(32) if nonce is None else nonce
    keys, plain = message_keys(key, nonce), _utf8(text)
    if not 1 <= len(plain) <= LONGEST:
        raise _refused(f"a text is 1 to {LONGEST} bytes")
    padded = len(plain).to_bytes(2, "big") + plain + bytes(padded_length(len(plain)) - len(plain))
    hidden = _chacha(keys, padded)
    return base64.b64encode(bytes([VERSION]) + nonce + hidden + _mac(keys, nonce, hidden)).decode("ascii")


def decrypt(payload: str, key: bytes) -> str:
    """The text of *payload* under a 32-byte conversation *key*.

    EINVAL saying why: an unknown version, a wrong length, not base64, a wrong MAC (compared in constant time, before
    anything is decrypted), wrong padding, or not UTF-8.
    """
    raw = _unwrapped(payload)
    nonce, hidden, mac = raw[1:33], raw[33:-32], raw[-32:]
    keys = message_keys(key, nonce)
    if not hmac.compare_digest(_mac(keys, nonce, hidden), mac):
        raise _refused("wrong MAC")
    padded = _chacha(keys, hidden)
    size = int.from_bytes(padded[:2], "big")
    if size == 0 or len(padded) != 2 + padded_length(size):
        raise _refused("wrong padding")
    text = _text(padded[2 : 2 + size])
    if text is None:
        raise _refused("what was encrypted is not UTF-8")
    return text


def _unwrapped(payload: str) -> bytes:
    """The bytes of a *payload* of this version."""
    if payload.startswith("#"):
        raise _refused("unknown version")
    if len(payload) not in PAYLOAD:
        raise _refused("wrong length of the payload")
    raw = _unbase64(payload)
    if raw is None:
        raise _refused("not base64")
    if raw[0] != VERSION:
        raise _refused("unknown version")
    if len(raw) not in RAW:
        raise _refused("wrong length of the payload")
    return raw


def _unbase64(payload: str) -> bytes | None:
    """The bytes of the one spelling that RFC 4648 gives them, else None."""
    try:
        raw = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if base64.b64encode(raw).decode("ascii") == payload else None


def _utf8(text: str) -> bytes:
    plain = text.encode("utf-8", "replace")
    if plain.decode("utf-8") != text:
        raise _refused("a text is UTF-8")
    return plain


def _text(plain: bytes) -> str | None:
    try:
        return plain.decode("utf-8")
    except UnicodeDecodeError:  # it holds the plain bytes, so nothing is raised while it is at hand
        return None


def _chacha(keys: MessageKeys, data: bytes) -> bytes:
    return Cipher(ChaCha20(keys.cipher, COUNTER + keys.nonce), mode=None).encryptor().update(data)


def _mac(keys: MessageKeys, nonce: bytes, hidden: bytes) -> bytes:
    return hmac.digest(keys.mac, nonce + hidden, "sha256")


def _refused(why: str) -> OSError:
    return error(errno.EINVAL, detail=f"NIP-44: {why}")
