"""`Peers`: which keys are let in by which agents, and what to; held in memory, for every signed request asks.

It checks no signature; what a key may do follows from the caveat, in `agentfs.guards`.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

import anyio
import msgspec

from agentfs.capability import expired, parse_allow
from agentfs.engine.core import Core
from agentfs.engine.timers import Timers
from agentfs.errors import error
from agentfs.guards import Lease
from agentfs.ports import Append, AtMost, Change, Delete, Expect, Put
from agentfs.rows import AgentRow, GrantRow
from agentfs.types import Caveat


@dataclass(frozen=True, slots=True)
class Held:
    """One grant in force: what it allows, and the lease of what was opened by it."""

    caveat: Caveat
    lease: Lease


def _held(row: GrantRow) -> Held:
    allow = parse_allow(msgspec.json.decode(row.allow, type=list[str]))
    return Held(Caveat("", allow, row.expires_ns), Lease("the grant was changed, is withdrawn or expired"))


class Peers:
    """The grants of all agents, by key."""

    def __init__(self, core: Core, timers: Timers) -> None:
        self._core, self._timers = core, timers
        self._of: dict[str, dict[str, Held]] = {}
        self._lock = anyio.Lock(fast_acquire=True)  # what is held follows the commits in their order

    async def restore(self) -> None:
        """Take up what the store holds."""
        for row in await self._core.store.scan(GrantRow):
            self._hold(row)

    # -- asking --------------------------------------------------------------------------------------------------------

    def is_known(self, pubkey: str) -> bool:
        """Whether any agent lets the key in now."""
        return any(self._is_in_force(held) for held in self._of.get(pubkey, {}).values())

    def grant(self, pubkey: str, agent: str) -> Held | None:
        """What *agent* lets the key do now; None for nothing."""
        held = self._of.get(pubkey, {}).get(agent)
        return held if held is not None and self._is_in_force(held) else None

    def agents(self, pubkey: str) -> Sequence[str]:
        """The agents that let the key in now, sorted."""
        return sorted(agent for agent, held in self._of.get(pubkey, {}).items() if self._is_in_force(held))

    def _is_in_force(self, held: Held) -> bool:
        return not expired([held.caveat], self._core.clock.now_ns())

    # -- changing ------------------------------------------------------------------------------------------------------

    async def put(self, row: GrantRow, match: int | None, by: str) -> None:
        """Let a key in, or change what it may do: files open by what it had end. ESTALE, ENOSPC, EPERM."""
        agent, now_ns = row.agent, self._core.clock.now_ns()
        async with self._lock:
            rows = {old.pubkey: old for old in await self._core.store.scan(GrantRow, agent)}
            old = rows.get(row.pubkey)
            if match is not None and (old is None or match != old.changed_at_ns):
                raise error(errno.ESTALE, detail=f"version is not {match}")
            row = msgspec.structs.replace(row, changed_at_ns=max(now_ns, old.changed_at_ns + 1) if old else now_ns)
            over = [r.pubkey for r in rows.values() if r.expires_ns is not None and r.expires_ns <= now_ns]
            await self._core.commit(
                Expect(AgentRow, (agent,), "terminated_at_ns", None, errno.EPERM),
                *(Delete(GrantRow, (agent, pubkey)) for pubkey in over),
                Put(row), AtMost(GrantRow, (agent,), self._core.limits.grants, errno.ENOSPC),
                self._record(agent, event="granted", pubkey=row.pubkey, allow=msgspec.Raw(row.allow.encode()), by=by),
            )  # fmt: skip
            is_same = old is not None and (old.allow, old.expires_ns) == (row.allow, row.expires_ns)
            gone = [] if is_same else [self._drop(agent, row.pubkey)]
            gone += [self._drop(agent, pubkey) for pubkey in over if pubkey != row.pubkey]
            if not is_same:
                self._hold(row)
        await _revoke(gone)

    async def remove(self, agent: str, pubkey: str, match: int | None, by: str) -> None:
        """Let a key in no more, at once. ENOENT, ESTALE."""
        key, record = (agent, pubkey), self._record(agent, event="withdrawn", pubkey=pubkey, by=by)
        column, code = ("changed_at_ns", errno.ESTALE) if match is not None else ("", errno.ENOENT)
        async with self._lock:
            await self._core.commit(Expect(GrantRow, key, column, match, code), Delete(GrantRow, key), record)
            gone = self._drop(agent, pubkey)
        await _revoke([gone])

    async def forget(self, agent: str) -> None:
        """*agent* and its rows are gone: nobody is let in by it, but by one of the same name that is there already."""
        async with self._lock:
            new = {row.pubkey for row in await self._core.store.scan(GrantRow, agent)}
            old = [pubkey for pubkey, held in self._of.items() if agent in held and pubkey not in new]
            gone = [self._drop(agent, pubkey) for pubkey in old]
        await _revoke(gone)

    def _record(self, agent: str, **fields: object) -> Change:
        return Append(agent, "trajectory", self._core.record(agent, "lifecycle", fields), chain=True)

    def _hold(self, row: GrantRow) -> None:
        held = _held(row)
        self._of.setdefault(row.pubkey, {})[row.agent] = held
        if row.expires_ns is not None:

            async def end() -> None:
                await held.lease.revoke()

            self._timers.set(("grant", row.agent, row.pubkey), row.expires_ns, end)

    def _drop(self, agent: str, pubkey: str) -> Held | None:
        self._timers.cancel(("grant", agent, pubkey))
        held = self._of.get(pubkey, {}).pop(agent, None)
        if not self._of.get(pubkey, True):
            del self._of[pubkey]
        return held


async def _revoke(gone: Sequence[Held | None]) -> None:
    with anyio.CancelScope(shield=True):  # it is committed: whoever did it may go, but not before this is done
        for held in gone:
            if held is not None:
                await held.lease.revoke()
