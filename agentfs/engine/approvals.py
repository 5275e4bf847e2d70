"""Approvals: what waits as a request until an approver decides: a write over the threshold, or a use that is confirmed.

It enforces nothing by itself: whoever is about to spend asks `clear` and commits what that gives; uses that wait are
in `confirm`.
"""

from __future__ import annotations

import errno
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import msgspec

from agentfs.budget import Policy
from agentfs.engine.core import Core
from agentfs.engine.timers import Timers
from agentfs.errors import error
from agentfs.ports import Append, AtMost, Change, Delete, Expect, Insert, Put
from agentfs.rows import ApprovalRow
from agentfs.types import Principal

log = logging.getLogger(__name__)
LOG = "approvals"
SPEND, CONFIRM = "spend", "confirm"
PENDING, ALLOWED, DENIED, USED, EXPIRED = "pending", "allowed", "denied", "used", "expired"
WITHDRAWN = "withdrawn"
_DECISIONS = {"allow": ALLOWED, "deny": DENIED}
_WAITING: Final = frozenset({PENDING, ALLOWED})
_RACES = 16
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Request:
    """What *principal* is about to write to *path* of *agent*, and what that may cost."""

    agent: str
    principal: Principal
    path: str
    doc: bytes
    cost_usd: int

    @property
    def id(self) -> str:
        """The request's hash: the same writer, file, bytes and cost are the same request."""
        core = [self.principal.source, self.path, self.doc, self.cost_usd]
        return hashlib.sha256(msgspec.json.encode(core)).hexdigest()[:32]

    def row(self, id: str, kind: str, approvers: Sequence[str], at_ns: int, seconds: int) -> ApprovalRow:
        """The request as it waits from *at_ns* on, for so many seconds."""
        return ApprovalRow(
            agent=self.agent, id=id, kind=kind, source=self.principal.source, path=self.path,
            request=self.doc.decode(errors="replace"), cost_usd=self.cost_usd, approvers=",".join(approvers),
            at_ns=at_ns, expires_ns=at_ns + seconds * 1_000_000_000,
        )  # fmt: skip


def hash_of(row: ApprovalRow) -> str:
    """The SHA-256 of what a request holds: what is recorded of a use in its place."""
    return hashlib.sha256(row.request.encode()).hexdigest()


