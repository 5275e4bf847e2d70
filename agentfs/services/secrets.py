"""secrets: values that providers and programs use and nobody reads.

``secrets/<name>`` (W) takes a value, all bytes of it (one newline at the end is not part of it); writing again rotates
it, unlink forgets it. Reading is EACCES. ``secrets/status`` (R) is {name: {"set": true, "at": TIME}}. A secret is
sealed at rest and used by reference: ``secret:NAME`` as a value in the ``env`` of an exec program's config is replaced
when the program starts, and nowhere else.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from agentfs.engine.engine import Engine
from agentfs.errors import error
from agentfs.services import Scope, Service, document
from agentfs.tree import At, Dir, Entry, File, Info, Tree
from agentfs.types import check_name, rfc3339


class Vault:
    """The functions behind the table of one agent's secrets, or for "" of the runtime's."""

    def __init__(self, engine: Engine, agent: str) -> None:
        self._secrets, self._agent = engine.secrets, agent

    async def status(self, at: At) -> bytes:
        """Which are set, and since when."""
        rows = await self._secrets.names(self._agent, "", -1)
        return document({row.name: {"set": True, "at": rfc3339(row.changed_at_ns)} for row in rows})

    async def write(self, at: At, doc: bytes) -> None:
        """Set or rotate one."""
        value = doc.removesuffix(b"\n").removesuffix(b"\r")
        if not value:
            raise error(errno.EINVAL, at.path, "empty: unlink it to forget a secret")
        await self._secrets.put(self._agent, at["name"], value)

    async def create(self, at: At) -> None:
        """Any name may be given; the secret is there once its value is written."""
        check_name(at["name"], at.path)

    async def remove(self, at: At) -> None:
        """Forget one."""
        await self._secrets.remove(self._agent, at["name"])

    async def info(self, at: At) -> Info:
        """When it was set; never its size."""
        row = await self._secrets.row(self._agent, at["name"])
        if row is None:
            raise error(errno.ENOENT, at.path)
        return Info(row.changed_at_ns, 0, row.changed_at_ns)

    async def has(self, at: At, key: str) -> bool:
        """Whether it is set."""
        return await self._secrets.row(self._agent, key) is not None

    async def keys(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        """Names, in pages."""
        rows = await self._secrets.names(self._agent, after, limit)
        return [Entry(row.name, Info(row.changed_at_ns, 0, row.changed_at_ns)) for row in rows]


def table(engine: Engine, agent: str, name: str = "") -> Dir:
    """The directory of the secrets of one agent, or for "" of the runtime's."""
    vault = Vault(engine, agent)
    each = File(name="{name}", write=vault.write, remove=vault.remove, info=vault.info, is_text=True)
    status = File(name="status", read=vault.status)
    return Dir(name=name, entries=[status], each=each, has=vault.has, keys=vault.keys, create=vault.create)


def secrets(scope: Scope) -> Tree:
    """The directory ``secrets/`` of one agent."""
    return scope.tree(root=table(scope.engine, scope.agent))


SERVICE = Service("secrets", "secrets", secrets)
