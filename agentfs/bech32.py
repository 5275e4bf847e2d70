"""Bech32 as NIP-19 uses it: public keys as ``npub1...``; the checksum is that of BIP-173.

Only public keys have a text form here: no secret is ever written so.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import Final

from agentfs.errors import error

_CHARS: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECK: Final = 6


def _polymod(values: Iterable[int]) -> int:
    found = 1
    for value in values:
        top = found >> 25
        found = (found & 0x1FFFFFF) << 5 ^ value
        for i, part in enumerate(_GENERATOR):
            found ^= part if (top >> i) & 1 else 0
    return found


def _expanded(prefix: str) -> list[int]:
    return [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]


def _regrouped(data: Iterable[int], size: int, to: int, *, pad: bool) -> list[int]:
    """*data* of *size*-bit groups as groups of *to* bits. EINVAL when what is left over is not all zero."""
    held, bits, out = 0, 0, []
    for value in data:
        held, bits = held << size | value, bits + size
        while bits >= to:
            bits -= to
            out.append(held >> bits & (1 << to) - 1)
        held &= (1 << bits) - 1
    if pad and bits:
        out.append(held << to - bits & (1 << to) - 1)
    elif not pad and (bits >= size or held):
        raise error(errno.EINVAL, detail="bech32: bits are left over")
    return out


def encode(prefix: str, data: bytes) -> str:
    """*data* under *prefix*, e.g. ``npub``."""
    words = _regrouped(data, 8, 5, pad=True)
    check = _polymod([*_expanded(prefix), *words, *[0] * _CHECK]) ^ 1
    words += [check >> 5 * (_CHECK - 1 - i) & 31 for i in range(_CHECK)]
    return f"{prefix}1{''.join(_CHARS[word] for word in words)}"


def decode(prefix: str, text: str) -> bytes:
    """The reverse of `encode`. EINVAL for another prefix, mixed case, a wrong checksum or characters."""
    if text != text.lower() and text != text.upper():
        raise error(errno.EINVAL, detail="bech32: mixed case")
    head, sep, rest = text.lower().rpartition("1")
    words: Sequence[int] = [_CHARS.find(c) for c in rest]
    if not sep or head != prefix or len(rest) < _CHECK or min(words, default=-1) < 0:
        raise error(errno.EINVAL, detail=f"bech32: want {prefix}1 and its characters")
    if _polymod([*_expanded(prefix), *words]) != 1:
        raise error(errno.EINVAL, detail="bech32: the checksum does not fit")
    return bytes(_regrouped(words[:-_CHECK], 5, 8, pad=False))


def npub(pubkey: bytes) -> str:
    """A public key (32 bytes) in the form of NIP-19."""
    return encode("npub", pubkey)


def read_key(text: object, name: str) -> bytes:
    """A public key given in hex or as ``npub1...``. EINVAL naming the field."""
    if isinstance(text, str):
        found = decode("npub", text) if text.lower().startswith("npub1") else _hex(text)
        if len(found) == 32:
            return found
    raise error(errno.EINVAL, detail=f"{name}: want a public key: 64 hex digits, or npub1...")


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text) if len(text) == 64 else b""
    except ValueError:
        return b""
