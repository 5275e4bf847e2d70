"""`Keeper`: the one object that holds secret keys, all derived from one seed; it uses them and gives none away.

Its text form, its errors and what it returns hold no secret.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections import OrderedDict
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agentfs.errors import error
from agentfs.providers.keys import curve, nip44, sealed, seed

_HELD = 1024
_NONCE = 12


class Keeper:
    """Implements `agentfs.ports.Signer` within one process."""

    def __init__(self, root: bytes) -> None:
        self.__root = root
        self.__secrets: OrderedDict[int, bytes] = OrderedDict()
        vault = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"agentfs secrets 1").derive(root)
        self.__vault = ChaCha20Poly1305(vault)

    @classmethod
    def fresh(cls) -> Keeper:
        """Keys that nobody has written down: gone with the process."""
        return cls(seed.seed_of(seed.fresh_words()))

    def __repr__(self) -> str:
        return "Keeper()"

    def __reduce__(self) -> str:
        raise TypeError("a keeper is not copied out of its process")

    def _secret(self, number: int) -> bytes:
        found = self.__secrets.get(number)
        if found is None:
            found = self.__secrets[number] = seed.secret_of(self.__root, number)
            if len(self.__secrets) > _HELD:
                self.__secrets.popitem(last=False)
        return found

    async def pubkey(self, number: int) -> bytes:
        """See `Signer.pubkey`."""
        return curve.pubkey(self._secret(number))

    async def sign(self, number: int, digest: bytes) -> bytes:
        """See `Signer.sign`."""
        if len(digest) != 32:
            raise error(errno.EINVAL, detail="digest: want 32 bytes")
        return curve.sign(self._secret(number), digest)

    async def encrypt(self, number: int, peer: bytes, text: str) -> str:
        """See `Signer.encrypt`."""
        return nip44.encrypt(text, nip44.conversation_key(self._secret(number), peer))

    async def decrypt(self, number: int, peer: bytes, payload: str) -> str:
        """See `Signer.decrypt`."""
        if nip44.is_nip04(payload):
            return nip44.decrypt_nip04(payload, self._secret(number), peer)
        return nip44.decrypt(payload, nip44.conversation_key(self._secret(number), peer))

    async def seal(self, name: str, data: bytes) -> bytes:
        """See `Signer.seal`."""
        nonce = os.urandom(_NONCE)
        return nonce + self.__vault.encrypt(nonce, data, name.encode())

    async def unseal(self, name: str, sealed: bytes) -> bytes:
        """See `Signer.unseal`."""
        try:
            return self.__vault.decrypt(sealed[:_NONCE], sealed[_NONCE:], name.encode())
        except (InvalidTag, ValueError):
            raise error(errno.EINVAL, detail=f"{name}: tampered with, or sealed by another keeper") from None

    def verify(self, pubkey: bytes, digest: bytes, signature: bytes) -> bool:
        """See `Signer.verify`."""
        return curve.verify(pubkey, digest, signature)


def passphrase(key_file: Path) -> bytes:
    """The content of *key_file*, made (64 hex digits, mode 0600) where there is none. EACCES: others may read it."""
    try:
        handle = os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        if key_file.stat().st_mode & 0o077:
            raise error(errno.EACCES, str(key_file), "others may read it: chmod 600") from None
        return key_file.read_bytes().strip()
    with os.fdopen(handle, "wb") as file:
        file.write(secrets.token_hex(32).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return key_file.read_bytes().strip()


def create(path: Path, phrase: bytes, words: str, *, work: int = sealed.WORK) -> None:
    """Seal the seed of *words* in *path*. EEXIST when there is a sealed file: keys are never replaced by accident."""
    if path.exists():
        raise error(errno.EEXIST, str(path), "it holds the keys of every agent")
    sealed.seal(path, seed.seed_of(seed.check_words(words)), phrase, work=work)


def open_sealed(path: Path, phrase: bytes) -> Keeper:
    """The keeper of a sealed file, which is made with fresh words where there is none. EINVAL, EACCES."""
    if not path.exists():
        create(path, phrase, seed.fresh_words())
    return Keeper(sealed.unseal(path, phrase))
