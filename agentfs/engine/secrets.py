"""Secrets: values that are written and used and never read: sealed by the keeper, opened only for who uses them.

Nothing here logs, traces or returns a value to a file.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence

from agentfs.engine.core import Core
from agentfs.errors import error
from agentfs.ports import AtMost, Change, Delete, Expect, Put, Signer
from agentfs.rows import AgentRow, SecretRow
from agentfs.types import check_name

REFERENCE = "secret:"
"""A value that begins so stands for the secret of that name."""


class Secrets:
    """The secrets of every agent, and under "" those of the runtime, over one signer."""

    def __init__(self, core: Core, signer: Signer | None) -> None:
        self._core, self._signer = core, signer

    def _keeper(self) -> Signer:
        if self._signer is None:
            raise error(errno.ENOTCONN, detail="this runtime keeps no keys")
        return self._signer

    async def seal(self, name: str, value: bytes) -> bytes:
        """*value*, closed for all but this runtime's keeper; it opens under the same *name* only. ENOTCONN."""
        return await self._keeper().seal(name, value)

    async def unseal(self, name: str, sealed: bytes) -> bytes:
        """What `seal` closed. ENOTCONN, EIO."""
        return await self._keeper().unseal(name, sealed)

    async def put(self, agent: str, name: str, value: bytes) -> None:
        """Set or replace a secret; whoever uses it next gets the new value. EFBIG, ENOSPC, EINVAL for the name."""
        check_name(name, f"secrets/{name}")
        if len(value) > self._core.limits.secret_bytes:
            raise error(errno.EFBIG, f"secrets/{name}", f"secret over {self._core.limits.secret_bytes} bytes")
        old, now_ns = await self.row(agent, name), self._core.clock.now_ns()
        at_ns = max(now_ns, old.changed_at_ns + 1) if old else now_ns
        sealed = await self.seal(f"{agent}/{name}", value)
        alive = [Expect(AgentRow, (agent,), "terminated_at_ns", None, errno.EPERM)] if agent else []
        changes: list[Change] = [
            *alive,
            Put(SecretRow(agent=agent, name=name, sealed=sealed, changed_at_ns=at_ns)),
            AtMost(SecretRow, (agent,), self._core.limits.secrets, errno.ENOSPC),
        ]
        await self._core.commit(*changes)
        self._core.trace(agent, "identity", op="secret_set", name=name)

    async def remove(self, agent: str, name: str) -> None:
        """Forget a secret. ENOENT."""
        key = (agent, name)
        await self._core.commit(Expect(SecretRow, key, errno=errno.ENOENT), Delete(SecretRow, key))
        self._core.trace(agent, "identity", op="secret_removed", name=name)

    async def row(self, agent: str, name: str) -> SecretRow | None:
        """Whether and since when it is set; the value is sealed."""
        return await self._core.store.get(SecretRow, agent, name)

    async def names(self, agent: str, after: str, limit: int) -> Sequence[SecretRow]:
        """The secrets behind the name *after*, sorted."""
        return await self._core.store.scan(SecretRow, agent, after=after or None, limit=limit)

    async def use(self, agent: str, text: str) -> str:
        """*text*, or the secret that ``secret:NAME`` stands for. ENOENT naming it, EILSEQ when it is not text."""
        if not text.startswith(REFERENCE):
            return text
        name = text.removeprefix(REFERENCE)
        row = await self.row(agent, name)
        if row is None:
            raise error(errno.ENOENT, f"secrets/{name}", "no such secret")
        try:
            value = (await self.unseal(f"{agent}/{name}", row.sealed)).decode()
        except UnicodeDecodeError as exc:
            raise error(errno.EILSEQ, f"secrets/{name}", "not text") from exc
        self._core.trace(agent, "identity", op="secret_used", name=name)
        return value

    async def used(self, agent: str, values: Mapping[str, str]) -> dict[str, str]:
        """*values* with every reference replaced."""
        return {name: await self.use(agent, text) for name, text in values.items()}
