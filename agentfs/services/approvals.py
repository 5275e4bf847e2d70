"""approvals: writes over a budgeted mount's threshold, and uses that a mount has confirmed, wait here for an approver.

A write over the threshold fails with EPERM and names the request, whose id is a hash of who wrote what where. Allowed,
the same write by the same writer goes through once. A call on a mount with ``confirm`` waits in its read instead, each
use under an id of its own: allowed it is answered, denied EACCES, undecided in time (5 minutes) ETIMEDOUT; closed
before that it is withdrawn.
``approvals/<id>/request`` (R) is the document (a newline ends it), ``approvals/<id>/status`` (R) {id kind state source
path hash cost_usd approvers at expires by}, ``approvals/<id>/ctl`` (X) allow | deny. ``kind`` is spend or confirm,
``hash`` the SHA-256 of a request to confirm. ``approvals/events`` (S) has a record a change of state, without the
request. Requests and decisions expire after a day. Approvers are the operator and the tokens that the mount names, but
for their own requests; never the agent itself.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from agentfs.engine.approvals import CONFIRM, LOG, hash_of
from agentfs.errors import error
from agentfs.record import Log
from agentfs.rows import ApprovalRow
from agentfs.services import Scope, Service, document
from agentfs.tree import At, Ctl, Dir, Entry, File, Info, Stream, Tree
from agentfs.types import rfc3339


class Desk:
    """The functions behind the table of one agent's approvals."""

    def __init__(self, scope: Scope) -> None:
        self._core, self._approvals, self._agent = scope.engine.core, scope.engine.money.approvals, scope.agent

    async def _row(self, at: At) -> ApprovalRow:
        row = await self._core.store.get(ApprovalRow, self._agent, at["id"])
        if row is None:
            raise error(errno.ENOENT, at.path)
        return row

    async def request(self, at: At) -> bytes:
        """What was to be written, with a newline behind it where it has none."""
        text = (await self._row(at)).request
        return (text if text.endswith("\n") else f"{text}\n").encode()

    async def status(self, at: At) -> bytes:
        """One request and its state."""
        row = await self._row(at)
        return document(
            {
                "id": row.id, "kind": row.kind, "state": self._approvals.state(row), "source": row.source,
                "path": row.path, "hash": hash_of(row) if row.kind == CONFIRM else None,
                "cost_usd": row.cost_usd, "approvers": row.approvers.split(","), "by": row.by or None,
                "at": rfc3339(row.at_ns), "expires": rfc3339(row.expires_ns),
            }
        )  # fmt: skip

    async def allow(self, at: At) -> None:
        """Let the very same write, or the use that waits, through, once."""
        await self._approvals.decide(self._agent, at["id"], "allow", at.principal)

    async def deny(self, at: At) -> None:
        """Refuse it until it expires."""
        await self._approvals.decide(self._agent, at["id"], "deny", at.principal)

    async def events(self, at: At) -> Log:
        """The log of requests and decisions."""
        return self._core.logs.durable(self._agent, LOG)

    async def has(self, at: At, key: str) -> bool:
        """Whether there is such a request."""
        return await self._core.store.get(ApprovalRow, self._agent, key) is not None

    async def keys(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        """Requests by id, in pages."""
        rows = await self._core.store.scan(ApprovalRow, self._agent, after=after or None, limit=limit)
        return [Entry(row.id, Info(row.version, 0, row.decided_at_ns or row.at_ns)) for row in rows]


def approvals(scope: Scope) -> Tree:
    """The directory ``approvals/`` of one agent."""
    desk = Desk(scope)
    verbs = {"allow": desk.allow, "deny": desk.deny}
    entry = Dir(
        name="{id}",
        entries=[
            File(name="request", read=desk.request),
            File(name="status", read=desk.status),
            Ctl(name="ctl", verbs=verbs, operator_verbs=frozenset(verbs)),
        ],
    )
    events = Stream(name="events", log=desk.events)
    return scope.tree(root=Dir(entries=[events], each=entry, has=desk.has, keys=desk.keys))


SERVICE = Service("approvals", "approvals", approvals)
