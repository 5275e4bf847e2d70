"""`Tokens`: capability tokens of one runtime: issued, checked offline, revoked at once; the operator's own is a secret.

It checks who comes; what they may do follows from the caveats, in `agentfs.guards`.
"""

from __future__ import annotations

import errno
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Sequence, Set
from typing import Any

import msgspec

from agentfs import capability
from agentfs.capability import Capability
from agentfs.engine.core import Core
from agentfs.engine.timers import Timers
from agentfs.errors import error
from agentfs.guards import Lease
from agentfs.ports import Append, AtMost, Delete, Put
from agentfs.rows import TokenRow
from agentfs.types import Caveat, Principal, agent_id

_AGENT = "agent:"  # before the name of an issuer that is an agent
_GONE = "~"  # no agent's name: the rows of issuers that are gone
_HELD = 4096


class Tokens:
    """*secret* is the operator's bearer token; all other tokens are signed under a key derived from it."""

    def __init__(self, core: Core, timers: Timers, secret: str) -> None:
        self._core, self._timers = core, timers
        self._operator = (secret or secrets.token_hex(32)).encode()
        self._key = capability.root_key(self._operator.decode())
        self._revoked: dict[str, int] = {}
        self._leases: OrderedDict[str, Lease] = OrderedDict()
        self._seen: OrderedDict[str, str] = OrderedDict()  # by the id of its last link: the token it came with

    async def restore(self) -> None:
        """Take up what was revoked before."""
        for agent in await self._core.store.agents(TokenRow):
            for row in await self._core.store.scan(TokenRow, agent):
                if row.revoked_at_ns is not None:
                    self._revoked[row.id] = row.revoked_at_ns

    def of_agent(self, agent: str) -> str:
        """A token with all the rights of *agent*: what its exec program gets."""
        return self._mint(f"{_AGENT}{agent_id(agent)}")

    def _mint(self, by: str) -> str:
        """A token of *by*, later than the end of whoever had that name before, whatever the clock says."""
        return capability.mint(self._key, by, max(self._core.clock.now_ns(), self._revoked.get(by, -1) + 1))

    def check(self, token: str) -> Principal | None:
        """Whose token it is, or None for one that is forged, expired or revoked. Never blocks."""
        if hmac.compare_digest(token.encode(errors="replace"), self._operator):
            return Principal("operator")
        try:
            found = capability.verify(self._key, token)
        except OSError:
            return None
        if capability.expired(found.caveats, self._core.clock.now_ns()) or self._is_revoked(found):
            return None
        role, _, name = found.by.partition(":")
        principal = Principal(role, name, found.caveats)
        self._seen[principal.token] = token
        self._seen.move_to_end(principal.token)
        if len(self._seen) > _HELD:
            self._seen.popitem(last=False)
        return principal

    def _is_revoked(self, found: Capability) -> bool:
        is_old = found.at_ns <= self._revoked.get(found.by, -1)
        return is_old or any(link in self._revoked for link in found.ids)

    def leases(self, principal: Principal) -> Sequence[Lease]:
        """What every handle opened with the token of *principal* holds on to, one a link."""
        found = [self._lease(caveat) for caveat in principal.caveats]
        if len(self._leases) > _HELD:
            self._make_room({caveat.id for caveat in principal.caveats})
        return found

    def _lease(self, caveat: Caveat) -> Lease:
        lease = self._leases.get(caveat.id)
        if lease is None:
            lease = self._leases[caveat.id] = Lease("the token is revoked or expired")
            is_over = capability.expired([caveat], self._core.clock.now_ns())
            lease.is_revoked = is_over or caveat.id in self._revoked
            if caveat.expires_ns is not None and not is_over:
                self._timers.set(("token", caveat.id), caveat.expires_ns, lambda: self._end(caveat.id))
        return lease

    def _make_room(self, used: Set[str]) -> None:
        """Bearers can make as many links as they like: what no handle lives by is not kept, but for those in use."""
        for token_id in [t for t, lease in self._leases.items() if lease.is_idle and t not in used]:
            del self._leases[token_id]
            self._timers.cancel(("token", token_id))

    async def _end(self, token_id: str) -> None:
        self._timers.cancel(("token", token_id))
        lease = self._leases.pop(token_id, None)
        if lease is not None:
            await lease.revoke()

    async def issue(self, issuer: Principal, caveat: Caveat) -> tuple[str, str]:
        """A new token with the rights of *issuer* under *caveat*: its id and its text. EPERM, EINVAL, ENOSPC.

        A bearer of a token hands on a link of that one: its own caveats come first. Only the record is kept.
        """
        now_ns = self._core.clock.now_ns()
        by = f"{_AGENT}{issuer.name}" if issuer.role == "agent" else issuer.role
        parent = self._seen.get(issuer.token) if issuer.caveats else self._mint(by)
        if parent is None or capability.verify(self._key, parent).by != by:  # one of the operator's, in /views
            raise error(errno.EPERM, detail="the token this is to be made from is not at hand")
        token, token_id = capability.narrow(parent, caveat)
        agent = issuer.name if issuer.role == "agent" else ""
        row = TokenRow(
            agent=agent, id=token_id, about=_about(caveat, issuer), at_ns=now_ns, expires_ns=caveat.expires_ns
        )
        over = [t for t in await self._core.store.scan(TokenRow, agent) if t.expires_ns and t.expires_ns <= now_ns]
        gone = [Delete(TokenRow, (agent, t.id)) for t in over]
        room = AtMost(TokenRow, (agent,), self._core.limits.tokens, errno.ENOSPC)
        record = self._core.record(agent, "lifecycle", {"event": "token_issued", "id": token_id, "by": issuer.source})
        chained = [Append(agent, "trajectory", record, chain=True)] if agent else []
        await self._core.commit(*gone, Put(row), room, *chained)
        for old in over:
            self._revoked.pop(old.id, None)  # expired by itself
        return token_id, token

    async def revoke(self, agent: str, token_id: str, by: Principal) -> None:
        """End a token and all that were made from it, open handles included. ENOENT: never issued by *agent*."""
        row, now_ns = await self._core.store.get(TokenRow, agent, token_id), self._core.clock.now_ns()
        if row is None and not (agent == "" and capability.is_id(token_id)):
            raise error(errno.ENOENT, detail=f"no token {token_id!r}")
        row = row or TokenRow(agent=agent, id=token_id, at_ns=now_ns)
        await self._core.commit(Put(msgspec.structs.replace(row, revoked_at_ns=now_ns)))
        self._revoked[token_id] = now_ns
        self._core.trace(agent, "lifecycle", event="token_revoked", id=token_id, by=by.source)
        await self._end(token_id)

    def ending(self, agent: str) -> Put:
        """To be committed with the removal of *agent*: it ends all tokens that it made or had."""
        name = f"{_AGENT}{agent}"
        at_ns = max(self._core.clock.now_ns(), self._revoked.get(name, -1) + 1)
        return Put(TokenRow(agent=_GONE, id=name, at_ns=at_ns, revoked_at_ns=at_ns))

    def ended(self, ending: Put) -> None:
        """It is committed: they open nothing for an agent of the same name that comes later."""
        row = ending.row
        if isinstance(row, TokenRow):
            self._revoked[row.id] = row.at_ns


def _about(caveat: Caveat, issuer: Principal) -> str:
    allow = None if caveat.allow is None else [f"/{path}:{'+'.join(sorted(ops))}" for path, ops in caveat.allow]
    about: dict[str, Any] = {"allow": allow, "budget_usd": caveat.budget_usd, "depth": caveat.depth}
    return msgspec.json.encode({**about, "by": issuer.source}).decode()
