"""Words (BIP-39) to a seed, and a seed to the secret key of an account (NIP-06 over BIP-32).

It must not keep or show words: what is wrong with them is told by place and number alone.
"""

from __future__ import annotations

import errno
import unicodedata
from typing import Final

from bip32 import BIP32, HARDENED_INDEX
from mnemonic import Mnemonic

from agentfs.errors import error

ENGLISH: Final = Mnemonic("english")
KNOWN: Final = frozenset(ENGLISH.wordlist)
COUNTS: Final = (12, 15, 18, 21, 24)
STRENGTHS: Final = (128, 256)  # bits
PURPOSE: Final = 44  # BIP-44
COIN: Final = 1237  # Nostr's entry in SLIP-44


def fresh_words(bits: int = 128) -> str:
    """New English words (BIP-39): 12 for 128 *bits* of the system's randomness, 24 for 256; else EINVAL."""
    if bits not in STRENGTHS:
        raise _refused("128 or 256 bits")
    return ENGLISH.generate(bits)


def check_words(words: str) -> str:
    """*words* with one space between any two, when they are an English mnemonic (BIP-39).

    EINVAL saying what is wrong, by number and place: their count, the first that is not in the list, the checksum.
    """
    found = unicodedata.normalize("NFKD", words).split()
    if len(found) not in COUNTS:
        raise _refused(f"{len(found)} words instead of 12, 15, 18, 21 or 24")
    for place, word in enumerate(found, 1):
        if word not in KNOWN:
            raise _refused(f"word {place} is not in the English list")
    if not ENGLISH.check(" ".join(found)):
        raise _refused("wrong checksum: a word is another one than it was, or they are out of order")
    return " ".join(found)


def seed_of(words: str, passphrase: str = "") -> bytes:
    """The 64-byte seed (BIP-39) of *words*, which are checked first, and a *passphrase*; EINVAL as `check_words`.

    Any passphrase gives a seed: a wrong one is not noticed, it leads to other keys.
    """
    text = passphrase.encode("utf-8", "replace").decode("utf-8")
    if text != passphrase:
        raise _refused("a passphrase is UTF-8")
    return Mnemonic.to_seed(check_words(words), passphrase)


def secret_at(seed: bytes, account: int = 0) -> bytes:
    """The 32-byte secret key at m/44'/1237'/*account*'/0/0 of a 64-byte *seed* (NIP-06, BIP-32).

    EINVAL for a seed of another length, or an account that is not 0 to 2**31 - 1.
    """
    if len(seed) != 64:
        raise _refused("a seed is 64 bytes")
    if not 0 <= account < HARDENED_INDEX:
        raise _refused(f"an account is 0 to {HARDENED_INDEX - 1}")
    hardened = [HARDENED_INDEX + step for step in (PURPOSE, COIN, account)]
    return bytes(BIP32.from_seed(seed).get_privkey_from_path([*hardened, 0, 0]))


def _refused(why: str) -> OSError:
    return error(errno.EINVAL, detail=f"seed: {why}")
