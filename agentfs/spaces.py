"""`Mounts` and `Spaces`: what is mounted where for each agent, by its script ``ns`` or its autonomy, kept up to date.

It mounts services and grants; it starts nothing and knows no provider and no face.
"""

from __future__ import annotations

import errno
import logging
import shlex
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import anyio

from agentfs.engine.confirm import Confirmer
from agentfs.engine.engine import Engine
from agentfs.engine.settings import settings_of
from agentfs.errors import error
from agentfs.grants import PRESETS, Grant, parse
from agentfs.guards import Confined, Fair, Granted, Lease, Shares
from agentfs.guards.fair import Bucket
from agentfs.mounts import flag_of
from agentfs.namespace import Namespace
from agentfs.rows import AgentRow
from agentfs.service import FileHandle, FileService
from agentfs.services import Scope, Service
from agentfs.tree import Errors
from agentfs.types import NO_WANT, ROOT, Bind, Confirm, Mode, Path, Principal, Purse, Stat, Want

log = logging.getLogger(__name__)
_ROOMS_HELD = 256
_ATTACHED_HELD = 16


class Mounts:
    """The mount tables of agents as text and values: pure, so that the engine can ask before any service is built."""

    def __init__(self, services: Sequence[Service]) -> None:
        self.services = {service.name: service for service in services}
        self._presets = {name: self._preset(name) for name in PRESETS}
        self._grants = lru_cache(maxsize=1024)(self._read)

    def _preset(self, autonomy: str) -> str:
        preset, lines, places = PRESETS[autonomy], [], set[str]()
        for service in self.services.values():
            own = () if service.level == "read_write" else (service.level,)
            words = preset["budgeted" if service.needs_budget else service.name] or own
            after = ["after"] if service.at in places else []
            lines.append(shlex.join(["mount", service.name, f"/{service.at}", *after, *words]))
            places.add(service.at)
        return "".join(f"{line}\n" for line in lines)

    def script_of(self, row: AgentRow) -> str:
        """What is mounted for the agent of *row*: the operator's script, or what its autonomy stands for."""
        return row.ns or self._presets[settings_of(row.config).autonomy]

    def grants(self, row: AgentRow) -> Mapping[str, Grant]:
        """What the agent of *row* is granted, by service."""
        return self._grants(self.script_of(row))

    def grant(self, row: AgentRow, service: str) -> Grant | None:
        """What the agent of *row* is granted on *service*, None when it is not mounted."""
        return self.grants(row).get(service)

    def grant_of(self, name: str, options: Sequence[str]) -> Grant:
        """The grant that *options* behind the service *name* stand for. ENOENT, EINVAL."""
        service = self.services.get(name)
        if service is None:
            raise error(errno.ENOENT, detail=f"no service {name!r}")
        grant = parse(options)
        if service.needs_budget and grant.level not in ("budgeted", "disabled"):
            raise error(errno.EINVAL, detail=f"{name}: must be mounted budgeted (or disabled), not {grant.level}")
        if service.needs_budget and grant.policy is not None and grant.policy.price_usd:
            raise error(errno.EINVAL, detail=f"price_usd: {name} has prices of its own")
        if grant.confirm and not service.is_confirmable:
            raise error(errno.EINVAL, detail=f"confirm: not all that {name} does is calls, which could wait")
        return grant

    def _read(self, script: str) -> Mapping[str, Grant]:
        """The grants of a script by service. EINVAL when one service has two budgets."""
        found: dict[str, Grant] = {}
        for line in script.split("\n"):
            match shlex.split(line, comments=True):
                case ["mount", name, _, *rest]:
                    self._take(found, name, self.grant_of(name, flag_of(rest)[1]))
                case ["bind", new, _, *rest] if new.startswith("#"):
                    name, _, root = new[1:].partition("/")
                    self._take(found, name, replace(self.grant_of(name, flag_of(rest)[1]), is_partial=bool(root)))
        return found

    def _take(self, found: dict[str, Grant], name: str, grant: Grant) -> None:
        known = found.get(name, grant)
        if known.policy != grant.policy:
            raise error(errno.EINVAL, detail=f"{name}: mounted with two budgets")
        found[name] = grant if known.is_partial else known

    def check(self, script: str) -> None:
        """EINVAL naming line and reason unless *script* can be mounted."""
        stands: dict[tuple[str, tuple[str, ...]], Namespace] = {}

        def resolve(name: str, options: tuple[str, ...]) -> Namespace:
            self.grant_of(name, options)
            return stands.setdefault((name, options), Namespace())

        Namespace().replay(script, resolve)
        self._grants(script)


