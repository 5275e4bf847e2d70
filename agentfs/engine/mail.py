"""`Mail`: accepting, refusing, discarding and replaying envelopes, each durable in one commit.

It never runs a program: whoever constructs it is told which agent has mail through *wake*, and whose outbox through
*emitted*.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import msgspec

from agentfs.engine.core import Core
from agentfs.engine.envelope import Envelope, decode, digest, encode
from agentfs.engine.mailbox import Mailbox
from agentfs.engine.settings import Overflow, Settings, settings_of
from agentfs.errors import error
from agentfs.ports import Append, AtMost, Change, Delete, Expect, Insert, Put, Trim
from agentfs.rows import AgentRow, DeadRow, DeliveryRow, EnvelopeRow, ReceiptRow
from agentfs.types import rfc3339

_TRIM_ONE_IN = 256


class Mail:
    """The inboxes and dead letters of all agents. Safe for concurrent use on one event loop."""

    def __init__(self, core: Core, wake: Callable[[str], None], emitted: Callable[[str], None]) -> None:
        self._core, self._wake, self._emitted = core, wake, emitted
        self._boxes: dict[str, Mailbox] = {}

    async def box(self, agent: str) -> Mailbox:
        """The mailbox of *agent*, loaded."""
        box = self._boxes.get(agent)
        if box is None:
            box = self._boxes[agent] = Mailbox()
            try:
                box.load(await self._core.store.scan(EnvelopeRow, agent, by="seq"))
            except BaseException:
                self._boxes.pop(agent, None)
                raise
            finally:
                box.loaded.fire()
        elif not box.is_loaded:
            await box.loaded.wait(0)
            return await self.box(agent)
        return box

    def forget(self, agent: str) -> None:
        """Free the mailbox of *agent* unless a handle or a tick needs it; its rows stay."""
        box = self._boxes.get(agent)
        if box is not None and not box.is_needed:
            del self._boxes[agent]

    def drop(self, agent: str) -> None:
        """The agent and its rows are gone: forget its mailbox, whoever holds a place in it."""
        self._boxes.pop(agent, None)

    async def depth(self, agent: str) -> int:
        """How many envelopes of *agent* are pending."""
        box = self._boxes.get(agent)
        return len(box) if box is not None and box.is_loaded else await self._core.store.count(EnvelopeRow, agent)

    def running(self, agent: str) -> tuple[str, str]:
        """The envelope that the running tick of *agent* is about, and its packed purses; "" and "" when none runs."""
        box = self._boxes.get(agent)
        return (box.running, box.purses) if box is not None and box.running else ("", "")

    async def settings(self, agent: str) -> Settings:
        """The settings of *agent*. ENOENT; EPERM when it is terminated."""
        row = await self._core.store.get(AgentRow, agent)
        if row is None:
            raise error(errno.ENOENT, detail=f"no agent {agent!r}")
        if row.terminated_at_ns is not None:
            raise error(errno.EPERM, detail=f"agent {agent!r} is terminated")
        return settings_of(row.config)

    # -- places ----------------------------------------------------------------------------------------------------

    async def reserve(self, agent: str) -> Callable[[], None]:
        """Hold one place in the inbox; the function returned gives it back. EAGAIN when it is full and refuses."""
        overflow = (await self.settings(agent)).overflow
        box = await self.box(agent)
        if await self._is_refusing(agent, box, overflow):
            raise error(errno.EAGAIN, detail=f"inbox holds {len(box)} of {overflow.max_depth}")
        box.reserved += 1

        def give_back() -> None:
            box.reserved -= 1
            if not len(box):
                self.forget(agent)

        return give_back

    async def _is_refusing(self, agent: str, box: Mailbox, overflow: Overflow) -> bool:
        if len(box) + box.reserved < overflow.max_depth:
            return False
        return overflow.policy == "reject" or await self._is_dead_full(agent, overflow)

    async def _is_dead_full(self, agent: str, overflow: Overflow) -> bool:
        return await self._core.store.count(DeadRow, agent) >= overflow.dead_letter_max

    # -- accepting -------------------------------------------------------------------------------------------------

    async def accept(
        self, envelope: Envelope, *, kind: str = "message", has_place: bool = False, also: tuple[Change, ...] = (),
        purses: str = "",
    ) -> bytes:  # fmt: skip
        """Store *envelope* for the agent ``envelope.to``, with *also* in the same commit; its receipt.

        The same id again is the same receipt, with another body EEXIST. A full inbox does what its overflow says:
        ENOBUFS where it refuses. *has_place*: the caller holds a reservation, which stands for this envelope.
        *purses*: the sender's token budgets, packed; they pay for the ticks of this envelope too.
        """
        overflow = (await self.settings(envelope.to)).overflow
        if (again := await self._duplicate(envelope)) is not None:
            await self._core.commit(*also)
            return again
        row, box = self._row(envelope, kind, purses), await self.box(envelope.to)
        try:
            if overflow.policy == "drop_oldest":
                async with box.displacing:
                    await self._put(envelope, row, box, overflow, has_place, also)
            else:
                await self._put(envelope, row, box, overflow, has_place, also)
        except FileExistsError:  # another submit of this id won the race
            if (again := await self._duplicate(envelope)) is None:
                raise
            await self._core.commit(*also)
            return again
        return self._receipt(row.id, row.agent, row.accepted_at_ns)

    async def _put(
        self, envelope: Envelope, row: EnvelopeRow, box: Mailbox, overflow: Overflow, has_place: bool,
        also: Sequence[Change],
    ) -> None:  # fmt: skip
        own = 0 if has_place else 1  # held while it is stored: what comes meanwhile sees the place taken
        box.reserved += own
        try:
            while True:
                try:
                    return await self._store(envelope, row, await self._placing(row, box, overflow, has_place), also)
                except OSError as exc:
                    if exc.errno != errno.ESTALE:  # a tick has just ended what was to make room: look again
                        raise
        finally:
            box.reserved -= own

    async def _store(
        self, envelope: Envelope, row: EnvelopeRow, changes: Sequence[Change], also: Sequence[Change]
    ) -> None:
        agent = row.agent
        receipt = ReceiptRow(agent=agent, id=row.id, hash=digest(envelope), accepted_at_ns=row.accepted_at_ns)
        note = {"envelope_id": row.id, "kind": row.kind, "source": row.source}
        record = Append(agent, "trajectory", self._core.record(agent, "message_in", note), chain=True)
        is_lot = int(receipt.hash[:8], 16) % _TRIM_ONE_IN == 0
        trim = [Trim(ReceiptRow, agent, self._core.limits.receipts)] if is_lot else []
        alive = Expect(AgentRow, (agent,), "terminated_at_ns", None, errno.EPERM)
        done = await self._core.commit(alive, Insert(receipt), *changes, record, *trim, *also)
        self._unlist(agent, changes)
        self.note_accepted(agent, [r for r in done.rows if isinstance(r, EnvelopeRow)])
        self._core.trace(agent, "message_in", **note)

    def _row(self, envelope: Envelope, kind: str, purses: str) -> EnvelopeRow:
        return EnvelopeRow(
            agent=envelope.to, id=envelope.id, kind=kind, source=envelope.source, priority=envelope.metadata.priority,
            accepted_at_ns=self._core.clock.now_ns(), expires_at_ns=envelope.expires_at_ns, body=encode(envelope),
            purses=purses,
        )  # fmt: skip

    async def _placing(self, row: EnvelopeRow, box: Mailbox, overflow: Overflow, has_place: bool) -> Sequence[Change]:
        """The changes that put *row* into the inbox, or do what the policy of a full one says; a place is enough."""
        if row.kind != "message" or len(box) + box.reserved <= overflow.max_depth:
            return [Insert(row)]
        if overflow.policy == "reject" or await self._is_dead_full(row.agent, overflow):
            if not has_place:
                raise error(errno.ENOBUFS, detail=f"inbox holds {len(box)} of {overflow.max_depth}")
            return [Insert(row)]
        if overflow.policy == "dead_letter":
            room = [] if has_place else [AtMost(DeadRow, (row.agent,), overflow.dead_letter_max)]
            return [Put(self.dead(row, "overflow")), *room]
        oldest = box.oldest()
        victim = await self._core.store.get(EnvelopeRow, row.agent, oldest) if oldest else None
        if victim is None:
            return [Insert(row)]
        key = (row.agent, victim.id)
        return [Expect(EnvelopeRow, key), Delete(EnvelopeRow, key), Put(self.dead(victim, "overflow")), Insert(row)]

    def dead(self, row: EnvelopeRow, reason: str) -> DeadRow:
        """*row* as a dead letter."""
        return DeadRow(
            agent=row.agent, id=row.id, kind=row.kind, source=row.source, priority=row.priority, reason=reason,
            attempts=row.attempts, at_ns=self._core.clock.now_ns(), body=row.body,
            purses=row.purses,
        )  # fmt: skip

    def _unlist(self, agent: str, changes: Sequence[Change]) -> None:
        box = self._boxes.get(agent)
        for change in changes:
            if box is not None and isinstance(change, Delete):
                box.remove(change.key[1])

    def note_accepted(self, agent: str, rows: Sequence[EnvelopeRow]) -> None:
        """*rows* have been committed to the inbox of *agent*: list them and wake it."""
        box = self._boxes.get(agent)
        for row in rows:
            if box is not None:
                box.add(row)
        if rows:
            self._wake(agent)

    async def _duplicate(self, envelope: Envelope) -> bytes | None:
        known = await self._core.store.get(ReceiptRow, envelope.to, envelope.id)
        if known is None:
            return None
        if known.hash != digest(envelope):
            raise error(errno.EEXIST, detail=f"id: {envelope.id!r} was accepted with another body")
        return self._receipt(known.id, known.agent, known.accepted_at_ns)

    def _receipt(self, envelope_id: str, agent: str, accepted_at_ns: int) -> bytes:
        doc = {"id": envelope_id, "to": agent, "accepted_at": rfc3339(accepted_at_ns)}
        return msgspec.json.encode(doc) + b"\n"

    # -- removing and replaying ------------------------------------------------------------------------------------

    async def discard(self, agent: str, envelope_id: str) -> None:
        """Remove a pending envelope for good. ENOENT; EBUSY while its tick runs."""
        box = await self.box(agent)
        if box.running == envelope_id:
            raise error(errno.EBUSY, detail=f"{envelope_id} is in a running tick")
        key = (agent, envelope_id)
        await self._core.commit(Expect(EnvelopeRow, key, errno=errno.ENOENT), Delete(EnvelopeRow, key))
        box.remove(envelope_id)
        self._core.trace(agent, "message_out", envelope_id=envelope_id, reason="discarded")

    async def discard_dead(self, agent: str, envelope_id: str) -> None:
        """Remove a dead letter for good. ENOENT."""
        key = (agent, envelope_id)
        await self._core.commit(Expect(DeadRow, key, errno=errno.ENOENT), Delete(DeadRow, key))

    async def replay(self, agent: str, envelope_id: str) -> None:
        """Put a dead letter back at the tail of the inbox, its attempts reset. ENOENT, ENOBUFS when that is full.

        One that could not be delivered goes back to the outbox instead.
        """
        dead = await self._core.store.get(DeadRow, agent, envelope_id)
        if dead is None:
            raise error(errno.ENOENT, detail=f"no dead letter {envelope_id!r}")
        if (to := decode(dead.body).to) != agent:
            await self._resend(dead, to)
            return
        overflow, box = (await self.settings(agent)).overflow, await self.box(agent)
        if len(box) + box.reserved >= overflow.max_depth:
            raise error(errno.ENOBUFS, detail=f"inbox holds {len(box)} of {overflow.max_depth}")
        row = EnvelopeRow(
            agent=agent, id=dead.id, kind=dead.kind, source=dead.source, priority=dead.priority, body=dead.body,
            accepted_at_ns=self._core.clock.now_ns(), expires_at_ns=decode(dead.body).expires_at_ns,
            purses=dead.purses,
        )  # fmt: skip
        key = (agent, envelope_id)
        done = await self._core.commit(Expect(DeadRow, key, errno=errno.ENOENT), Delete(DeadRow, key), Insert(row))
        self.note_accepted(agent, [r for r in done.rows if isinstance(r, EnvelopeRow)])

    async def _resend(self, dead: DeadRow, to: str) -> None:
        key, now_ns = (dead.agent, dead.id), self._core.clock.now_ns()
        again = DeliveryRow(agent=dead.agent, id=dead.id, to=to, at_ns=now_ns, body=dead.body, purses=dead.purses)
        await self._core.commit(Expect(DeadRow, key, errno=errno.ENOENT), Delete(DeadRow, key), Insert(again))
        self._emitted(dead.agent)

    async def replay_all(self, agent: str) -> None:
        """Replay every dead letter, oldest first."""
        for dead in await self._core.store.scan(DeadRow, agent, by="seq"):
            await self.replay(agent, dead.id)
