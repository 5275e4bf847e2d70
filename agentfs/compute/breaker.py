"""A circuit breaker as a pure state machine: closed, open for a while after failures in a row, then one trial.

It knows no clock: whoever asks says what time it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

FAILURES: Final = 3
FIRST_NS: Final = 5_000_000_000
LONGEST_NS: Final = 300_000_000_000


@dataclass(frozen=True, slots=True)
class Breaker:
    """One provider's: ``failures`` in a row; open until ``until_ns``, then half-open: one request may try."""

    failures: int = 0
    until_ns: int = 0
    is_trying: bool = False

    def state(self, now_ns: int) -> str:
        """``closed``, ``open`` or ``half_open``."""
        if self.failures < FAILURES:
            return "closed"
        return "open" if now_ns < self.until_ns or self.is_trying else "half_open"

    def is_available(self, now_ns: int) -> bool:
        """Whether a request may go there."""
        return self.state(now_ns) != "open"

    def started(self, now_ns: int) -> Breaker:
        """A request goes there; in the half-open state no other does until its outcome is known."""
        return replace(self, is_trying=True) if self.state(now_ns) == "half_open" else self

    def failed(self, now_ns: int) -> Breaker:
        """It failed before it produced anything: each failure past the limit doubles the pause."""
        count = self.failures + 1
        if count < FAILURES:
            return Breaker(count)
        pause_ns = min(FIRST_NS << min(count - FAILURES, 16), LONGEST_NS)
        return Breaker(count, now_ns + pause_ns)

    def succeeded(self) -> Breaker:
        """It answered."""
        return Breaker()

    def left(self) -> Breaker:
        """A trial ended without telling anything, by a cancel."""
        return replace(self, is_trying=False)
