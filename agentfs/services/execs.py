"""``containers/sessions/<session>/exec/``: commands run in a session that is there; part of the service containers."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import msgspec

from agentfs.containers import documents
from agentfs.engine.core import FEW
from agentfs.engine.money import CONTAINERS
from agentfs.engine.session import COMPLETE, RUNNING, log_of
from agentfs.errors import error
from agentfs.record import Log
from agentfs.rows import ExecRow
from agentfs.services import Scope, document
from agentfs.tree import At, Call, Ctl, Dir, Entry, File, Info, Stream
from agentfs.types import Facet, names_of, rfc3339

_USAGE = 'write {"command":"echo hello"} and read {"exec_id":...}\n'


class Execs:
    """The functions behind the table of one session's execs."""

    def __init__(self, scope: Scope) -> None:
        self._core, self._agent, self._commands = scope.engine.core, scope.agent, scope.engine.commands

    async def new(self, at: At, doc: bytes) -> bytes:
        """Run a command."""
        asked = documents.parse_exec(doc)
        key = asked.idempotency_key or at.want.key or ""
        row, is_new = await self._commands.submit(self._agent, at["session"], asked, key)
        where = f"{CONTAINERS}/sessions/{row.session}/exec/{row.id}"
        paths = {f"{name}_path": f"{where}/{name}" for name in ("status", "result", "output")}
        return msgspec.json.encode({"exec_id": row.id, "status": row.state, "is_new": is_new, **paths}) + b"\n"

    async def _row(self, at: At) -> ExecRow:
        return await self._commands.row(self._agent, at["session"], at["exec"])

    async def status(self, at: At) -> bytes:
        """One exec now."""
        row = await self._row(at)
        times = {"at": rfc3339(row.at_ns), "done_at": rfc3339(row.done_ns) if row.done_ns else None}
        why = {"errno": row.error or None, "error": row.reason or None}
        request = msgspec.json.decode(row.request)
        return document({"exec_id": row.id, "status": row.state, **why, **times, "request": request})

    async def info(self, at: At) -> Info:
        """Version and time of the last change."""
        return _info(await self._row(at))

    async def result(self, at: At) -> bytes:
        """How it ended, or why there is nothing to tell."""
        row = await self._row(at)
        if row.state == RUNNING:
            raise error(errno.EAGAIN, at.path, "running: no result yet")
        if row.state != COMPLETE and not row.result:
            raise error(getattr(errno, row.error, errno.EREMOTEIO), at.path, row.reason)
        why = {"errno": row.error or None, "error": row.reason or None}
        return document({"exec_id": row.id, "status": row.state, **msgspec.json.decode(row.result), **why})

    async def output(self, at: At) -> Log:
        """The log of what came out."""
        log = self._core.logs.durable(self._agent, log_of(at["session"], at["exec"]))  # first, as for a session's
        log.is_finite = True
        if (await self._row(at)).state != RUNNING:
            log.finish()
        return log

    async def cancel(self, at: At) -> None:
        """End one that runs."""
        await self._commands.cancel(self._agent, at["session"], at["exec"])

    async def has(self, at: At, key: str) -> bool:
        """Whether there is such an exec."""
        return await self._core.store.get(ExecRow, self._agent, at["session"], key) is not None

    async def keys(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        """Execs by id, in pages."""
        most = min(limit, FEW)
        rows = await self._core.store.scan(ExecRow, self._agent, at["session"], after=after or None, limit=most)
        return [Entry(row.id, _info(row)) for row in rows]

    def table(self) -> Dir:
        """The directory."""
        each = Dir(
            name="{exec}",
            entries=[
                File(name="status", read=self.status, info=self.info),
                File(name="result", read=self.result, info=self.info),
                Stream(name="output", log=self.output),
                Ctl(name="ctl", verbs={"cancel": self.cancel}),
            ],
        )
        return Dir(
            name="exec", entries=[Call(name="new", answer=self.new, usage=_USAGE)], each=each, has=self.has,
            keys=self.keys, facets=(names_of(_facet(self._agent)),),
        )  # fmt: skip


def _info(row: ExecRow) -> Info:
    return Info(row.version, 0, row.done_ns or row.at_ns, (_facet(row.agent),))


def _facet(agent: str) -> Facet:
    return agent, ExecRow.TABLE
