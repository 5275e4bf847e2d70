"""Words and the keys that follow from them: BIP-39 mnemonics, and derivation as NIP-06 has it.

No fault repeats a word.
"""

from __future__ import annotations

import errno

from bip32 import BIP32
from mnemonic import Mnemonic

from agentfs.errors import error

_WORDS = Mnemonic("english")
_NUMBER_MAX = (1 << 31) - 1


def fresh_words(bits: int = 256) -> str:
    """New words: 12 for 128 *bits*, 24 for 256."""
    return _WORDS.generate(strength=bits)


def check_words(words: str) -> str:
    """*words* in their plain form. EINVAL for a word that is none, a wrong number of them, or a wrong checksum."""
    parts = Mnemonic.normalize_string(words).lower().split()
    if len(parts) not in (12, 15, 18, 21, 24):
        raise error(errno.EINVAL, detail=f"words: {len(parts)}: want 12, 15, 18, 21 or 24")
    unknown = [i for i, part in enumerate(parts, 1) if part not in _WORDS.wordlist]
    if unknown:
        raise error(errno.EINVAL, detail=f"words: number {unknown[0]} is not in the list of BIP-39")
    if not _WORDS.check(" ".join(parts)):
        raise error(errno.EINVAL, detail="words: the checksum does not fit: one is wrong, or their order")
    return " ".join(parts)


def seed_of(words: str, passphrase: str = "") -> bytes:
    """The seed (64 bytes) of *words* (BIP-39)."""
    return Mnemonic.to_seed(words, passphrase)


def secret_of(seed: bytes, number: int) -> bytes:
    """The private key (32 bytes) at ``m/44'/1237'/<number>'/0/0`` (NIP-06). EINVAL for the number."""
    if not 0 <= number <= _NUMBER_MAX:
        raise error(errno.EINVAL, detail=f"key number {number}: want 0..{_NUMBER_MAX}")
    return bytes(BIP32.from_seed(seed).get_privkey_from_path(f"m/44'/1237'/{number}'/0/0"))
