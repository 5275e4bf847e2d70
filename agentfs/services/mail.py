"""mail: an agent's messages: inbox, queue, outbox, deadletter; one service, so that a rename from deadletter replays.

``inbox`` (W) takes one message a write: text, or JSON envelopes {id? payload metadata? ...}; (R) lists what is pending,
oldest first, or after a write on the same handle the receipts. A full inbox refuses at open (EAGAIN).
``queue/<id>.json`` (R) is a pending envelope; unlink discards it (EBUSY in a running tick). ``queue/overflow`` (RW)
is {policy, max_depth, dead_letter_max}. ``outbox`` (S) is every envelope the agent emitted. ``deadletter/<id>.json``
(R) is {envelope, reason, attempts, at}; unlink discards, ``mv`` to ``../queue/`` replays. ``deadletter/count`` (R) is a
number, ``deadletter/ctl`` (X): replay ID | replay all | discard ID. Only the operator discards.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import msgspec

from agentfs.engine import envelope as wire
from agentfs.engine.purse import pack
from agentfs.engine.settings import Overflow, parse_settings
from agentfs.errors import error
from agentfs.record import Log
from agentfs.rows import DeadRow, EnvelopeRow
from agentfs.services import Scope, Service, document, indented
from agentfs.tree import At, Ctl, Dir, Entry, File, Info, Queue, Sink, Stream, Tree
from agentfs.types import Principal, rfc3339, split


class Slot:
    """An open inbox: holds one reserved place; every document beyond the first needs one of its own."""

    def __init__(self, scope: Scope, principal: Principal, key: str | None, give_back: Callable[[], None]) -> None:
        self._scope, self._principal, self._key = scope, principal, key
        self._give_back: Callable[[], None] | None = give_back

    async def put(self, doc: bytes, *, is_json: bool) -> bytes:
        """Accept one document; its receipt as a JSON line."""
        engine, agent = self._scope.engine, self._scope.agent
        envelope = wire.parse(
            doc, is_json=is_json, to=agent, principal=self._principal, key=self._key,
            now_ns=engine.core.clock.now_ns(),
        )  # fmt: skip
        receipt = await engine.mail.accept(
            envelope, has_place=self._give_back is not None, purses=pack(self._principal.purses)
        )
        self.close()
        return receipt

    def close(self) -> None:
        """Give the place back, once."""
        if self._give_back is not None:
            self._give_back()
            self._give_back = None


class Mail:
    """The functions behind the table of one agent's mail."""

    def __init__(self, scope: Scope) -> None:
        self._scope, self._agent, self._mail = scope, scope.agent, scope.engine.mail
        self._store, self._versions = scope.engine.core.store, scope.engine.core.versions

    async def sink(self, at: At) -> Sink:
        """Open the inbox for writing."""
        return Slot(self._scope, at.principal, at.want.key, await self._mail.reserve(self._agent))

    async def pending(self, at: At) -> bytes:
        """All pending envelopes, oldest first."""
        rows = await self._store.scan(EnvelopeRow, self._agent, by="seq")
        return "".join(f"{row.body}\n" for row in rows).encode()

    async def inbox_info(self, at: At) -> Info:
        """Version only: its size would cost a scan."""
        version = self._versions.of(self._agent, "inbox")
        return Info(version, 0, version)

    async def outbox(self, at: At) -> Log:
        """The log of what was emitted."""
        return self._scope.engine.core.logs.durable(self._agent, "outbox")

    # -- queue/ ----------------------------------------------------------------------------------------------------

    async def queued(self, at: At) -> bytes:
        """One pending envelope."""
        row = await self._store.get(EnvelopeRow, self._agent, at["id"])
        if row is None:
            raise error(errno.ENOENT, at.path)
        return indented(row.body.encode())

    async def has_queued(self, at: At, key: str) -> bool:
        """Whether it is pending."""
        return await self._store.get(EnvelopeRow, self._agent, key) is not None

    async def queue_keys(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        """Pending ids in order of their file names."""
        rows = await self._store.scan(EnvelopeRow, self._agent)
        return _page([(r.id, Info(r.seq, 0, r.accepted_at_ns)) for r in rows], after, limit)

    async def discard(self, at: At) -> None:
        """Unlink a pending envelope."""
        await self._mail.discard(self._agent, at["id"])

    async def read_overflow(self, at: At) -> bytes:
        """The overflow part of the configuration."""
        return document((await self._mail.settings(self._agent)).overflow)

    async def write_overflow(self, at: At, doc: bytes) -> None:
        """Replace the overflow part of the configuration."""
        try:
            overflow = msgspec.json.decode(doc, type=Overflow)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise error(errno.EINVAL, at.path, str(exc)) from exc
        settings = msgspec.structs.replace(await self._mail.settings(self._agent), overflow=overflow)
        await self._scope.engine.configure(self._agent, parse_settings(wire.encode(settings)), at.want.match)

    # -- deadletter/ -----------------------------------------------------------------------------------------------

    async def dead(self, at: At) -> bytes:
        """One dead letter."""
        row = await self._store.get(DeadRow, self._agent, at["id"])
        if row is None:
            raise error(errno.ENOENT, at.path)
        known = {"reason": row.reason, "attempts": row.attempts, "at": rfc3339(row.at_ns)}
        return document({"envelope": msgspec.Raw(row.body.encode()), **known})

    async def has_dead(self, at: At, key: str) -> bool:
        """Whether it is a dead letter."""
        return await self._store.get(DeadRow, self._agent, key) is not None

    async def dead_keys(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        """Dead letters in order of their file names."""
        rows = await self._store.scan(DeadRow, self._agent)
        return _page([(r.id, Info(r.seq, 0, r.at_ns)) for r in rows], after, limit)

    async def count(self, at: At) -> bytes:
        """How many dead letters there are."""
        return f"{await self._store.count(DeadRow, self._agent)}\n".encode()

    async def discard_dead(self, at: At) -> None:
        """Unlink a dead letter."""
        await self._mail.discard_dead(self._agent, at["id"])

    async def move(self, old: At, new: At) -> None:
        """``mv deadletter/ID.json queue/``: replay."""
        if split(new.path) != ("queue", split(old.path)[1]):
            raise error(errno.EINVAL, new.path, "a dead letter can only be moved to queue/ under its own name")
        await self._mail.replay(self._agent, old["id"])

    async def replay(self, at: At, which: str) -> None:
        """The verb ``replay ID`` or ``replay all``."""
        await (self._mail.replay_all(self._agent) if which == "all" else self._mail.replay(self._agent, which))

    async def discard_verb(self, at: At, which: str) -> None:
        """The verb ``discard ID``."""
        await self._mail.discard_dead(self._agent, which)


def _page(rows: Sequence[tuple[str, Info]], after: str, limit: int) -> Sequence[Entry]:
    names = sorted((f"{key}.json", key, info) for key, info in rows)
    return [Entry(key, info) for name, key, info in names if name > after][:limit]


def mail(scope: Scope) -> Tree:
    """inbox, queue/, outbox and deadletter/ of one agent."""
    m = Mail(scope)
    pending = File(name="{id}.json", read=m.queued, remove=m.discard, operator=True)
    dead = File(name="{id}.json", read=m.dead, remove=m.discard_dead, operator=True)
    overflow = File(name="overflow", read=m.read_overflow, write=m.write_overflow, operator=True)
    verbs = {"replay": m.replay, "discard": m.discard_verb}
    dead_ctl = Ctl(name="ctl", verbs=verbs, operator_verbs=frozenset({"discard"}))
    count = File(name="count", read=m.count)
    return scope.tree(
        Queue(name="inbox", read=m.pending, sink=m.sink, info=m.inbox_info),
        Dir(name="queue", entries=[overflow], each=pending, has=m.has_queued, keys=m.queue_keys),
        Stream(name="outbox", log=m.outbox),
        Dir(name="deadletter", entries=[count, dead_ctl], each=dead, has=m.has_dead, keys=m.dead_keys, rename=m.move),
    )


SERVICE = Service("mail", "", mail)
