"""`Room`: what of a session's disk is left for what is written through its files: counted, and measured now and then.

What commands write is measured while they run, by `Watched`, not here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio
import anyio.to_thread

from agentfs.containers.documents import Limits
from agentfs.errors import error
from agentfs.providers.containers.workdir import MIB, Workdir

BLOCK: Final = 4096


class Room:
    """The room in *workdir*, for `limits`. One for all that write there, in one event loop.

    The count is never too low, but for what commands make: it is measured behind them, and when it says full.
    """

    def __init__(self, workdir: Workdir) -> None:
        self._workdir, self.limits = workdir, Limits()
        self.open: set[int] = set()  # descriptors: what was removed has its room until it is closed
        self._size = self._files = self._commands = self._under_way = 0
        self._is_known = self._is_exact = False  # counted from some measurement; nothing changed since the last
        self._lock = anyio.Lock(fast_acquire=True)

    def change(self) -> None:
        """Something may have become free."""
        self._is_exact = False

    @contextmanager
    def commanded(self) -> Iterator[None]:
        """For as long as a command runs."""
        self._commands += 1
        try:
            yield
        finally:
            self._commands -= 1
            self._is_known = False

    async def take(self, size: int, files: int = 0) -> None:
        """Count *size* bytes and *files* more. ENOSPC past the limits."""
        async with self._lock:
            if not self._is_known or not (self._fits(size, files) or (self._is_exact and not self._commands)):
                await self._measure()
            if not self._fits(size, files):
                raise error(errno.ENOSPC, detail=f"over limits.max_disk_mb ({self.limits.max_disk_mb}) or max_files")
            self._size += size
            self._files += files
            self._is_exact = False

    @contextmanager
    def writing(self, size: int) -> Iterator[None]:
        """For as long as *size* bytes that were taken are on their way: a measurement may miss them."""
        self._under_way += size
        try:
            yield
        finally:
            self._under_way -= size

    def _fits(self, size: int, files: int) -> bool:
        return self._size + size <= self.limits.max_disk_mb * MIB and self._files + files <= self.limits.max_files

    async def _measure(self) -> None:
        self._is_known = self._is_exact = True  # now: what happens meanwhile says otherwise
        unseen = self._under_way + sum(_removed(fd) for fd in self.open)
        try:
            size, self._files = await anyio.to_thread.run_sync(self._workdir.used, self.limits)
        except BaseException as exc:
            self._is_known = False
            if isinstance(exc, OSError) and exc.errno == errno.ENAMETOOLONG:
                raise error(errno.ENOSPC, detail="directories too deep to be measured") from exc
            raise
        self._size = size + unseen


def _removed(fd: int) -> int:
    """The bytes on the disk of an open file that no directory has any more."""
    about = os.fstat(fd)
    return 0 if about.st_nlink else about.st_blocks * 512
