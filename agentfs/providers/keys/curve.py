"""secp256k1: public keys, BIP-340 signatures and the shared point of two keys, all done by libsecp256k1 (coincurve).

It must not hash messages, know of events, or do arithmetic on a secret by itself.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Final

from coincurve import GLOBAL_CONTEXT, PrivateKey
from coincurve._libsecp256k1 import ffi, lib

from agentfs.errors import error

BAD_SECRET: Final = "secret key: not 32 bytes between 1 and the order of the curve"
BAD_PUBKEY: Final = "public key: not the 32 bytes of an x coordinate on the curve"
EXTRA_MAGIC: Final = b"\xda\x6f\xb3\x8c"  # SECP256K1_SCHNORRSIG_EXTRAPARAMS_MAGIC
EVEN: Final = b"\x02"  # an x-only key stands for the point with the even y (BIP-340, lift_x)


@ffi.callback("int(unsigned char *, unsigned char *, unsigned char *, void *)")  # type: ignore[untyped-decorator]
def _copy_x(output: Any, x: Any, _y: Any, _data: Any) -> int:
    """The "hash" of a shared point that NIP-04 and NIP-44 want: its x coordinate, unhashed."""
    ffi.memmove(output, x, 32)
    return 1


def is_secret(secret: bytes) -> bool:
    """Whether *secret* is a secret key: 32 bytes, big-endian, from 1 to the curve's order less 1."""
    return len(secret) == 32 and bool(lib.secp256k1_ec_seckey_verify(GLOBAL_CONTEXT.ctx, secret))


def fresh() -> bytes:
    """A new secret key of 32 bytes from the system's random source."""
    return PrivateKey().secret


def pubkey(secret: bytes) -> bytes:
    """The 32-byte x-only public key (BIP-340) of a 32-byte *secret*. EINVAL when that is no secret key."""
    point = ffi.new("secp256k1_xonly_pubkey *")
    lib.secp256k1_keypair_xonly_pub(GLOBAL_CONTEXT.ctx, point, ffi.NULL, _keypair(secret))
    out = ffi.new("unsigned char[32]")
    lib.secp256k1_xonly_pubkey_serialize(GLOBAL_CONTEXT.ctx, out, point)
    return bytes(ffi.buffer(out))


def sign(secret: bytes, message: bytes, aux: bytes | None = None) -> bytes:
    """The 64-byte BIP-340 signature of *message* under a 32-byte *secret*.

    A message is signed as it is: events are signed by their 32-byte id (NIP-01), while BIP-340 allows any length. *aux*
    is 32 bytes of auxiliary randomness, fresh by default; only vectors name it. EINVAL for a bad secret or *aux*.
    """
    aux = os.urandom(32) if aux is None else aux
    if len(aux) != 32:
        raise error(errno.EINVAL, detail="signature: auxiliary randomness is 32 bytes")
    pair, signature, random = _keypair(secret), ffi.new("unsigned char[64]"), ffi.new("unsigned char[32]", aux)
    extra = ffi.new("secp256k1_schnorrsig_extraparams *", {"magic": EXTRA_MAGIC, "noncefp": ffi.NULL, "ndata": random})
    done = lib.secp256k1_schnorrsig_sign_custom(GLOBAL_CONTEXT.ctx, signature, message, len(message), pair, extra)
    made = bytes(ffi.buffer(signature))
    if not done or not verify(pubkey(secret), message, made):  # BIP-340: a fault while signing could tell the key
        raise error(errno.EIO, detail="signature: it did not verify")
    return made


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether *signature* (64 bytes) of *message* (any length) is by the owner of *public* (32 bytes, x-only).

    As BIP-340 says. Whatever is malformed is simply not a signature: False, never an exception.
    """
    point = ffi.new("secp256k1_xonly_pubkey *")
    if len(public) != 32 or len(signature) != 64:
        return False
    if not lib.secp256k1_xonly_pubkey_parse(GLOBAL_CONTEXT.ctx, point, public):
        return False
    return bool(lib.secp256k1_schnorrsig_verify(GLOBAL_CONTEXT.ctx, signature, message, len(message), point))


def shared_x(secret: bytes, public: bytes) -> bytes:
    """The unhashed 32-byte x coordinate of *secret* times the point of *public* (x-only), as NIP-04 and NIP-44 use it.

    In constant time for the secret. EINVAL when either is no key.
    """
    point, out = ffi.new("secp256k1_pubkey *"), ffi.new("unsigned char[32]")
    if not is_secret(secret):
        raise error(errno.EINVAL, detail=BAD_SECRET)
    if len(public) != 32 or not lib.secp256k1_ec_pubkey_parse(GLOBAL_CONTEXT.ctx, point, EVEN + public, 33):
        raise error(errno.EINVAL, detail=BAD_PUBKEY)
    if not lib.secp256k1_ecdh(GLOBAL_CONTEXT.ctx, out, point, secret, _copy_x, ffi.NULL):
        raise error(errno.EIO, detail="shared secret: it could not be computed")
    return bytes(ffi.buffer(out))


def _keypair(secret: bytes) -> Any:
    pair = ffi.new("secp256k1_keypair *")
    if len(secret) != 32 or not lib.secp256k1_keypair_create(GLOBAL_CONTEXT.ctx, pair, secret):
        raise error(errno.EINVAL, detail=BAD_SECRET)
    return pair
