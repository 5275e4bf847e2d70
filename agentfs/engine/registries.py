"""`Registries`: what lets an agent fetch images from closed registries: sealed, used for it alone, never read.

What it looks like is in `agentfs.containers.registries`; who fetches is a provider.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import msgspec

from agentfs.containers.registries import Login, registry_of
from agentfs.engine.core import Core
from agentfs.engine.secrets import Secrets
from agentfs.errors import error
from agentfs.ports import AtMost, Delete, Expect, Put
from agentfs.rows import AgentRow, RegistryRow


class Registries:
    """The logins of every agent, sealed as its secrets are, and no secret that a reference finds."""

    def __init__(self, core: Core, secrets: Secrets) -> None:
        self._core, self._secrets = core, secrets

    async def put(self, agent: str, login: Login) -> None:
        """Set or replace *login*; one without a password is forgotten. ENOENT when it was not there, ENOSPC, EPERM."""
        key = (agent, login.registry)
        if not login.password:
            await self._core.commit(Expect(RegistryRow, key, errno=errno.ENOENT), Delete(RegistryRow, key))
            self._core.trace(agent, "identity", op="registry_removed", name=login.registry)
            return
        sealed = await self._secrets.seal(_name(agent, login.registry), msgspec.json.encode(login))
        alive = Expect(AgentRow, (agent,), "terminated_at_ns", None, errno.EPERM)
        room = AtMost(RegistryRow, (agent,), self._core.limits.registries, errno.ENOSPC)
        now_ns = self._core.clock.now_ns()
        row = RegistryRow(agent=agent, registry=login.registry, sealed=sealed, changed_at_ns=now_ns)
        await self._core.commit(alive, Put(row), room)
        self._core.trace(agent, "identity", op="registry_set", name=login.registry)

    async def rows(self, agent: str) -> Sequence[RegistryRow]:
        """Which are set, sorted; what is in them is sealed."""
        return await self._core.store.scan(RegistryRow, agent, limit=-1)

    async def login(self, agent: str, image: str) -> Login | None:
        """Who *agent* is at the registry of *image*; None: nobody. ENOTCONN while the keeper is away."""
        row = await self._core.store.get(RegistryRow, agent, registry_of(image))
        if row is None:
            return None
        opened = await self._secrets.unseal(_name(agent, row.registry), row.sealed)
        try:
            return msgspec.json.decode(opened, type=Login)
        except msgspec.DecodeError:
            raise error(errno.EIO, detail=f"auth: what is kept for {row.registry} is damaged") from None


def _name(agent: str, registry: str) -> str:
    return f"{agent}/registries/{registry}"  # no secret has a slash in its name
