"""One sealed file: secret bytes under a passphrase or a key file, where any change of a single bit is noticed.

It must not keep what it opens, log, or name anything but the path in what it raises.

The file is one line of JSON, the header ``{"v":1,"kdf":...,"n":...,"r":8,"p":1,"salt":...,"nonce":...}`` (bytes in
base64; n, r and p are 0 for a key file), and then the ciphertext of ChaCha20-Poly1305 (RFC 8439), raw, with that line
as its associated data. Its key is scrypt (RFC 7914) of a passphrase or HKDF-SHA256 (RFC 5869) of a key file's 32 bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from agentfs.errors import error
from agentfs.providers.keys.secret import Secret

WORK: Final = 1 << 15  # scrypt's n: 32 MiB of memory, with r = 8
WORK_LEAST: Final = 2
WORK_MOST: Final = 1 << 18  # 256 MiB: a forged header costs no more than that
R: Final = 8
P: Final = 1
SALT: Final = 32  # bytes
NONCE: Final = 12  # bytes
KEY: Final = 32  # bytes, of a key file too
LARGEST: Final = 1 << 20  # bytes of a whole file
INFO: Final = b"agentfs sealed file v1"
OTHERS: Final = 0o077  # what a group's members or anyone else could do
TAMPERED: Final = "sealed file: wrong passphrase or tampered with"


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A file of 32 random bytes that opens sealed files in place of a passphrase; nobody else may read it."""

    path: Path


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    """The first line of a sealed file."""

    v: Literal[1]
    kdf: Literal["scrypt", "hkdf-sha256"]
    n: int
    r: int
    p: int
    salt: bytes
    nonce: bytes


def seal(path: Path, data: bytes, opener: Secret | KeyFile, *, n: int = WORK, is_new: bool = False) -> None:
    """Put *data* at *path*, of mode 0600, so that only *opener* (a passphrase, or a key file) gets it back.

    The old file stays whole until the new one is on disk; who is killed in between leaves at most a ``.draft`` beside
    it, sealed too. *n* is scrypt's cost, a power of two from 2 to 2**18, and counts for a passphrase only. EINVAL for
    another *n*, an empty passphrase or a key file that is not 32 bytes; EFBIG beyond 1 MiB; EACCES for a key file that
    others can read. With *is_new* a file that is there by then is left as it is: EEXIST.
    """
    salt, nonce = os.urandom(SALT), os.urandom(NONCE)
    if isinstance(opener, KeyFile):
        header = _Header(1, "hkdf-sha256", 0, 0, 0, salt, nonce)
    else:
        header = _Header(1, "scrypt", n, R, P, salt, nonce)
        if not opener.reveal() or not _affordable(header):
            why = f"a passphrase that is not empty, and n a power of two from {WORK_LEAST} to {WORK_MOST}"
            raise error(errno.EINVAL, str(path), f"sealed file: it takes {why}")
    line = msgspec.json.encode(header) + b"\n"
    whole = line + ChaCha20Poly1305(_key(header, opener)).encrypt(nonce, data, line)
    if len(whole) > LARGEST:
        raise error(errno.EFBIG, str(path), f"sealed file: at most {LARGEST} bytes")
    _place(path, whole, is_new=is_new)


def unseal(path: Path, opener: Secret | KeyFile) -> bytes:
    """What was sealed at *path*, when *opener* (a passphrase, or a key file) is the one it was sealed with.

    EINVAL "sealed file: wrong passphrase or tampered with" for anything else, and, where the header says that the other
    kind of opener is needed, a word on that. EACCES for a file that others can read, ELOOP for a symbolic link, EFBIG
    beyond 1 MiB, ENOENT.
    """
    line, newline, hidden = _private(path).partition(b"\n")
    header, line = _parsed(line), line + newline
    if header is None:
        raise error(errno.EINVAL, str(path), TAMPERED)
    if (header.kdf == "scrypt") is not isinstance(opener, Secret):
        needed = "a passphrase" if header.kdf == "scrypt" else "a key file"
        raise error(errno.EINVAL, str(path), f"sealed file: it is opened with {needed}")
    with contextlib.suppress(InvalidTag):
        return ChaCha20Poly1305(_key(header, opener)).decrypt(header.nonce, hidden, line)
    raise error(errno.EINVAL, str(path), TAMPERED)


def new_key_file(path: Path) -> KeyFile:
    """A key file made at *path*: 32 bytes of the system's randomness, mode 0600. EEXIST when there is a file."""
    _write(path, os.urandom(KEY))
    _sync_folder(path.parent)
    return KeyFile(path)


def _affordable(header: _Header) -> bool:
    return WORK_LEAST <= header.n <= WORK_MOST and header.n.bit_count() == 1


def _parsed(line: bytes) -> _Header | None:
    """The header that *line* is, when all in it is as `seal` writes it."""
    try:
        header = msgspec.json.decode(line, type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    costs = (header.r, header.p) == (R, P) and _affordable(header)
    fits = costs if header.kdf == "scrypt" else (header.n, header.r, header.p) == (0, 0, 0)
    return header if fits and (len(header.salt), len(header.nonce)) == (SALT, NONCE) else None


def _key(header: _Header, opener: Secret | KeyFile) -> bytes:
    """The 32 bytes that the file of this *header* is encrypted with."""
    if isinstance(opener, KeyFile):
        held = _private(opener.path)
        if len(held) != KEY:
            raise error(errno.EINVAL, str(opener.path), f"key file: not {KEY} bytes")
        return HKDF(SHA256(), KEY, header.salt, INFO).derive(held)
    return Scrypt(header.salt, KEY, header.n, header.r, header.p).derive(opener.reveal())


def _private(path: Path) -> bytes:
    """All of a regular file that nobody but its owner can read or change."""
    # Without waiting: a pipe in its place would keep us.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise error(errno.EINVAL, str(path), "not a regular file")
        if found.st_mode & OTHERS:
            raise error(errno.EACCES, str(path), "others can read or change it: its mode must be 0600")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            held = file.read(LARGEST + 1)
    finally:
        os.close(descriptor)
    if len(held) > LARGEST:
        raise error(errno.EFBIG, str(path), f"at most {LARGEST} bytes")
    return held


def _place(path: Path, whole: bytes, *, is_new: bool) -> None:
    """Make *whole* the content of *path*, at once and for good; where it *is_new*, only if there is none. EEXIST."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.draft")
    try:
        _write(draft, whole)
        if is_new:
            path.hardlink_to(draft)
            draft.unlink()
        else:
            draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _write(path: Path, whole: bytes) -> None:
    """A new file, on disk when this returns."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)  # whatever the umask has taken away
        file.write(whole)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
