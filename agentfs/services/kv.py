"""kv: an agent's own durable values: ``kv/<key>`` (N), raw bytes up to 1 MiB, 10,000 keys.

A value is stored whole when a handle is flushed, synced or closed, never torn; the last writer wins. A handle of a
removed key keeps what it read, and its commit is ESTALE. Rename replaces atomically.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import msgspec

from agentfs.engine.context import kv_rows
from agentfs.errors import error
from agentfs.ports import Change, Delete, Expect, Put
from agentfs.rows import KvRow
from agentfs.services import Scope, Service
from agentfs.tree import At, Data, Dir, Entry, Info, Tree
from agentfs.types import check_name, names_of, split


class Values:
    """The functions behind the table of one agent's values."""

    def __init__(self, scope: Scope) -> None:
        self._engine, self._core, self._agent = scope.engine, scope.engine.core, scope.agent

    async def _row(self, at: At) -> KvRow:
        row = await self._core.store.get(KvRow, self._agent, at["key"])
        if row is None:
            raise error(errno.ENOENT, at.path)
        return row

    async def read(self, at: At) -> bytes:
        """The value."""
        return (await self._row(at)).value

    async def info(self, at: At) -> Info:
        """Exact size and version."""
        return _info(await self._row(at))

    async def write(self, at: At, value: bytes) -> None:
        """Replace the value."""
        await self._engine.put_kv(self._agent, at["key"], value, match=at.want.match, is_new=False)

    async def create(self, at: At) -> None:
        """Add an empty value, atomically."""
        await self._engine.put_kv(self._agent, at["key"], b"", match=None, is_new=True)

    async def remove(self, at: At) -> None:
        """Remove the value."""
        key, match = (self._agent, at["key"]), at.want.match
        column, code = ("changed_at_ns", errno.ESTALE) if match is not None else ("", errno.ENOENT)
        await self._core.commit(Expect(KvRow, key, column, match, code), Delete(KvRow, key))

    async def rename(self, old: At, new: At) -> None:
        """Move a value onto another name, replacing what was there."""
        if split(new.path)[0] != split(old.path)[0]:
            raise error(errno.EXDEV, new.path)
        row = await self._row(old)
        moved = msgspec.structs.replace(row, key=check_name(new["key"]), changed_at_ns=self._core.clock.now_ns())
        key = (self._agent, row.key)
        changes: list[Change] = [Expect(KvRow, key, "changed_at_ns", row.changed_at_ns), Delete(KvRow, key), Put(moved)]
        await self._core.commit(*changes)

    async def has(self, at: At, key: str) -> bool:
        """Whether there is such a key."""
        return await self._core.store.get(KvRow, self._agent, key) is not None

    async def keys(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        """Keys with their sizes, in pages."""
        rows = await kv_rows(self._core.store, self._agent, after, limit)
        return [Entry(row.key, _info(row)) for row in rows]


def _info(row: KvRow) -> Info:
    return Info(row.changed_at_ns, row.size, row.changed_at_ns, ((row.agent, row.TABLE),))


def kv(scope: Scope) -> Tree:
    """The directory ``kv/`` of one agent."""
    v = Values(scope)
    limit, facets = scope.engine.core.limits.kv_value_bytes, (names_of((scope.agent, KvRow.TABLE)),)
    value = Data(name="{key}", read=v.read, write=v.write, info=v.info, remove=v.remove, limit=limit)
    top = Dir(each=value, has=v.has, keys=v.keys, create=v.create, rename=v.rename, facets=facets)
    return scope.tree(root=top)


SERVICE = Service("kv", "kv", kv)
