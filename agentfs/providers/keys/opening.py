"""Opening a `Keeper`: what opens the sealed file, and its making where there is none.

It must not run in a process that is to hold no key, and keeps no passphrase.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Final

from agentfs.errors import error
from agentfs.providers.keys import ring, sealed, seed
from agentfs.providers.keys.keeper import Keeper
from agentfs.providers.keys.sealed import KeyFile, new_key_file
from agentfs.providers.keys.secret import Secret
from agentfs.providers.keys.wire import Source

PHRASE_MAX: Final = 4096  # bytes


def opened(source: Source) -> Keeper:
    """The keeper of *source*, which is made with fresh words where there is none. Once a source: a passphrase is gone.

    EINVAL for a wrong passphrase or a file tampered with, EACCES for one that others can read; ENOTCONN and ENOENT as
    `ring.phrase`; ENOENT for what is missing and may not be made.
    """
    if source.kind == "memory":
        return Keeper.fresh()
    path = Path(source.file)
    if not path.exists():
        if not source.may_make:
            raise error(errno.ENOENT, source.file, "keys: there is no sealed file")
        key = _opener(source, is_new=True)
        with contextlib.suppress(FileExistsError):  # made elsewhere meanwhile
            sealed.seal(path, seed.seed_of(seed.fresh_words(256)), key, is_new=True)
    else:
        key = _opener(source, is_new=False)
    return Keeper(sealed.unseal(path, key))


def create(source: Source, words: str) -> None:
    """Seal the seed of *words*. EEXIST when there is a sealed file: keys are never replaced by accident. EINVAL."""
    if source.kind == "memory":
        raise error(errno.EINVAL, "keys", "memory: such keys are new at each start")
    there = error(errno.EEXIST, source.file, "it holds the keys of every agent; move it away first")
    if Path(source.file).exists():
        raise there
    root = seed.seed_of(seed.check_words(words))
    try:
        sealed.seal(Path(source.file), root, _opener(source, is_new=True), is_new=True)
    except FileExistsError as exc:
        raise there from exc


def _opener(source: Source, *, is_new: bool) -> Secret | KeyFile:
    """What opens the sealed file; where it *is_new*, what that is may be new too."""
    if source.kind == "keyring":
        if source.phrase >= 0:
            raise error(errno.EINVAL, "keys", "keyring: it holds the passphrase, so want none given")
        return ring.phrase(str(Path(source.file).parent), may_make=is_new)
    if source.phrase >= 0:
        return _read(source.phrase)
    key_file = Path(source.key_file)
    return new_key_file(key_file) if is_new and not key_file.exists() else KeyFile(key_file)


def _read(descriptor: int) -> Secret:
    """The passphrase on *descriptor*, which is closed; one newline at its end is no part of it."""
    with os.fdopen(descriptor, "rb") as file:
        held = file.read(PHRASE_MAX + 1).removesuffix(b"\n")
    if not 0 < len(held) <= PHRASE_MAX:
        raise error(errno.EINVAL, "keys", f"passphrase: want 1 to {PHRASE_MAX} bytes")
    return Secret(held)
