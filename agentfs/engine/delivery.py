"""`Delivery`: carries emitted envelopes to other agents' inboxes: the second half of the transactional outbox.

An envelope leaves the outbox in the commit that puts it into the inbox, so it is delivered exactly once per store.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from agentfs.engine.commit import undeliverable
from agentfs.engine.core import Core
from agentfs.engine.envelope import decode
from agentfs.engine.mail import Mail
from agentfs.engine.timers import Timers
from agentfs.errors import detail_of
from agentfs.ports import Delete, Put
from agentfs.rows import DeliveryRow

log = logging.getLogger(__name__)
_RETRY_NS = 500_000_000
_FINAL = {errno.ENOENT, errno.EPERM, errno.EEXIST, errno.EINVAL, errno.EILSEQ, errno.EFBIG}  # others may pass
_BATCH = 256


class Delivery:
    """Delivers per sender in order; a target that is full holds back only what goes to it."""

    def __init__(self, core: Core, mail: Mail, timers: Timers, kick: Callable[[str], None]) -> None:
        self._core, self._mail, self._timers, self._kick = core, mail, timers, kick
        self._busy: set[str] = set()

    async def senders(self) -> list[str]:
        """The agents whose outbox still holds something: at start."""
        return list(await self._core.store.agents(DeliveryRow))

    async def run(self, sender: str) -> None:
        """Deliver what *sender* has emitted; what must wait is tried again later. One run a sender at a time."""
        if sender in self._busy:
            return
        self._busy.add(sender)
        try:
            waiting = await self._deliver_all(sender)
        except Exception:
            log.exception("deliveries of %s wait", sender)
            waiting = True
        finally:
            self._busy.discard(sender)
        if waiting:

            async def again() -> None:
                self._kick(sender)

            self._timers.set(("deliver", sender), self._core.clock.now_ns() + _RETRY_NS, again)

    async def _deliver_all(self, sender: str) -> bool:
        held: set[str] = set()
        after: int | None = None
        while rows := await self._core.store.scan(DeliveryRow, sender, by="seq", after=after, limit=_BATCH):
            for row in rows:
                if row.to not in held and not await self._deliver(row):
                    held.add(row.to)
            after = rows[-1].seq
        return bool(held)

    async def _deliver(self, row: DeliveryRow) -> bool:
        """False when the target cannot take it now."""
        try:
            envelope = decode(row.body)
        except OSError as exc:
            await self._bury(row, detail_of(exc))
            return True
        expires = envelope.expires_at_ns
        if expires is not None and expires <= self._core.clock.now_ns():
            await self._bury(row, "expired")
            return True
        try:
            gone = (Delete(DeliveryRow, (row.agent, row.id)),)
            await self._mail.accept(envelope, also=gone, purses=row.purses)
        except OSError as exc:
            if exc.errno not in _FINAL:
                return False
            await self._bury(row, detail_of(exc))
        return True

    async def _bury(self, row: DeliveryRow, reason: str) -> None:
        dead = undeliverable(row, reason, self._core.clock.now_ns())
        await self._core.commit(Delete(DeliveryRow, (row.agent, row.id)), Put(dead))
        self._core.trace(row.agent, "error", envelope_id=row.id, reason=dead.reason)
