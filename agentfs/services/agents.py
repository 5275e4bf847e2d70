"""agents: every agent under its id: ``/agents`` for the operator, and ``/views`` with exactly the agents' own rights.

``new`` (C) takes {"name"?, "program"?, ...the fields of config} and answers {id, pubkey, status}. ``mkdir NAME``
creates an agent with the default program, dormant. ``rmdir NAME`` removes one that is terminated, else ENOTEMPTY;
``rm -r`` changes nothing. ``/views/<id>`` is the namespace as the agent itself sees it; nothing can be created or
removed there. Who signs requests with a key that was let in (see grants) has an ``/agents`` of the agents that did so.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b

import msgspec

from agentfs.engine.core import Versions
from agentfs.engine.engine import Engine
from agentfs.engine.settings import Settings, parse_settings
from agentfs.errors import error
from agentfs.guards.confined import is_below
from agentfs.rows import AgentRow
from agentfs.service import FileHandle, FileService
from agentfs.tree import At, Call, Dir, Entry, Info, Tree
from agentfs.types import AGENTS, NO_WANT, OPERATOR, ROOT, Caveat, Mode, Path, Principal, Qid, Stat, Want

_USAGE = 'write {"name":"NAME","program":{"kind":"exec","argv":["PROGRAM"]}} and read {"id":...,"pubkey":...}\n'


class Register:
    """The functions behind the table of agents."""

    def __init__(self, engine: Engine, default: Settings, check: Callable[[Settings], None]) -> None:
        self._engine, self._default, self._check = engine, default, check

    async def new(self, at: At, doc: bytes) -> bytes:
        """Create an agent from a document. EINVAL naming the field, EEXIST."""
        try:
            fields = msgspec.json.decode(doc, type=dict[str, msgspec.Raw])
        except msgspec.DecodeError as exc:
            raise error(errno.EINVAL, at.path, f"request: {exc}") from exc
        name = msgspec.json.decode(fields.pop("name", msgspec.Raw(b'""')))
        if not isinstance(name, str):
            raise error(errno.EINVAL, at.path, "name: want a string")
        merged = {"program": msgspec.Raw(msgspec.json.encode(self._default.program)), **fields}
        settings = parse_settings(msgspec.json.encode(merged))
        self._check(settings)
        agent = await self._create(name, settings)
        identity = await self._engine.identities.of(agent)
        pubkey = identity.pubkey if identity else None
        return msgspec.json.encode({"id": agent, "pubkey": pubkey, "status": "dormant"}) + b"\n"

    async def _create(self, name: str, settings: Settings) -> str:
        agent = await self._engine.create(name, settings)
        try:
            await self._engine.identities.current(agent)
        except OSError as exc:
            if exc.errno != errno.ENOTCONN:  # else the keeper is away: the key is made when it is first used
                raise
        return agent

    async def mkdir(self, at: At) -> None:
        """Create an agent with the default program."""
        await self._create(at["id"], self._default)

    async def rmdir(self, at: At) -> None:
        """Remove a terminated agent."""
        await self._engine.remove(at["id"])

    async def has(self, at: At, key: str) -> bool:
        """Whether there is such an agent."""
        return await self._engine.core.store.get(AgentRow, key) is not None

    async def has_let_in(self, at: At, key: str) -> bool:
        """Whether there is an agent that lets the key in that asks."""
        return self._engine.peers.grant(at.principal.name, key) is not None

    async def hosts(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        """The agents that let the key in that asks, in pages."""
        return [Entry(agent) for agent in self._engine.peers.agents(at.principal.name) if agent > after][:limit]

    async def is_protected(self, at: At) -> bool:
        """A walk must not remove what an agent that still exists holds."""
        row = await self._engine.core.store.get(AgentRow, at["id"])
        return row is not None and row.terminated_at_ns is None

    async def keys(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        """Agents by id, in pages."""
        return [Entry(row.id, Info(0, 0, row.created_at_ns)) for row in await self._engine.agents(after, limit)]

    def table(self) -> Dir:
        """The operator's directory of all agents."""
        agent = Dir(name="{id}", remove=self.rmdir, is_protected=self.is_protected, operator=True)
        new = Call(name="new", answer=self.new, usage=_USAGE, operator=True)
        return Dir(
            entries=[new], each=agent, has=self.has, keys=self.keys, mkdir=self.mkdir, facets=(AGENTS,), operator=True
        )

    def views(self) -> Dir:
        """A fixed directory of all agents."""
        agent = Dir(name="{id}", is_protected=self.is_protected)
        return Dir(each=agent, has=self.has, keys=self.keys, facets=(AGENTS,))

    def doors(self) -> Dir:
        """A fixed directory of the agents that let in who asks."""
        return Dir(each=Dir(name="{id}"), has=self.has_let_in, keys=self.hosts)


