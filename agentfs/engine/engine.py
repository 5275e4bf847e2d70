"""`Engine`: agents as a whole: creating, removing, configuring, verbs, status; and the tasks that make them live.

It puts the parts together and holds no state of its own; files over it are in `agentfs.services`.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from agentfs.compute.port import ComputeProvider
from agentfs.engine import lifecycle
from agentfs.engine.agent import Program
from agentfs.engine.alarms import Alarms
from agentfs.engine.commands import Commands
from agentfs.engine.core import Core
from agentfs.engine.delivery import Delivery
from agentfs.engine.envelope import Envelope, encode
from agentfs.engine.housing import Housing
from agentfs.engine.identity import Identities
from agentfs.engine.jobs import Jobs
from agentfs.engine.ledger import StoreLedger
from agentfs.engine.mail import Mail
from agentfs.engine.models import Models
from agentfs.engine.money import Money
from agentfs.engine.peers import Peers
from agentfs.engine.purse import Grants, pack
from agentfs.engine.registries import Registries
from agentfs.engine.requests import Requests
from agentfs.engine.sandboxes import Sandboxes
from agentfs.engine.secrets import Secrets
from agentfs.engine.settings import Settings, settings_of
from agentfs.engine.tick import Ticks
from agentfs.engine.timers import Timers
from agentfs.engine.tokens import Tokens
from agentfs.engine.warm import Warm
from agentfs.engine.workers import Workers
from agentfs.errors import detail_of, error
from agentfs.limits import Limits
from agentfs.ports import Append, AtMost, Change, Clock, Delete, DropLogs, Expect, Insert, Ledger, Put, Signer, Store
from agentfs.rows import TABLES, AgentRow, AlarmRow, EnvelopeRow, KvRow, StateRow
from agentfs.service import FileService
from agentfs.types import Principal, agent_id, check_name, new_id, rfc3339

log = logging.getLogger(__name__)
_RACES = 16
NO_PROVIDERS: Mapping[str, tuple[ComputeProvider, str]] = {}
NO_SANDBOXES = Housing({})
RESERVED = frozenset({"operator", "runtime", "schedule", "new", "import"})
"""No agent's name: senders that are no agents, and names beside the agents'."""


async def _nobody(agent: str) -> None:
    """Nobody has built a namespace yet."""


class Engine:
    """The agents of one store; *secret* is the operator's bearer token, *signer* keeps the agents' keys.

    Safe for concurrent use on one event loop; `run` must be running for ticks to happen.
    """

    def __init__(
        self, store: Store, clock: Clock, limits: Limits, load: Callable[[str, Settings], Program],
        view: Callable[[str], FileService], ledger: Callable[[Core], Ledger] = StoreLedger, secret: str = "",
        signer: Signer | None = None, providers: Mapping[str, tuple[ComputeProvider, str]] = NO_PROVIDERS,
        housing: Housing = NO_SANDBOXES,
    ) -> None:  # fmt: skip
        self.core = core = Core(store, clock, limits)
        self.timers = Timers(clock)
        self.mail = Mail(core, self._wake, self._emitted)
        self.workers = Workers(core, self.mail, self.timers)
        self.alarms = Alarms(core, self.timers, self.mail.note_accepted)
        self.delivery = Delivery(core, self.mail, self.timers, self._emitted)
        self.money = Money(core, self.timers, ledger(core), self.mail.running)
        self.tokens = Tokens(core, self.timers, secret)
        self.identities, self.secrets = Identities(core, signer), Secrets(core, signer)
        self.peers = Peers(core, self.timers)
        self.requests = Requests(core, self.peers, self.identities.is_by)
        self.jobs = Jobs(core, self.timers, self.money, Models(core, self.secrets, providers))
        self.registries = Registries(core, self.secrets)
        self.sandboxes = Sandboxes(core, self.timers, self.money, self.secrets, self.registries, housing)
        self.commands = Commands(core, self.timers, self.sandboxes)
        self.warm = Warm(core, self.timers, self.sandboxes)
        self._ticks = Ticks(
            core, self.mail, self.alarms, self.timers, self.money, self.secrets, load, view, self._emitted
        )
        self._remounted: Callable[[str], Awaitable[None]] = _nobody
        self._group: TaskGroup | None = None

    def adopt(self, grants: Grants, remounted: Callable[[str], Awaitable[None]]) -> None:
        """Namespaces are built over it: their mount tables count from now on, and are told of every change."""
        self.money.grants, self._remounted = grants, remounted

    # -- life of the engine ----------------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Take up what the store holds, then tick, fire and deliver until cancelled."""
        try:
            await self._run(task_status)
        finally:
            await self.warm.close()

    async def _run(self, task_status: TaskStatus[None]) -> None:
        async with anyio.create_task_group() as group:
            self._group = group
            self.warm.start(group)
            self.workers.start(group, self._ticks)
            await self.alarms.restore()
            await self.tokens.restore()
            await self.peers.restore()
            await self.requests.restore()
            await self.jobs.restore(group)
            await self.sandboxes.restore(group)
            await self.money.restore()
            await self.identities.restore()
            for agent in await self.core.store.agents(EnvelopeRow):
                self.workers.wake(agent)
            for sender in await self.delivery.senders():
                self._emitted(sender)
            group.start_soon(self.timers.run)
            task_status.started()

    @property
    def is_idle(self) -> bool:
        """No agent is awake and no commit is under way."""
        return not self.workers.busy and not self.core.in_flight

    async def drain(self, seconds: float) -> None:
        """Start no more ticks, wait for the running ones at most *seconds*; the rest are cut off by `run`'s end.

        Behind them what runs in sandboxes ends too: what it says would let no commit be the last one, and what it
        reads, or does not read, would hold up the faces.
        """
        self.workers.is_draining = True
        deadline_ns = self.core.clock.now_ns() + int(seconds * 1e9)
        await self._until(lambda: not self.workers.busy, deadline_ns)
        self.sandboxes.pause()
        await self._until(lambda: self.is_idle, deadline_ns)

    async def _until(self, is_so: Callable[[], bool], deadline_ns: int) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._cut, group.cancel_scope, deadline_ns)
            while not is_so():
                await self.core.rests.wait(self.core.rests.count)
            group.cancel_scope.cancel()

    async def _cut(self, scope: anyio.CancelScope, at_ns: int) -> None:
        await self.core.clock.sleep_until(at_ns)
        scope.cancel()

    def _wake(self, agent: str) -> None:
        self.workers.wake(agent)

    def _emitted(self, sender: str) -> None:
        if self._group is not None:
            self._group.start_soon(self.delivery.run, sender)

    # -- agents ----------------------------------------------------------------------------------------------------

    async def create(self, name: str, settings: Settings) -> str:
        """Create a dormant agent; *name* "" picks one. EEXIST, EINVAL, ENOSPC."""
        now_ns = self.core.clock.now_ns()
        agent = agent_id(name or f"agent-{new_id(now_ns)[-12:]}")
        if agent in RESERVED:
            raise error(errno.EINVAL, agent, f"name: want none of {' '.join(sorted(RESERVED))}")
        await self.warm.check(agent, settings)
        row = AgentRow(id=agent, created_at_ns=now_ns, config=encode(settings), config_at_ns=now_ns)
        await self.core.commit(
            Insert(row),
            Insert(StateRow(agent=agent)),
            AtMost(AgentRow, (), self.core.limits.agents, errno.ENOSPC),
            self._lifecycle(agent, "created"),
        )
        self.core.trace(agent, "lifecycle", state=lifecycle.DORMANT)
        return agent

    async def remove(self, agent: str) -> None:
        """Remove a terminated agent and all its rows and logs. ENOENT; ENOTEMPTY when it is not terminated."""
        row = await self.row(agent)
        if row.terminated_at_ns is None:
            raise error(errno.ENOTEMPTY, agent, "terminate the agent first: echo terminate > ctl")
        self.jobs.close(agent)
        self.sandboxes.close(agent)
        self.warm.leave(agent)
        await self.money.close(agent)
        still = Expect(AgentRow, (agent,), "terminated_at_ns", row.terminated_at_ns, errno.ENOENT)
        for alarm in await self.core.store.scan(AlarmRow, agent):
            self.alarms.disarm(agent, alarm.name)
        ending = self.tokens.ending(agent)
        own = [
            table for table in TABLES if table is AgentRow or table.KEY[0] == "agent"
        ]  # an id may look like a number
        await self.core.commit(still, *(Delete(table, (agent,)) for table in own), DropLogs(agent), ending)
        self.tokens.ended(ending)
        await self.peers.forget(agent)
        await self._remounted(agent)
        self.mail.drop(agent)
        self.core.logs.drop(agent)

    async def row(self, agent: str) -> AgentRow:
        """The row of *agent*. ENOENT."""
        row = await self.core.store.get(AgentRow, agent)
        if row is None:
            raise error(errno.ENOENT, agent, "no such agent")
        return row

    async def configure(self, agent: str, settings: Settings, match: int | None) -> None:
        """Replace the configuration; a program takes effect after the running tick. ESTALE: *match* is not current."""

        async def configure() -> None:
            row = await self.row(agent)
            now_ns = max(self.core.clock.now_ns(), row.config_at_ns + 1)
            if settings.program != settings_of(row.config).program:
                await self.warm.check(agent, settings)
            if match is not None and match != row.config_at_ns:
                raise error(errno.ESTALE, "config", f"version is {row.config_at_ns}, not {match}")
            changed = msgspec.structs.replace(row, config=encode(settings), config_at_ns=now_ns)
            record = self._lifecycle(agent, "configured")
            await self.core.commit(*self._unchanged(row), Put(changed), record)

        await self._repeated(configure)
        await self._remounted(agent)
        self.warm.leave(agent)
        self.workers.reload(agent)
        self.workers.wake(agent)

    async def remount(self, agent: str, script: str, match: int | None) -> None:
        """Replace the mount table; "" goes back to the autonomy's. Counts at once. ESTALE: *match* is not current."""

        async def remount() -> None:
            row = await self.row(agent)
            current = max(row.ns_at_ns, row.config_at_ns)
            if match is not None and match != current:
                raise error(errno.ESTALE, "ns", f"version is {current}, not {match}")
            changed = msgspec.structs.replace(row, ns=script, ns_at_ns=max(self.core.clock.now_ns(), current + 1))
            await self.core.commit(*self._unchanged(row), Put(changed), self._lifecycle(agent, "remounted"))

        await self._repeated(remount)
        self.core.trace(agent, "lifecycle", event="remounted", is_preset=not script)
        await self._remounted(agent)

    async def _repeated(self, change: Callable[[], Awaitable[None]]) -> None:
        """Do *change* again when another changed the same row meanwhile."""
        for left in reversed(range(_RACES)):
            try:
                await change()
            except OSError as exc:
                if exc.errno != errno.ESTALE or not left:
                    raise
            else:
                return

    def _unchanged(self, row: AgentRow) -> Sequence[Change]:
        columns = ("config_at_ns", "is_paused", "terminated_at_ns", "ns_at_ns")
        return [Expect(AgentRow, (row.id,), column, getattr(row, column)) for column in columns]

    def _lifecycle(self, agent: str, event: str) -> Change:
        return Append(agent, "trajectory", self.core.record(agent, "lifecycle", {"event": event}), chain=True)

    # -- verbs -----------------------------------------------------------------------------------------------------

    async def trigger(self, agent: str, kind: str, payload: Any, principal: Principal) -> None:
        """Enqueue a trigger that is not a message; returns once it is durable. ENOBUFS when the inbox is full."""
        settings = await self.mail.settings(agent)
        if await self.mail.depth(agent) >= settings.overflow.max_depth:
            raise error(errno.ENOBUFS, detail=f"inbox holds {settings.overflow.max_depth}")
        now_ns = self.core.clock.now_ns()
        envelope = Envelope(
            id=new_id(now_ns), timestamp=rfc3339(now_ns), source=principal.source, to=agent, payload=payload
        )
        await self.mail.accept(envelope, kind=kind, purses=pack(principal.purses))

    async def verb(self, agent: str, verb: str, principal: Principal, payload: str = "") -> None:
        """Do a lifecycle verb; returns when it is recorded, never waits for a tick. EPERM in the wrong state."""
        row, state = await self.row(agent), await self.core.store.get(StateRow, agent)
        lifecycle.check_verb(verb, self._state(row, state))
        if verb in ("tick", "wake"):
            is_new = verb == "wake" and (state is None or state.tick_count == 0)
            await self.trigger(agent, "initialize" if is_new else "manual", payload or verb, principal)
        elif verb == "hibernate":
            self.workers.hibernate(agent)
            self.warm.leave(agent)
        elif verb == "stop":
            self.workers.cancel_tick(agent, "stop")
        else:
            await self._repeated(lambda: self._record_verb(agent, verb))
        self.core.trace(agent, "lifecycle", verb=verb, by=principal.source)

    async def _record_verb(self, agent: str, verb: str) -> None:
        row, state = await self.row(agent), await self.core.store.get(StateRow, agent)
        lifecycle.check_verb(verb, self._state(row, state))
        changes: list[Change] = [self._lifecycle(row.id, verb)]
        match verb:
            case "pause" | "resume":
                changes.append(Put(msgspec.structs.replace(row, is_paused=verb == "pause")))
            case "terminate" if row.terminated_at_ns is None:
                changes.append(Put(msgspec.structs.replace(row, terminated_at_ns=self.core.clock.now_ns())))
            case "recover" if state is not None and state.failures:
                recovered = msgspec.structs.replace(state, failures=0, version=state.version + 1)
                changes += [Expect(StateRow, (row.id,), "version", state.version), Put(recovered)]
        await self.core.commit(*self._unchanged(row), *changes)
        if verb == "terminate":
            self.jobs.close(row.id)  # from now on none begins
            self.sandboxes.close(row.id)
            self.warm.leave(row.id)
        self.workers.wake(row.id)

    # -- status ----------------------------------------------------------------------------------------------------

    def _state(self, row: AgentRow, state: StateRow | None) -> str:
        return lifecycle.state_of(
            is_terminated=row.terminated_at_ns is not None,
            failures=state.failures if state else 0,
            quarantine_after=settings_of(row.config).quarantine_after,
            is_loaded=self.workers.is_loaded(row.id),
        )

    async def status(self, agent: str) -> dict[str, Any]:
        """The document ``status``: derived from the rows each time it is read. ENOENT."""
        row = await self.row(agent)
        state = await self.core.store.get(StateRow, agent) or StateRow(agent=agent)
        next_ns, identity = await self._next_wake(agent), await self.identities.of(agent)
        return {
            "id": agent,
            "pubkey": identity.pubkey if identity else None,
            "state": self._state(row, state),
            "is_paused": row.is_paused,
            "is_ticking": self.workers.is_ticking(agent),
            "created_at": rfc3339(row.created_at_ns),
            "last_tick_at": rfc3339(state.last_tick_at_ns) if state.last_tick_at_ns else None,
            "last_tick_cause": state.last_tick_cause or None,
            "tick_count": state.tick_count,
            "failures": state.failures,
            "queue_depth": await self.mail.depth(agent),
            "next_wake": rfc3339(next_ns) if next_ns else None,
            "storage_bytes": await self.core.store.total(KvRow, "size", agent) + len(state.state),
        }

    async def _next_wake(self, agent: str) -> int | None:
        alarms = await self.core.store.scan(AlarmRow, agent)
        times = [row.next_at_ns for row in alarms if row.next_at_ns is not None]
        retry = self.timers.next_at(("wake", agent))
        return min([*times, *([retry] if retry else [])], default=None)

    # -- values ----------------------------------------------------------------------------------------------------

    async def put_kv(self, agent: str, key: str, value: bytes, *, match: int | None, is_new: bool) -> None:
        """Store one value. EEXIST (*is_new*), ESTALE (removed, or *match* is not current), ENOSPC (too many keys)."""
        check_name(key, f"kv/{key}")
        now_ns = self.core.clock.now_ns()
        old = await self.core.store.get(KvRow, agent, key)
        at_ns = max(now_ns, old.changed_at_ns + 1) if old else now_ns
        row = KvRow(agent=agent, key=key, value=value, size=len(value), changed_at_ns=at_ns)
        changes: list[Change] = [Expect(AgentRow, (agent,), errno=errno.ENOENT)]
        if is_new:
            changes += [Insert(row), AtMost(KvRow, (agent,), self.core.limits.kv_keys, errno.ENOSPC)]
        else:
            column = "" if match is None else "changed_at_ns"
            changes += [Expect(KvRow, (agent, key), column, match), Put(row)]
        await self.core.commit(*changes)

    async def agents(self, after: str, limit: int) -> Sequence[AgentRow]:
        """Agents behind the id *after*, sorted, at most *limit*."""
        return await self.core.store.scan(AgentRow, after=after or None, limit=limit)

    def note_error(self, agent: str, path: str, exc: OSError) -> None:
        """Put an error that a mount can only say as a number into ``/runtime/errors``."""
        name = errno.errorcode.get(exc.errno or errno.EIO, "EIO")
        self.core.errors.append(
            self.core.record(agent, "error", {"errno": name, "path": path, "detail": detail_of(exc)})
        )
