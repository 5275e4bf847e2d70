"""Encryption between two keys: NIP-44 version 2, and reading what older peers send in the form of NIP-04.

Faults name the reason and never the content.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import hmac
import os
from typing import Final

from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from agentfs.errors import error
from agentfs.providers.keys.curve import shared_x

VERSION: Final = b"\x02"
TEXT_MAX: Final = 65_535
_PAYLOAD: Final = range(132, 87_473)
_RAW: Final = range(99, 65_604)


def conversation_key(secret: bytes, key: bytes) -> bytes:
    """The 32 bytes that both ends derive from their own secret and the other's public key."""
    return hmac.new(b"nip44-v2", shared_x(secret, key), hashlib.sha256).digest()


def message_keys(conversation: bytes, nonce: bytes) -> tuple[bytes, bytes, bytes]:
    """The ChaCha20 key, its nonce (12 bytes) and the HMAC key of one message."""
    if len(conversation) != 32 or len(nonce) != 32:
        raise error(errno.EINVAL, detail="nip44: key and nonce have 32 bytes")
    keys = HKDFExpand(algorithm=hashes.SHA256(), length=76, info=nonce).derive(conversation)
    return keys[:32], keys[32:44], keys[44:76]


def padded_size(size: int) -> int:
    """How many bytes a text of *size* bytes takes when padded."""
    if size <= 32:
        return 32
    power = 1 << (size - 1).bit_length()
    chunk = 32 if power <= 256 else power // 8
    return chunk * ((size - 1) // chunk + 1)


def _chacha20(key: bytes, nonce: bytes, data: bytes) -> bytes:
    cipher = Cipher(algorithms.ChaCha20(key, bytes(4) + nonce), mode=None)
    return cipher.encryptor().update(data)


def encrypt(text: str, conversation: bytes, nonce: bytes | None = None) -> str:
    """*text* (1-65535 bytes of UTF-8) as a payload; *nonce* is 32 bytes, fresh ones unless given. EINVAL."""
    data = text.encode()
    if not 0 < len(data) <= TEXT_MAX:
        raise error(errno.EINVAL, detail=f"text: want 1-{TEXT_MAX} bytes")
    nonce = os.urandom(32) if nonce is None else nonce
    key, chacha_nonce, mac_key = message_keys(conversation, nonce)
    padded = len(data).to_bytes(2) + data + bytes(padded_size(len(data)) - len(data))
    sealed = _chacha20(key, chacha_nonce, padded)
    mac = hmac.new(mac_key, nonce + sealed, hashlib.sha256).digest()
    return base64.b64encode(VERSION + nonce + sealed + mac).decode()


def decrypt(payload: str, conversation: bytes) -> str:
    """The text of a payload. EINVAL when it is malformed, of another version, or was tampered with."""
    if payload[:1] == "#":
        raise error(errno.EINVAL, detail="payload: of a version that is not known")
    try:
        raw = base64.b64decode(payload, validate=True) if len(payload) in _PAYLOAD else b""
    except (binascii.Error, ValueError) as exc:
        raise error(errno.EINVAL, detail="payload: not base64") from exc
    if len(raw) not in _RAW:
        raise error(errno.EINVAL, detail="payload: of a length that none has")
    if raw[:1] != VERSION:
        raise error(errno.EINVAL, detail="payload: of a version that is not known")
    nonce, sealed, mac = raw[1:33], raw[33:-32], raw[-32:]
    key, chacha_nonce, mac_key = message_keys(conversation, nonce)
    if not hmac.compare_digest(hmac.new(mac_key, nonce + sealed, hashlib.sha256).digest(), mac):
        raise error(errno.EINVAL, detail="payload: tampered with, or for another key")
    padded = _chacha20(key, chacha_nonce, sealed)
    size = int.from_bytes(padded[:2])
    data = padded[2 : 2 + size]
    if not size or len(data) != size or len(padded) != 2 + padded_size(size) or any(padded[2 + size :]):
        raise error(errno.EINVAL, detail="payload: padding")
    return _text(data)


def is_nip04(payload: str) -> bool:
    """Whether *payload* has the form of NIP-04."""
    return "?iv=" in payload


def decrypt_nip04(payload: str, secret: bytes, key: bytes) -> str:
    """The text of a NIP-04 payload (AES-256-CBC, no integrity: kept for what older peers sent). EINVAL."""
    sealed, _, iv = payload.partition("?iv=")
    try:
        data, start = base64.b64decode(sealed, validate=True), base64.b64decode(iv, validate=True)
        cipher = Cipher(algorithms.AES(shared_x(secret, key)), modes.CBC(start)).decryptor()
        padded = cipher.update(data) + cipher.finalize()
        unpadder = padding.PKCS7(128).unpadder()
        return _text(unpadder.update(padded) + unpadder.finalize())
    except (binascii.Error, ValueError) as exc:
        raise error(errno.EINVAL, detail="payload: cannot be decrypted") from exc


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise error(errno.EINVAL, detail="payload: not text") from exc