class Room:
    """The namespace of one agent as it is mounted now, and the operator's own with every service in its place."""

    def __init__(self, engine: Engine, mounts: Mounts, agent: str) -> None:
        self._engine, self._mounts, self.agent = engine, mounts, agent
        self.space, self.office, self.names = Namespace(), Namespace(), frozenset[str]()
        self._attached: OrderedDict[tuple[Namespace, Principal], Namespace] = OrderedDict()
        self._granted: dict[tuple[str, tuple[str, ...]], Granted] = {}
        self._script, self._seen, self._lock = "", -1, anyio.Lock(fast_acquire=True)
        self._opening = 0
        scope = Scope(engine, agent, Errors(self._report), self)
        self._built = {service.name: service.build(scope) for service in mounts.services.values()}
        for service in mounts.services.values():
            grant = Grant("budgeted" if service.needs_budget else "read_write")
            granted = self._grant(service.name, grant, Lease(stays=True))
            self.office.mount(granted, Path(service.at), Bind.AFTER, name=service.name)

    def _report(self, path: Path, exc: OSError) -> None:
        self._engine.note_error(self.agent, path, exc)

    def _grant(self, name: str, grant: Grant, lease: Lease) -> Granted:
        at = Path(self._mounts.services[name].at)

        async def pay(principal: Principal) -> Purse:
            return self._engine.money.account(await self._engine.row(self.agent), name, principal, at)

        def hold(principal: Principal) -> Confirm:
            return Confirmer(self._engine.money.approvals, self.agent, principal, at, grant.confirm)

        bucket = Bucket(grant.rate, self._engine.core.clock) if grant.rate else None
        return Granted(self._built[name], grant, lease, bucket, pay, hold)

    def seen_by(self, principal: Principal, space: Namespace) -> Namespace:
        """*space*, which is one of this room's, as *principal* sees it; the most recent ones are kept."""
        key = (space, principal)
        found = self._attached.get(key)
        if found is None:
            found = self._attached[key] = space.attach(principal)
            if len(self._attached) > _ATTACHED_HELD:
                self._attached.popitem(last=False)
        return found

    @property
    def is_idle(self) -> bool:
        """Whether no handle, open or being opened, lives by what is mounted here."""
        return not self._opening and all(granted.lease.is_idle for granted in self._granted.values())

    @contextmanager
    def kept(self) -> Iterator[None]:
        """While something is being opened here: a table that changes must find the handle."""
        self._opening += 1
        try:
            yield
        finally:
            self._opening -= 1

    async def fresh(self) -> None:
        """See to it that what is mounted is what the agent's row says; cheap while nothing has changed. ENOENT."""
        version = self._engine.core.versions.of("", "agents")
        if version != self._seen:
            async with self._lock:
                script = self._mounts.script_of(await self._engine.row(self.agent))
                with anyio.CancelScope(shield=True):  # nobody would do the other half
                    is_new, self._seen = script != self._script, version
                    if is_new:
                        await self._mount(script)
                        self.names = frozenset([st.name for st in await self.space.list(ROOT)])

    async def _mount(self, script: str) -> None:
        kept: dict[tuple[str, tuple[str, ...]], Granted] = {}

        def resolve(name: str, options: tuple[str, ...]) -> Granted:
            key = (name, options)
            if key not in kept:
                kept[key] = self._granted.get(key) or self._grant(name, self._mounts.grant_of(name, options), Lease())
            return kept[key]

        try:
            self.space.replay(script, resolve, is_whole=True)
        except OSError:
            log.exception("mount table of %s", self.agent)  # of an older version: nothing is mounted until it is mended
            self.space.replay("", resolve, is_whole=True)
            kept.clear()
        gone = [granted for key, granted in self._granted.items() if kept.get(key) is not granted]
        self._script, self._granted = script, kept
        for granted in gone:
            await granted.lease.revoke()

    async def close(self) -> None:
        """The agent is gone: what it has open ends."""
        for granted in self._granted.values():
            await granted.lease.revoke()

    # -- what the services ask of it -----------------------------------------------------------------------------------

    async def script(self) -> str:
        """The mount table as text."""
        await self.fresh()
        return self.space.script()

    async def budgeted(self) -> Sequence[str]:
        """The services that the agent has a budget for."""
        grants = self._mounts.grants(await self._engine.row(self.agent))
        return [name for name in self._mounts.services if name in grants and grants[name].policy is not None]

    def check(self, script: str) -> None:
        """EINVAL naming line and reason unless *script* can be mounted."""
        self._mounts.check(script)