class Agents(FileService):
    """The directory *table*, and below it for each agent what *space* gives for it and whoever is attached."""

    def __init__(
        self, table: Dir, space: Callable[[str, Principal], FileService], versions: Versions,
        principal: Principal = OPERATOR,
    ) -> None:  # fmt: skip
        self._table, self._space, self._versions, self._principal = table, space, versions, principal
        self._top = Tree(root=table, changed=versions.latest).attach(principal)

    def attach(self, principal: Principal) -> Agents:
        return Agents(self._table, self._space, self._versions, principal)

    async def _below(self, path: Path) -> tuple[FileService, str, Path] | None:
        """The namespace that *path* leads into, its agent and the path there; None at the top."""
        agent, _, rest = path.partition("/")
        if path == ROOT or agent == "new":
            return None
        if self._table.has is None or not await self._table.has(At(Path(agent), {}, self._principal), agent):
            raise error(errno.ENOENT, agent)
        return self._space(agent, self._principal), agent, Path(rest)

    async def stat(self, path: Path) -> Stat:
        below = await self._below(path)
        if below is None or not below[2]:
            st = await self._top.stat(path)
            return msgspec.structs.replace(st, lists=False) if below is not None else st
        space, agent, rest = below
        return _own(await space.stat(rest), agent)

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        below = await self._below(path)
        if below is None:
            return [msgspec.structs.replace(st, lists=False) for st in await self._top.list(path, after, limit)]
        space, agent, rest = below
        return [_own(st, agent) for st in await space.list(rest, after, limit)]

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        below = await self._below(path)
        if below is None or not below[2]:
            return await self._top.open(path, mode, want=want)
        return await below[0].open(below[2], mode, want=want)

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        if "/" not in path:
            return await self._top.create(path, mode, want=want)
        space, _, rest = await self._inside(path)
        return await space.create(rest, mode, want=want)

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> None:
        if "/" not in path:
            await self._top.mkdir(path, want=want)
            return
        space, _, rest = await self._inside(path)
        await space.mkdir(rest, want=want)

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> None:
        if "/" not in path:
            await self._top.remove(path, want=want)
            return
        space, _, rest = await self._inside(path)
        await space.remove(rest, want=want)

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        if "/" not in old or "/" not in new:
            raise error(errno.EACCES, old, "an agent cannot be renamed")
        space, agent, rest = await self._inside(old)
        if new.partition("/")[0] != agent:
            raise error(errno.EXDEV, new)
        await space.rename(rest, Path(new.partition("/")[2]), want=want)

    async def _inside(self, path: Path) -> tuple[FileService, str, Path]:
        below = await self._below(path)
        if below is None:
            raise error(errno.ENOTDIR, path)
        return below


def seen_as(principal: Principal, agent: str) -> Principal:
    """*agent* itself, as far as *principal*'s token goes: its caveats with the paths as *agent* sees them."""
    top = f"views/{agent}"

    def below(caveat: Caveat) -> Caveat:
        if caveat.allow is None:
            return caveat
        found = [(ROOT if is_below(top, path) else Path(path.removeprefix(f"{top}/")), ops)
                 for path, ops in caveat.allow if is_below(top, path) or path.startswith(f"{top}/")]  # fmt: skip
        return replace(caveat, allow=tuple(found))

    return Principal("agent", agent, tuple(below(caveat) for caveat in principal.caveats))


@lru_cache(maxsize=1 << 16)
def _number(agent: str, number: int) -> int:
    digest = blake2b(b"%d/%s" % (number, agent.encode()), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _own(st: Stat, agent: str) -> Stat:
    """*st* with a number that no other agent's file has."""
    qid = Qid(_number(agent, st.qid.path), st.qid.version)
    until = None if st.until is None else (*st.until, AGENTS)
    named = None if st.named is None else (*st.named, AGENTS)
    return Stat(st.name, st.mode, st.size, st.mtime_ns, qid, st.kind, until, named, st.lists)
