"""secp256k1 as Nostr uses it: x-only public keys, BIP-340 signatures, ECDH; by libsecp256k1 through coincurve.

It keeps no key.
"""

from __future__ import annotations

import errno
import os

from coincurve import PrivateKey, PublicKey, PublicKeyXOnly

from agentfs.errors import error

_EVEN = b"\x02"


def is_secret(secret: bytes) -> bool:
    """Whether *secret* is a private key: 32 bytes, not 0, below the order of the group."""
    try:
        PrivateKey(secret)
    except (ValueError, TypeError):
        return False
    return len(secret) == 32


def pubkey(secret: bytes) -> bytes:
    """The x coordinate (32 bytes) of the public key (BIP-340)."""
    return bytes(PublicKeyXOnly.from_secret(secret).format())


def sign(secret: bytes, digest: bytes, aux: bytes | None = None) -> bytes:
    """A BIP-340 signature (64 bytes) of *digest* (32 bytes); *aux* is 32 bytes, fresh ones unless given."""
    return bytes(PrivateKey(secret).sign_schnorr(digest, os.urandom(32) if aux is None else aux))


def verify(key: bytes, digest: bytes, signature: bytes) -> bool:
    """Whether *signature* of *digest* is *key*'s (BIP-340); False for whatever is malformed."""
    try:
        return bool(PublicKeyXOnly(key).verify(signature, digest))
    except (ValueError, TypeError):
        return False


def shared_x(secret: bytes, key: bytes) -> bytes:
    """The unhashed x coordinate (32 bytes) of ECDH with the x-only public key *key*. EINVAL: not on the curve."""
    try:
        return bytes(PublicKey(_EVEN + key).multiply(secret).format()[1:])
    except (ValueError, TypeError) as exc:
        raise error(errno.EINVAL, detail="public key: not a point of secp256k1") from exc