class Spaces:
    """The rooms of all agents, built when they are first walked; the most recent ones and those in use are kept."""

    def __init__(self, engine: Engine, mounts: Mounts) -> None:
        self._engine, self._mounts = engine, mounts
        self._rooms: OrderedDict[str, Room] = OrderedDict()
        self._shares = Shares(engine.core.clock, engine.core.limits)

    def room(self, agent: str) -> Room:
        """The room of *agent*."""
        room = self._rooms.get(agent)
        if room is None:
            for other in list(self._rooms)[: max(0, len(self._rooms) - _ROOMS_HELD + 1)]:
                if self._rooms[other].is_idle:
                    del self._rooms[other]
            room = self._rooms[agent] = Room(self._engine, self._mounts, agent)
        self._rooms.move_to_end(agent)
        return room

    async def remounted(self, agent: str) -> None:
        """The table of *agent* may have changed, or the agent be gone: open handles learn of it now."""
        if (room := self._rooms.get(agent)) is None:
            return
        try:
            await room.fresh()
        except FileNotFoundError:
            self._rooms.pop(agent, None)  # one of the same name that comes later has a room of its own
            await room.close()

    def office(self, agent: str, principal: Principal) -> FileService:
        """Every service of *agent* in its place, for the operator."""
        room = self.room(agent)
        return room.seen_by(principal, room.office)

    def view(self, principal: Principal) -> FileService:
        """The namespace of an agent's principal with exactly its rights, as its token narrows them."""
        room = self.room(principal.name)
        return self.guarded(Space(self.room, room.agent, principal), principal, lambda name: name in room.names)

    def door(self, agent: str, principal: Principal) -> FileService:
        """The namespace of *agent* as far as it lets the peer in. ENOENT when it does not."""
        held = self._engine.peers.grant(principal.name, agent)
        if held is None:
            raise error(errno.ENOENT, agent)
        return Confined(Space(self.room, agent, principal), (held.caveat,), lambda: (held.lease,), "the grant")

    def guarded(
        self, service: FileService, principal: Principal, is_known: Callable[[str], bool] = lambda name: True
    ) -> FileService:
        """*service* with what *principal*'s token allows, its fair share, and a report of what it is refused."""
        if principal.caveats:
            service = Confined(service, principal.caveats, lambda: self._engine.tokens.leases(principal))
        return Fair(service, principal, self._shares, self.report, is_known)

    def report(self, principal: Principal, op: str, path: str, exc: OSError) -> None:
        """A record of what was refused: in the trace of the agent concerned, or in the errors of the runtime."""
        agent, name, core = (
            self._concerned(principal, path),
            errno.errorcode.get(exc.errno or 0, "EIO"),
            self._engine.core,
        )
        fields = {"errno": name, "op": op, "path": path, "by": principal.source, "detail": exc.strerror}
        if agent:
            core.trace(agent, "error", **fields)
        else:
            core.errors.append(core.record(agent, "error", fields))

    def _concerned(self, principal: Principal, path: str) -> str:
        """The agent that a refusal is about; "" for none, or for one that does not know the peer."""
        if principal.role == "agent":
            return principal.name
        top, _, rest = path.partition("/")
        agent = rest.partition("/")[0] if top in ("agents", "views") else ""
        is_stranger = principal.role == "peer" and self._engine.peers.grant(principal.name, agent) is None
        return "" if is_stranger else agent


class Space(FileService):
    """The namespace of *agent* as *principal* sees it; each operation sees the mount table of its own moment."""

    def __init__(self, room: Callable[[str], Room], agent: str, principal: Principal) -> None:
        self._room, self._agent, self._principal = room, agent, principal

    def attach(self, principal: Principal) -> Space:
        return Space(self._room, self._agent, principal)

    async def _now(self) -> Namespace:
        room = self._room(self._agent)
        await room.fresh()
        return room.seen_by(self._principal, room.space)

    async def stat(self, path: Path) -> Stat:
        return await (await self._now()).stat(path)

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        return await (await self._now()).list(path, after, limit)

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        with self._room(self._agent).kept():
            return await (await self._now()).open(path, mode, want=want)

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        with self._room(self._agent).kept():
            return await (await self._now()).create(path, mode, want=want)

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> None:
        await (await self._now()).mkdir(path, want=want)

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> None:
        await (await self._now()).remove(path, want=want)

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        await (await self._now()).rename(old, new, want=want)
