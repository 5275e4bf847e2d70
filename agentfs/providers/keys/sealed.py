"""A sealed file: a few bytes that only a passphrase or a key opens, replaced whole, and no byte of it can be changed.

scrypt (RFC 7914) makes the key, ChaCha20-Poly1305 (RFC 8439) seals, with the header as its associated data.
"""

from __future__ import annotations

import base64
import errno
import os
import stat
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from agentfs.errors import error

WORK: Final = 1 << 15
_WORK_MAX: Final = 1 << 22
_SIZE_MAX: Final = 1 << 20


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: int
    kdf: str
    n: int
    r: int
    p: int
    salt: str
    nonce: str


def seal(path: Path, data: bytes, passphrase: bytes, *, work: int = WORK) -> None:
    """Write *data* to *path*, mode 0600, in place of what was there: all of it or nothing. *work* is scrypt's N."""
    salt, nonce = os.urandom(16), os.urandom(12)
    header = msgspec.json.encode(_Header(1, "scrypt", work, 8, 1, salt.hex(), nonce.hex()))
    body = ChaCha20Poly1305(_key(passphrase, salt, work, 8, 1)).encrypt(nonce, data, header)
    part = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(header + b"\n" + base64.b64encode(body) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def unseal(path: Path, passphrase: bytes) -> bytes:
    """What `seal` wrote. ENOENT; EACCES when others may read it; EINVAL for the passphrase or any changed byte."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise error(errno.EACCES, str(path), "others may read it: chmod 600")
        raw = file.read(_SIZE_MAX + 1)
    try:
        head, body, rest = raw.split(b"\n")
        header = msgspec.json.decode(head, type=_Header)
        is_known = (header.v, header.kdf, rest) == (1, "scrypt", b"") and header.n <= _WORK_MAX
        if not is_known or msgspec.json.encode(header) != head:
            raise ValueError
        key = _key(passphrase, bytes.fromhex(header.salt), header.n, header.r, header.p)
        sealed = base64.b64decode(body, validate=True)
        if base64.b64encode(sealed) != body:
            raise ValueError
        return ChaCha20Poly1305(key).decrypt(bytes.fromhex(header.nonce), sealed, head)
    except (ValueError, TypeError, OverflowError, MemoryError, InvalidTag, msgspec.DecodeError):
        raise error(errno.EINVAL, str(path), "wrong passphrase, or the sealed file was tampered with") from None


def _key(passphrase: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    return Scrypt(salt=salt, length=32, n=n, r=r, p=p).derive(passphrase)
