"""`Timers`: what is due when, on the port's clock: alarms, retries and late deliveries wait here.

Volatile: whoever sets a timer can set it again from its rows after a restart.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Awaitable, Callable, Hashable

import anyio

from agentfs.ports import Clock
from agentfs.record import Pulse

log = logging.getLogger(__name__)
_SLACK = 256


class Timers:
    """A heap of keyed deadlines; `run` calls each key's action once when its time has come."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: dict[Hashable, tuple[int, Callable[[], Awaitable[None]]]] = {}
        self._heap: list[tuple[int, int, Hashable]] = []
        self._changed = Pulse()
        self._count = 0

    def set(self, key: Hashable, at_ns: int, action: Callable[[], Awaitable[None]]) -> None:
        """Run *action* at *at_ns*; replaces what *key* waited for."""
        self._due[key] = (at_ns, action)
        self._count += 1
        heapq.heappush(self._heap, (at_ns, self._count, key))
        if len(self._heap) > 2 * len(self._due) + _SLACK:  # most are cancelled: time limits of ticks long over
            self._heap = [entry for entry in self._heap if self._is_due(entry)]
            heapq.heapify(self._heap)
        if self._heap[0][2] == key:
            self._changed.fire()

    def cancel(self, key: Hashable) -> None:
        """Forget *key*; unknown is no error."""
        self._due.pop(key, None)

    def next_at(self, key: Hashable) -> int | None:
        """When *key* is due, or None."""
        return self._due[key][0] if key in self._due else None

    async def run(self) -> None:
        """Serve until cancelled; an action must not raise."""
        while True:
            seen = self._changed.count
            await self._fire_due()
            if not self._heap:
                await self._changed.wait(seen)
            elif self._changed.count == seen:
                await self._sleep(self._heap[0][0], seen)

    async def _fire_due(self) -> None:
        while self._heap and self._heap[0][0] <= self._clock.now_ns():
            at_ns, _, key = heapq.heappop(self._heap)
            if self._is_due((at_ns, 0, key)):
                try:
                    await self._due.pop(key)[1]()
                except Exception:
                    log.exception("timer %s failed", key)  # one that fails must not stop the others

    def _is_due(self, entry: tuple[int, int, Hashable]) -> bool:
        at_ns, _, key = entry
        return key in self._due and self._due[key][0] == at_ns

    async def _sleep(self, at_ns: int, seen: int) -> None:
        async with anyio.create_task_group() as group:

            async def sleep() -> None:
                await self._clock.sleep_until(at_ns)
                group.cancel_scope.cancel()

            group.start_soon(sleep)
            await self._changed.wait(seen)
            group.cancel_scope.cancel()
