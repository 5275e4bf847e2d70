"""The Clock port: `SystemClock` for running, `ManualClock` for tests that move time by hand."""

from __future__ import annotations

import time

import anyio

from agentfs.record import Pulse

_LONGEST_SLEEP_NS = 30 * 1_000_000_000


class SystemClock:
    """The machine's clocks; a wall clock that jumps is noticed within half a minute."""

    def now_ns(self) -> int:
        """Wall-clock ns since the epoch."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """Ns of a clock that never jumps."""
        return time.monotonic_ns()

    async def sleep_until(self, at_ns: int) -> None:
        """Return once `now_ns` has reached *at_ns*."""
        while (left := at_ns - self.now_ns()) > 0:  # noqa: ASYNC110  # the wall clock fires no event
            await anyio.sleep(min(left, _LONGEST_SLEEP_NS) / 1e9)
        await anyio.lowlevel.checkpoint()


class ManualClock:
    """A clock that stands until `advance` moves it."""

    def __init__(self, now_ns: int = 1_767_225_600_000_000_000) -> None:
        self._now_ns, self._moved = now_ns, Pulse()

    def now_ns(self) -> int:
        """The time set."""
        return self._now_ns

    def monotonic_ns(self) -> int:
        """The time set."""
        return self._now_ns

    async def sleep_until(self, at_ns: int) -> None:
        """Return once somebody has advanced the clock to *at_ns*."""
        while self._now_ns < at_ns:
            await self._moved.wait(self._moved.count)
        await anyio.lowlevel.checkpoint()

    def advance(self, seconds: float) -> None:
        """Move on by *seconds* and wake whoever waited for it."""
        self._now_ns += int(seconds * 1e9)
        self._moved.fire()
