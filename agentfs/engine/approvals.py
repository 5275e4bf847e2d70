"""Approvals: a write over the threshold waits as a request until an approver lets that very write through, once.

It enforces nothing by itself: whoever is about to spend asks `clear` and commits what that gives.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from agentfs.budget import Policy
from agentfs.engine.core import Core
from agentfs.errors import error
from agentfs.ports import Append, AtMost, Change, Delete, Expect, Insert, Put
from agentfs.rows import ApprovalRow
from agentfs.types import Principal

LOG = "approvals"
PENDING, ALLOWED, DENIED, USED, EXPIRED = "pending", "allowed", "denied", "used", "expired"
_DECISIONS = {"allow": ALLOWED, "deny": DENIED}


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


class Approvals:
    """The requests of every agent."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def clear(self, policy: Policy, request: Request) -> Sequence[Change]:
        """The changes that use up an approval, none where none is needed.

        EPERM names ``approvals/<id>``, which is there from then on, until an approver has allowed it. ENOSPC.
        """
        limit, principal = policy.approval_threshold_usd, request.principal
        if limit is None or request.cost_usd <= limit or (principal.is_operator and not principal.token):
            return ()
        row, now_ns = await self._core.store.get(ApprovalRow, request.agent, request.id), self._core.clock.now_ns()
        state = self.state(row) if row else EXPIRED
        if row is not None and state == ALLOWED:
            used = msgspec.structs.replace(row, state=USED, version=row.version + 1)
            return [_same(row), Put(used), self._event(used, principal.source)]
        if row is None or state in (USED, EXPIRED):
            row = ApprovalRow(
                agent=request.agent, id=request.id, source=principal.source, path=request.path,
                request=request.doc.decode(errors="replace"), cost_usd=request.cost_usd,
                approvers=",".join(policy.approvers), at_ns=now_ns, version=(row.version + 1) if row else 1,
                expires_ns=now_ns + self._core.limits.approval_ttl_seconds * 1_000_000_000,
            )  # fmt: skip
            await self._ask(row, state)
        what = "was denied" if state == DENIED else f"{row.cost_usd} micro-USD needs approval"
        raise error(errno.EPERM, request.path, f"{what}: approvals/{row.id}")

    async def _ask(self, row: ApprovalRow, before: str) -> None:
        now_ns, key = self._core.clock.now_ns(), (row.agent, row.id)
        over = [old for old in await self._core.store.scan(ApprovalRow, row.agent) if old.expires_ns <= now_ns]
        gone = [Delete(ApprovalRow, (row.agent, old.id)) for old in over if old.id != row.id]
        put: list[Change] = [Delete(ApprovalRow, key), Insert(row)] if before in (USED, EXPIRED) else [Insert(row)]
        room = AtMost(ApprovalRow, (row.agent,), self._core.limits.approvals, errno.ENOSPC)
        await self._core.commit(*gone, *put, room, self._event(row, row.source))
        self._core.trace(row.agent, "approval", state=PENDING, id=row.id, cost_usd=row.cost_usd, path=row.path)

    async def decide(self, agent: str, approval: str, verb: str, principal: Principal) -> None:
        """``allow`` or ``deny`` a request that waits. EPERM for who is no approver, EEXIST, ENOENT."""
        row = await self._core.store.get(ApprovalRow, agent, approval)
        if row is None:
            raise error(errno.ENOENT, detail=f"no request {approval!r}")
        self._check_approver(row, principal)
        if (state := self.state(row)) != PENDING:
            raise error(errno.EEXIST, detail=f"request is {state} already")
        now_ns = self._core.clock.now_ns()
        decided = msgspec.structs.replace(
            row, state=_DECISIONS[verb], by=principal.source, decided_at_ns=now_ns, version=row.version + 1,
            expires_ns=now_ns + self._core.limits.approval_ttl_seconds * 1_000_000_000,
        )  # fmt: skip
        await self._core.commit(_same(row), Put(decided), self._event(decided, principal.source))
        self._core.trace(agent, "approval", state=decided.state, id=row.id, by=principal.source)

    def _check_approver(self, row: ApprovalRow, principal: Principal) -> None:
        is_named = principal.source in row.approvers.split(",") and principal.source != row.source
        if not principal.is_operator or (principal.token and not is_named):
            self._core.trace(row.agent, "error", errno="EPERM", path=f"approvals/{row.id}", by=principal.source)
            raise error(errno.EPERM, detail=f"{principal.source!r} is no approver: want one of {row.approvers}")

    def state(self, row: ApprovalRow) -> str:
        """What *row* is now: a decision, or a request nobody decided on, that is too old counts no more."""
        is_over = row.state != USED and row.expires_ns <= self._core.clock.now_ns()
        return EXPIRED if is_over else row.state

    def _event(self, row: ApprovalRow, by: str) -> Change:
        fields = {"id": row.id, "state": row.state, "path": row.path, "cost_usd": row.cost_usd, "by": by}
        return Append(row.agent, LOG, self._core.record(row.agent, "approval", fields))


def _same(row: ApprovalRow) -> Change:
    return Expect(ApprovalRow, (row.agent, row.id), "version", row.version, errno.EPERM)
