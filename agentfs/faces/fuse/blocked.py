"""Reads that wait for a stream: at most so many, and each ended with EINTR when its reader has a signal pending.

It must not know of inodes, services or the kernel's messages.
"""

from __future__ import annotations

import errno
import itertools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from agentfs.errors import error
from agentfs.faces.fuse import signals

log = logging.getLogger(__name__)

_PERIOD_S = 0.1
_PERIOD_PER_READ_S = 0.0003
_BURST = 32
_HEIRS_EVERY = 5  # sweeps: it looks at every process there is


@dataclass(slots=True)
class Opener:
    """Who reads an open file, as far as is known: the thread that opened it and its process (looked up once).

    ``is_heir``: the opener is gone, and ``pid`` is one of those who have inherited the descriptor.
    """

    tid: int
    ino: int
    pid: int | None = None
    is_heir: bool = False

    def settle(self) -> None:
        """Note the process while the thread is still there."""
        if self.pid is None:
            self.pid = signals.process_of(self.tid)


@dataclass(slots=True, eq=False)
class _Read:
    opener: Opener
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Blocked:
    """The registry of waiting reads and its one sweeper. A cancelled read has lost nothing (see `FileHandle`)."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._reads: set[_Read] = set()
        self._some = trio.Event()

    def __len__(self) -> int:
        return len(self._reads)

    async def run(self, opener: Opener, read: Callable[[], Awaitable[bytes]]) -> bytes:
        """What *read* gives. EMFILE with too many waiting; EINTR when its reader must see to a signal first."""
        if len(self._reads) >= self.limit:
            raise error(errno.EMFILE, detail=f"more than {self.limit} blocked readers")
        opener.settle()
        waiting = _Read(opener)
        self._reads.add(waiting)
        self._some.set()
        try:
            with waiting.scope:
                return await read()
        finally:
            self._reads.discard(waiting)
        raise error(errno.EINTR)

    def end(self) -> None:
        """End every waiting read: nobody is there to be answered."""
        for read in self._reads:
            read.scope.cancel()

    async def sweep(self, is_connected: Callable[[], bool]) -> None:
        """Watch the readers for signals until cancelled; one lost check never ends it."""
        for turn in itertools.cycle(range(_HEIRS_EVERY)):
            if not self._reads:
                self._some = trio.Event()
                await self._some.wait()
            await trio.sleep(max(_PERIOD_S, _PERIOD_PER_READ_S * len(self._reads)))
            try:
                if is_connected():
                    await self._check()
                    if turn == 0:
                        await self._check_heirs()
                else:
                    self.end()
            except Exception:
                log.exception("a check of blocked readers failed")

    async def _check(self) -> None:
        by_process: dict[int | None, list[_Read]] = {}
        for read in self._reads:
            by_process.setdefault(read.opener.pid, []).append(read)
        for i, (pid, reads) in enumerate(by_process.items(), 1):
            threads = None if pid is None else signals.interrupted(pid)
            if threads is None:
                await _adopt(reads)
            elif threads:
                _interrupt(threads, reads)
            if i % _BURST == 0:
                await trio.lowlevel.checkpoint()

    async def _check_heirs(self) -> None:
        """End reads of processes that have inherited the descriptor, from an opener that lives or with others."""
        for heir in await trio.to_thread.run_sync(signals.stuck):
            reads = [read for read in self._reads if read.opener.ino in heir.inodes]
            if not any(read.opener.pid == heir.pid for read in reads):  # else it waits on what it has opened itself
                for read in reads:
                    if read.opener.is_heir or read.opener.pid in heir.ancestors:
                        read.scope.cancel()


def _interrupt(threads: set[int], reads: list[_Read]) -> None:
    """End the reads of *threads*; a read on a file that another thread opened is ended when no other fits."""
    for read in [r for r in reads if r.opener.tid in threads] or reads:
        read.scope.cancel()


async def _adopt(reads: list[_Read]) -> None:
    """The opener is gone: from now on watch who has inherited the descriptor; with nobody left, end the read.

    Thread 0 is a process of a foreign pid namespace: alive for all we know, and never to be interrupted.
    """
    for read in reads:
        if read.opener.tid == 0:
            continue
        read.opener.is_heir = True
        read.opener.pid = await trio.to_thread.run_sync(signals.holder_of, read.opener.ino)
        if read.opener.pid is None:
            read.scope.cancel()
