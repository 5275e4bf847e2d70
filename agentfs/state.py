"""The state directory: its files, their making, and what a running runtime left there for others to read.

It starts and stops nothing, and never opens the store.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from agentfs.errors import error

TOKEN_BYTES: Final = 32
LOG_MAX: Final = 16 << 20


class Running(msgspec.Struct, frozen=True):
    """``runtime.json``: what a runtime says of itself once it is ready."""

    url: str
    pid: int
    mount: str | None = None
    version: str = ""


@dataclass(frozen=True, slots=True)
class StateDir:
    """The files of one runtime. One process at a time holds ``lock``; whoever starts or stops it holds ``turn``."""

    path: Path

    @property
    def token(self) -> Path:
        """The operator's bearer token, one line."""
        return self.path / "operator.token"

    @property
    def store(self) -> Path:
        """The SQLite store."""
        return self.path / "agentfs.db"

    @property
    def log(self) -> Path:
        """What a detached runtime writes on its standard error."""
        return self.path / "agentfs.log"

    @property
    def keys(self) -> Path:
        """The sealed file that holds the seed of every agent's keys."""
        return self.path / "keys.sealed"

    @property
    def keys_key(self) -> Path:
        """What opens it where no passphrase is given."""
        return self.path / "keys.key"

    @property
    def lock(self) -> Path:
        """Held by the runtime for as long as it lives."""
        return self.path / "runtime.lock"

    @property
    def turn(self) -> Path:
        """Held while a runtime is being started or stopped."""
        return self.path / "turn.lock"

    @property
    def socket(self) -> Path:
        """Where HTTP is served to what runs in sandboxes."""
        return self.path / "http.sock"

    @property
    def sandboxes(self) -> Path:
        """The directory of each session in a sandbox."""
        return self.path / "sandboxes"

    @property
    def images(self) -> Path:
        """Root file systems for bubblewrap, a directory each."""
        return self.path / "images"

    @property
    def ca(self) -> Path:
        """The directory of this state's own certificate authority."""
        return self.path / "ca"

    @property
    def runtime(self) -> Path:
        """Where a ready runtime can be found; may outlive it."""
        return self.path / "runtime.json"

    def prepare(self) -> bool:
        """Make the directory (0700) and the token (0600) where they are missing; whether the token is new.

        Safe to run twice and at the same time. EACCES when others could write in the directory, EINVAL for a token
        file without a token.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._guard()
        is_new = self._make_token()
        if not self.token.read_text(errors="replace").strip():
            raise error(errno.EINVAL, str(self.token), "the token file is empty; remove it to get a new one")
        self.token.chmod(0o600)
        return is_new

    def running(self) -> Running | None:
        """What ``runtime.json`` says; None without one, and a damaged one is as good as none."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, msgspec.DecodeError, UnicodeDecodeError):
            return msgspec.json.decode(self.runtime.read_bytes(), type=Running)
        return None

    def publish(self, running: Running) -> None:
        """Write ``runtime.json`` at once and whole, for this user only."""
        with draft(self.runtime) as new:
            new.write_bytes(msgspec.json.encode(running) + b"\n")
            new.replace(self.runtime)

    def forget(self, pid: int | None = None) -> None:
        """Remove ``runtime.json``: that of *pid* only, or whoever's and in whatever condition."""
        found = self.running() if pid else None
        if pid is None or (found and found.pid == pid):
            self.runtime.unlink(missing_ok=True)

    def open_log(self) -> int:
        """A descriptor that appends to the log, which is first set aside as ``.1`` when it has grown large."""
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > LOG_MAX:
                self.log.replace(self.log.with_suffix(".log.1"))
        return os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tail(self, since: int, lines: int = 15) -> str:
        """The last *lines* lines of the log behind the byte *since*."""
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as handle:
            handle.seek(max(since, handle.seek(0, os.SEEK_END) - (64 << 10)))
            return b"\n".join(handle.read().splitlines()[-lines:]).decode(errors="replace")
        return ""

    def _guard(self) -> None:
        about = self.path.stat()
        if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise error(errno.EACCES, str(self.path), "others may write in this directory; chmod it to 700")
        if about.st_uid == os.geteuid() and not any(self.path.iterdir()):
            self.path.chmod(0o700)

    def _make_token(self) -> bool:
        if self.token.exists():
            return False
        with draft(self.token) as new:
            new.write_text(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
            try:
                self.token.hardlink_to(new)  # unlike a rename, it never replaces one made meanwhile
            except FileExistsError:
                return False
        return True


@contextlib.contextmanager
def draft(file: Path) -> Iterator[Path]:
    """A new empty file beside *file* that only its owner can read; gone afterwards."""
    new = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        yield new
    finally:
        new.unlink(missing_ok=True)
