"""schedule: alarms that wake an agent: ``schedule/<name>`` (RW), one JSON object each; they survive restarts.

Write {"at": "2026-01-31T09:00:00Z"} or {"in_ms": 2000} or {"every_ms": 60000}, with "payload" (any JSON) and "missed"
(skip, once or all: what becomes of firings that fell into a downtime; once by default). Creating replaces. Reading adds
next, last and missed_count. A one-shot alarm is gone when it has fired; unlink cancels.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import msgspec

from agentfs.engine.alarms import parse_spec, row_of
from agentfs.engine.purse import pack
from agentfs.errors import error
from agentfs.ports import AtMost, Delete, Expect, Put
from agentfs.rows import AgentRow, AlarmRow
from agentfs.services import Scope, Service, document
from agentfs.tree import At, Dir, Entry, File, Info, Tree
from agentfs.types import check_name, rfc3339, split


class Schedule:
    """The functions behind the table of one agent's alarms."""

    def __init__(self, scope: Scope) -> None:
        self._engine, self._core, self._agent = scope.engine, scope.engine.core, scope.agent

    async def _row(self, at: At) -> AlarmRow:
        row = await self._core.store.get(AlarmRow, self._agent, at["name"])
        if row is None:
            raise error(errno.ENOENT, at.path)
        return row

    async def read(self, at: At) -> bytes:
        """The document as written, with what became of it."""
        row = await self._row(at)
        times = {"next": row.next_at_ns, "last": row.last_at_ns}
        known = {k: rfc3339(v) if v is not None else None for k, v in times.items()}
        return document({**msgspec.json.decode(row.spec), **known, "missed_count": row.missed})

    async def info(self, at: At) -> Info:
        """Version and time of the last change."""
        return _info(await self._row(at))

    async def write(self, at: At, doc: bytes) -> None:
        """Set or replace the alarm."""
        spec = msgspec.structs.replace(parse_spec(doc), origin="", reply_to="")
        row = row_of(self._agent, at["name"], spec, self._core.clock.now_ns(), pack(at.principal.purses))
        match = at.want.match
        guard = [] if match is None else [Expect(AlarmRow, (self._agent, row.name), "changed_at_ns", match)]
        full = AtMost(AlarmRow, (self._agent,), self._core.limits.alarms, errno.ENOSPC)
        alive = Expect(AgentRow, (self._agent,), "terminated_at_ns", None, errno.EPERM)
        await self._core.commit(alive, *guard, Put(row), full)
        self._engine.alarms.arm(row)

    async def create(self, at: At) -> None:
        """Any name may be given; the alarm is there once its document is written."""
        check_name(at["name"], at.path)

    async def remove(self, at: At) -> None:
        """Cancel the alarm."""
        key = (self._agent, at["name"])
        await self._core.commit(Expect(AlarmRow, key, errno=errno.ENOENT), Delete(AlarmRow, key))
        self._engine.alarms.disarm(*key)

    async def rename(self, old: At, new: At) -> None:
        """Give the alarm another name, replacing what had it."""
        if split(new.path)[0] != split(old.path)[0]:
            raise error(errno.EXDEV, new.path)
        row = await self._row(old)
        moved = msgspec.structs.replace(row, name=new["name"])
        key = (self._agent, row.name)
        await self._core.commit(Expect(AlarmRow, key, errno=errno.ENOENT), Delete(AlarmRow, key), Put(moved))
        self._engine.alarms.disarm(*key)
        self._engine.alarms.arm(moved)

    async def has(self, at: At, key: str) -> bool:
        """Whether there is such an alarm."""
        return await self._core.store.get(AlarmRow, self._agent, key) is not None

    async def keys(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        """Alarms by name, in pages."""
        rows = await self._core.store.scan(AlarmRow, self._agent, after=after or None, limit=limit)
        return [Entry(row.name, _info(row)) for row in rows]


def _info(row: AlarmRow) -> Info:
    return Info(row.changed_at_ns, 0, row.changed_at_ns)


def schedule(scope: Scope) -> Tree:
    """The directory ``schedule/`` of one agent."""
    s = Schedule(scope)
    alarm = File(name="{name}", read=s.read, write=s.write, info=s.info, remove=s.remove)
    return scope.tree(root=Dir(each=alarm, has=s.has, keys=s.keys, create=s.create, rename=s.rename))


SERVICE = Service("schedule", "schedule", schedule)