class Approvals:
    """The requests of every agent. ``waits``: whom to tell what became of a use that is confirmed, by agent and id."""

    def __init__(self, core: Core, timers: Timers) -> None:
        self.core, self._timers = core, timers
        self.waits: dict[tuple[str, str], Callable[[str], None]] = {}

    # -- writes over a threshold ---------------------------------------------------------------------------------------

    async def clear(self, policy: Policy, request: Request) -> Sequence[Change]:
        """The changes that use up an approval, none where none is needed.

        EPERM names ``approvals/<id>``, which is there from then on, until an approver has allowed it. ENOSPC.
        """
        limit, principal = policy.approval_threshold_usd, request.principal
        if limit is None or request.cost_usd <= limit or (principal.is_operator and not principal.token):
            return ()
        row = await self.core.store.get(ApprovalRow, request.agent, request.id)
        state = self.state(row) if row else EXPIRED
        if row is not None and state == ALLOWED:
            used = msgspec.structs.replace(row, state=USED, version=row.version + 1)
            return [_same(row), Put(used), self._event(used, principal.source)]
        if row is None or state in (USED, EXPIRED):
            version, seconds = (row.version + 1) if row else 1, self.core.limits.approval_ttl_seconds
            row = request.row(request.id, SPEND, policy.approvers, self.core.clock.now_ns(), seconds)
            await self.ask(msgspec.structs.replace(row, version=version), is_again=True)
        what = "was denied" if state == DENIED else f"{row.cost_usd} micro-USD needs approval"
        raise error(errno.EPERM, request.path, f"{what}: approvals/{row.id}")

    async def ask(self, row: ApprovalRow, *, is_again: bool = False) -> None:
        """Let *row* wait for a decision, in the place of an old one if it *is_again*. ENOSPC."""
        key, limit = (row.agent, row.id), self.core.limits.approvals
        put: list[Change] = [Delete(ApprovalRow, key), Insert(row)] if is_again else [Insert(row)]
        put += [AtMost(ApprovalRow, (row.agent,), limit, errno.ENOSPC), self._event(row, row.source)]
        for left in reversed(range(_RACES)):
            old, over = await self._spent(row.agent, limit)
            gone = [Delete(ApprovalRow, (row.agent, id)) for id in [*old, *over] if id != row.id]
            try:
                await self.core.commit(*gone, *put)
            except OSError as exc:
                if exc.errno != errno.ENOSPC or not over or not left:  # else: others took the room that was made
                    raise
            else:
                break
        self._note(row, cost_usd=row.cost_usd, path=row.path)

    async def _spent(self, agent: str, limit: int) -> tuple[Sequence[str], Sequence[str]]:
        """The requests to make room with: what is too old, and as needed the oldest uses that nobody waits for."""
        now_ns, rows = self.core.clock.now_ns(), await self.core.store.scan(ApprovalRow, agent)
        old = [row.id for row in rows if row.expires_ns <= now_ns]
        over = [r for r in rows if r.kind == CONFIRM and r.state not in _WAITING and r.expires_ns > now_ns]
        many = max(0, len(rows) - len(old) + 1 - limit)
        return old, [row.id for row in sorted(over, key=lambda row: row.at_ns)[:many]]

    # -- uses that are confirmed ---------------------------------------------------------------------------------------

    async def begin(self, row: ApprovalRow, tell: Callable[[str], None]) -> None:
        """Ask for a use; *tell* is called once, with what became of it. ENOSPC."""
        key = (row.agent, row.id)
        self.waits[key] = tell
        try:
            await self.ask(row)
        except BaseException:
            self.waits.pop(key, None)
            raise
        self._timers.set((CONFIRM, *key), row.expires_ns, partial(self.lapse, *key))

    async def lapse(self, agent: str, id: str) -> None:
        """Nobody has decided in time; a request that is there no more counts the same."""
        row = await self.core.store.get(ApprovalRow, agent, id)
        if row is not None and row.state != PENDING:
            return
        try:
            if row is not None:
                await self._put(row, "runtime", EXPIRED, {"expires_ns": self._kept_ns()})
        except PermissionError:
            return  # decided meanwhile
        except OSError as exc:  # the request says by itself that its time is up
            log.warning("approvals/%s of %s: %s", id, agent, exc)
        self._told(agent, id, EXPIRED)

    async def withdraw(self, agent: str, id: str) -> None:
        """Nobody waits for a use any more; an allow that was not spent is void."""
        self.waits.pop((agent, id), None)
        self._timers.cancel((CONFIRM, agent, id))
        for _ in range(_RACES):
            row = await self.core.store.get(ApprovalRow, agent, id)
            if row is None or row.state not in _WAITING:
                return
            try:
                await self._put(row, row.source, WITHDRAWN, {"expires_ns": self._kept_ns()})
            except PermissionError:
                continue  # decided meanwhile
            return

    async def spend(self, agent: str, id: str) -> None:
        """Use up the allow of a use, once. EACCES when there is none."""
        row = await self.core.store.get(ApprovalRow, agent, id)
        if row is None or self.state(row) != ALLOWED:
            raise error(errno.EACCES, detail=f"is not allowed: approvals/{id}")
        await self._put(row, row.source, USED)

    async def restore(self) -> None:
        """After a restart nobody waits for a use any more."""
        for agent in await self.core.store.agents(ApprovalRow):
            for row in await self.core.store.scan(ApprovalRow, agent):
                if row.kind == CONFIRM and row.state in _WAITING:
                    await self.withdraw(agent, row.id)

    # -- deciding ------------------------------------------------------------------------------------------------------

    async def decide(self, agent: str, approval: str, verb: str, principal: Principal) -> None:
        """``allow`` or ``deny`` a request that waits. EPERM for who is no approver, EEXIST, ENOENT."""
        row = await self.core.store.get(ApprovalRow, agent, approval)
        if row is None:
            raise error(errno.ENOENT, detail=f"no request {approval!r}")
        self._check_approver(row, principal)
        if (state := self.state(row)) != PENDING:
            raise error(errno.EEXIST, detail=f"request is {state} already")
        state = _DECISIONS[verb]
        decided = {"by": principal.source, "decided_at_ns": self.core.clock.now_ns(), "expires_ns": self._kept_ns()}
        await self._put(row, principal.source, state, decided)
        self._told(agent, approval, state)

    def _check_approver(self, row: ApprovalRow, principal: Principal) -> None:
        is_named = principal.source in row.approvers.split(",") and principal.source != row.source
        if not principal.is_operator or (principal.token and not is_named):
            self.core.trace(row.agent, "error", errno="EPERM", path=f"approvals/{row.id}", by=principal.source)
            raise error(errno.EPERM, detail=f"{principal.source!r} is no approver: want one of {row.approvers}")

    def state(self, row: ApprovalRow) -> str:
        """What *row* is now: a decision, or a request nobody decided on, that is too old counts no more."""
        is_over = row.state != USED and row.expires_ns <= self.core.clock.now_ns()
        return EXPIRED if is_over else row.state

    def _kept_ns(self) -> int:
        return self.core.clock.now_ns() + self.core.limits.approval_ttl_seconds * 1_000_000_000

    async def _put(self, row: ApprovalRow, by: str, state: str, changed: Mapping[str, Any] = _NOTHING) -> None:
        """Bring *row* into another state, if it still is as it was (else EPERM), with a record of who did."""
        after = msgspec.structs.replace(row, state=state, version=row.version + 1, **changed)
        await self.core.commit(_same(row), Put(after), self._event(after, by))
        self._note(after, by=by)

    def _told(self, agent: str, id: str, state: str) -> None:
        self._timers.cancel((CONFIRM, agent, id))
        if (tell := self.waits.pop((agent, id), None)) is not None:
            tell(state)

    def _event(self, row: ApprovalRow, by: str) -> Change:
        fields = {"id": row.id, "state": row.state, "path": row.path, "cost_usd": row.cost_usd, "by": by}
        return Append(row.agent, LOG, self.core.record(row.agent, "approval", {**fields, **_about(row)}))

    def _note(self, row: ApprovalRow, **fields: object) -> None:
        self.core.trace(row.agent, "approval", state=row.state, id=row.id, **{**fields, **_about(row)})


def _about(row: ApprovalRow) -> dict[str, object]:
    """What records say of a use beside the rest: never what it holds."""
    return {"kind": row.kind, "path": row.path, "hash": hash_of(row)} if row.kind == CONFIRM else {"kind": row.kind}


def _same(row: ApprovalRow) -> Change:
    return Expect(ApprovalRow, (row.agent, row.id), "version", row.version, errno.EPERM)
