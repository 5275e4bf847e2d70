"""NIP-04: text that older clients encrypted, decrypted.

It must not encrypt: the scheme has no MAC, and NIP-44 has taken its place.
"""

from __future__ import annotations

import base64
import errno
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.padding import PKCS7

from agentfs.errors import error
from agentfs.providers.keys.curve import shared_x

BLOCK: Final = 16  # bytes


def decrypt(payload: str, secret: bytes, public: bytes) -> str:
    """The text of *payload*, ``<base64>?iv=<base64>``, between *secret* (32 bytes) and *public* (32 bytes, x-only).

    AES-256-CBC under the unhashed shared x coordinate. EINVAL when either is no key, and in one wording for all that
    can be wrong with a payload, so that a sender learns nothing of its padding.
    """
    text = _opened(payload, shared_x(secret, public))
    if text is None:
        raise error(errno.EINVAL, detail="NIP-04: it cannot be decrypted")
    return text


def _opened(payload: str, key: bytes) -> str | None:
    """The text, or None: what the libraries raise may hold content, and nothing is raised while it is at hand."""
    hidden, mark, iv = payload.partition("?iv=")
    if not mark:
        return None
    try:
        start, data = base64.b64decode(iv, validate=True), base64.b64decode(hidden, validate=True)
        if len(start) != BLOCK or not data or len(data) % BLOCK:
            return None
        padded = Cipher(AES(key), CBC(start)).decryptor().update(data)
        unpadder = PKCS7(BLOCK * 8).unpadder()
        return (unpadder.update(padded) + unpadder.finalize()).decode("utf-8")
    except ValueError:
        return None
