"""The exclusive claim on a store file: a lock beside it, held for life and gone with the process.

It never opens the store itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from agentfs.errors import error


class Claim:
    """`<path>.lock`, locked with flock(2); it holds the owner's pid. The file stays, so that no two ever race."""

    def __init__(self, path: Path) -> None:
        """EBUSY, naming the owner's pid where it is known, when another runtime (or this one) has the store."""
        name = path.with_name(path.name + ".lock")
        self._fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            owner = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            if exc.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            whose = f"process {owner}" if owner.isdecimal() else "another process"
            raise error(errno.EBUSY, str(path), f"{whose} has this store open") from exc
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Give the store up. Idempotent."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1
