"""`Keeper`: the one object that holds secret keys, all derived from one seed; it uses them and gives none away.

Its text form, its errors and what it returns hold no secret.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agentfs.errors import error
from agentfs.ports import Key
from agentfs.providers.keys import curve, nip04, nip44, seed

_HELD = 1024
_NONCE = 12
_IMPORTED = "key "
"""Names that begin so are of imported keys; what follows is the public key in hex."""


class Keeper:
    """Implements `agentfs.ports.Signer` within one process."""

    def __init__(self, root: bytes) -> None:
        self.__root = root
        self.__secrets: OrderedDict[Key, bytes] = OrderedDict()
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

    def _secret(self, key: Key) -> bytes:
        found = self.__secrets.get(key)
        if found is None:
            found = self.__secrets[key] = self._find(key)
            if len(self.__secrets) > _HELD:
                self.__secrets.popitem(last=False)
        return found

    def _find(self, key: Key) -> bytes:
        if not key.imported:
            return seed.secret_at(self.__root, key.number)
        return self._unsealed(f"{_IMPORTED}{key.pubkey.hex()}", key.imported)

    def adopt(self, secret: bytes) -> Key:
        """A *secret* key of 32 bytes from elsewhere as an imported one, of number 0: sealed, to be kept anywhere."""
        public = curve.pubkey(secret)
        return Key(0, public, self._sealed(f"{_IMPORTED}{public.hex()}", secret))

    async def pubkey(self, key: Key) -> bytes:
        """See `Signer.pubkey`."""
        return curve.pubkey(self._secret(key))

    async def sign(self, key: Key, digest: bytes) -> bytes:
        """See `Signer.sign`."""
        if len(digest) != 32:
            raise error(errno.EINVAL, detail="digest: want 32 bytes")
        return curve.sign(self._secret(key), digest)

    async def encrypt(self, key: Key, peer: bytes, text: str) -> str:
        """See `Signer.encrypt`."""
        return nip44.encrypt(text, nip44.conversation_key(self._secret(key), peer))

    async def decrypt(self, key: Key, peer: bytes, payload: str) -> str:
        """See `Signer.decrypt`."""
        if "?iv=" in payload:
            return nip04.decrypt(payload, self._secret(key), peer)
        return nip44.decrypt(payload, nip44.conversation_key(self._secret(key), peer))

    async def seal(self, name: str, data: bytes) -> bytes:
        """See `Signer.seal`."""
        return self._sealed(name, data)

    async def unseal(self, name: str, sealed: bytes) -> bytes:
        """See `Signer.unseal`."""
        if name.startswith(_IMPORTED):
            raise error(errno.EPERM, detail="keys are used, not read")
        return self._unsealed(name, sealed)

    def _sealed(self, name: str, data: bytes) -> bytes:
        nonce = os.urandom(_NONCE)
        return nonce + self.__vault.encrypt(nonce, data, name.encode())

    def _unsealed(self, name: str, sealed: bytes) -> bytes:
        try:
            return self.__vault.decrypt(sealed[:_NONCE], sealed[_NONCE:], name.encode())
        except (InvalidTag, ValueError):
            raise error(errno.EINVAL, detail=f"{name}: tampered with, or sealed by another keeper") from None

    def verify(self, pubkey: bytes, digest: bytes, signature: bytes) -> bool:
        """See `Signer.verify`."""
        return curve.verify(pubkey, digest, signature)
