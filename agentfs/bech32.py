"""bech32 (BIP-173) of whole bytes, and the names of keys made of it: npub and nsec (NIP-19).

It must not correct errors, and no message of its repeats what it was given: that may be an nsec.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final

from agentfs.errors import error

ALPHABET: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
GENERATORS: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
CHECKSUM: Final = 6  # characters
LONGEST: Final = 90  # characters of a whole text
VALUE: Final = {letter: number for number, letter in enumerate(ALPHABET)}


def encode(prefix: str, data: bytes) -> str:
    """*data* as bech32 (BIP-173) under the human-readable *prefix*: lower case, at most 90 characters.

    EINVAL for a prefix that is empty, out of range or not lower case, or when the text would be too long.
    """
    if not prefix or not all(33 <= ord(letter) <= 126 for letter in prefix) or prefix != prefix.lower():
        raise _refused("a prefix is lower-case printable ASCII")
    values = _regroup(data, 8, 5)
    total = _polymod([*_spread(prefix), *values, *[0] * CHECKSUM]) ^ 1
    check = [total >> 5 * place & 31 for place in reversed(range(CHECKSUM))]
    text = prefix + "1" + "".join(ALPHABET[value] for value in (*values, *check))
    if len(text) > LONGEST:
        raise _refused(f"longer than {LONGEST} characters")
    return text


def decode(text: str) -> tuple[str, bytes]:
    """The prefix, in lower case, and the bytes that *text* (bech32, BIP-173) stands for; `encode` gives it back.

    EINVAL, naming the rule that is broken: length, letters out of range or of both cases, separator, prefix, alphabet,
    checksum, or padding that is not fewer than five zero bits.
    """
    if len(text) > LONGEST:
        raise _refused(f"longer than {LONGEST} characters")
    if not all(33 <= ord(letter) <= 126 for letter in text):
        raise _refused("a character out of range")
    if text not in (text.lower(), text.upper()):
        raise _refused("mixed case")
    prefix, separator, tail = text.lower().rpartition("1")
    if not separator or not prefix:
        raise _refused("no prefix before a separator")
    if len(tail) < CHECKSUM or not all(letter in VALUE for letter in tail):
        raise _refused("not the letters of bech32 and a checksum")
    values = [VALUE[letter] for letter in tail]
    if _polymod([*_spread(prefix), *values]) != 1:
        raise _refused("wrong checksum")
    bits = len(values[:-CHECKSUM]) * 5
    if bits % 8 >= 5 or (bits % 8 and values[-CHECKSUM - 1] & ((1 << bits % 8) - 1)):
        raise _refused("wrong padding")
    return prefix, bytes(_regroup(values[:-CHECKSUM], 5, 8)[: bits // 8])


def npub(public: bytes) -> str:
    """The npub (NIP-19) of a 32-byte x-only public key; EINVAL for another length."""
    return _key_text("npub", public)


def nsec(secret: bytes) -> str:
    """The nsec (NIP-19) of a 32-byte secret key; EINVAL for another length."""
    return _key_text("nsec", secret)


def public_of(text: str) -> bytes:
    """The 32-byte public key that an npub (NIP-19) names; EINVAL when *text* is not one."""
    return _key_bytes("npub", text)


def secret_of(text: str) -> bytes:
    """The 32-byte secret key that an nsec (NIP-19) holds; EINVAL when *text* is not one."""
    return _key_bytes("nsec", text)


def _key_text(prefix: str, key: bytes) -> str:
    if len(key) != 32:
        raise _refused(f"an {prefix} is of 32 bytes")
    return encode(prefix, key)


def _key_bytes(prefix: str, text: str) -> bytes:
    found, key = decode(text)
    if found != prefix or len(key) != 32:
        raise _refused(f"not an {prefix}")
    return key


def _spread(prefix: str) -> list[int]:
    return [ord(letter) >> 5 for letter in prefix] + [0] + [ord(letter) & 31 for letter in prefix]


def _polymod(values: Iterable[int]) -> int:
    total = 1
    for value in values:
        top = total >> 25
        total = (total & 0x1FFFFFF) << 5 ^ value
        for place, generator in enumerate(GENERATORS):
            total ^= generator if top >> place & 1 else 0
    return total


def _regroup(values: Iterable[int], width: int, into: int) -> list[int]:
    """The bits of *values* of *width* bits each, in groups of *into* bits; the last one is filled with zeros."""
    held = bits = 0
    out = []
    for value in values:
        held, bits = held << width | value, bits + width
        while bits >= into:
            bits -= into
            out.append(held >> bits)
            held &= (1 << bits) - 1
    return [*out, held << into - bits] if bits else out


def _refused(why: str) -> OSError:
    return error(errno.EINVAL, detail=f"bech32: {why}")
