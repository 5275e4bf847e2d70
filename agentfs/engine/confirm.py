"""`Confirmer` and `Wait`: uses that a mount with ``confirm`` holds until an approver lets each of them through.

It keeps no row and checks no approver: that is the approvals' business.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from typing import Final

import anyio

from agentfs.engine.approvals import ALLOWED, CONFIRM, DENIED, EXPIRED, USED, WITHDRAWN, Approvals, Request
from agentfs.errors import error
from agentfs.types import Path, Principal, join

log = logging.getLogger(__name__)
_WHY: Final = {
    DENIED: (errno.EACCES, "was denied"), EXPIRED: (errno.ETIMEDOUT, "nobody allowed it in time"),
    USED: (errno.EACCES, "was used already"), WITHDRAWN: (errno.ECANCELED, "was withdrawn"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Confirmer:
    """What *principal* uses through a mount of a service at *at*, where one of *approvers* must allow each use."""

    approvals: Approvals
    agent: str
    principal: Principal
    at: Path
    approvers: tuple[str, ...]

    def use(self, path: Path, doc: bytes) -> Wait:
        """See `agentfs.types.Confirm`."""
        return Wait(self.approvals, Request(self.agent, self.principal, join(self.at, path), doc, 0), self.approvers)


class Wait:
    """One use, asked for under an id of its own; see `agentfs.types.Use`."""

    def __init__(self, approvals: Approvals, request: Request, approvers: tuple[str, ...]) -> None:
        self._approvals, self._request, self._approvers = approvals, request, approvers
        self._id, self._state = "", ""
        self._decided, self._lock = anyio.Event(), anyio.Lock(fast_acquire=True)

    @property
    def is_settled(self) -> bool:
        """Whether it is decided, expired or withdrawn."""
        return self._decided.is_set()

    @property
    def is_over(self) -> bool:
        """Whether it can be spent no more."""
        return self.is_settled and self._state != ALLOWED

    def _tell(self, state: str) -> None:
        self._state = state
        self._decided.set()

    async def settled(self) -> None:
        """Ask, if that was not done yet, and wait. ENOSPC."""
        with anyio.CancelScope(shield=True):  # asked or not, but never so that nobody knows of it
            async with self._lock:
                if not self._id and not self.is_settled:
                    await self._ask()
        await self._decided.wait()

    async def _ask(self) -> None:
        core, request = self._approvals.core, self._request
        id = core.new_id().replace("-", "")
        seconds = core.limits.confirm_seconds
        await self._approvals.begin(request.row(id, CONFIRM, self._approvers, core.clock.now_ns(), seconds), self._tell)
        self._id = id

    async def spend(self) -> None:
        """Use the one allow up. EACCES when it was denied or spent, ETIMEDOUT expired, ECANCELED withdrawn."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                if self._state != ALLOWED:
                    code, why = _WHY[self._state]
                    raise error(code, self._request.path, f"{why}: approvals/{self._id}")
                self._state = USED
                await self._approvals.spend(self._request.agent, self._id)

    async def withdraw(self) -> None:
        """Nobody waits any more."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                if self._state != USED:
                    self._tell(WITHDRAWN)
                try:
                    if self._id:
                        await self._approvals.withdraw(self._request.agent, self._id)
                except OSError as exc:  # its time ends, and at the next start nobody waits
                    log.warning("approvals/%s: %s", self._id, exc)
