"""`Commands`: what is run in a session that is there: an exec is a row, its output a log, its result told once."""

from __future__ import annotations

import errno
import hashlib
import logging
from collections.abc import Sequence

import anyio
import msgspec

from agentfs.containers.documents import Exec
from agentfs.engine.core import Core
from agentfs.engine.execs import Outcome, last
from agentfs.engine.sandboxes import Sandboxes
from agentfs.engine.session import CANCELLED, COMPLETE, FAILED, LIMITS, RUNNING, Session, log_of, name_of
from agentfs.engine.timers import Timers
from agentfs.errors import detail_of, error, row_of
from agentfs.fault import point
from agentfs.ports import Append, AtMost, Change, DropLogs, Expect, Insert, Put
from agentfs.rows import ExecRow, SandboxRow

log = logging.getLogger(__name__)


class Commands:
    """The execs of every session of *sandboxes*."""

    def __init__(self, core: Core, timers: Timers, sandboxes: Sandboxes) -> None:
        self._core, self._timers, self._sandboxes = core, timers, sandboxes

    async def submit(self, agent: str, session: str, asked: Exec, key: str) -> tuple[ExecRow, bool]:
        """Run *asked* in a session, and whether that is new: the same key again is the same exec.

        It runs once the session does. ENOENT, ESTALE when the session has ended, EEXIST for a key of another command,
        ENOBUFS while too many run, ENOSPC.
        """
        id = hashlib.sha256(key.encode()).hexdigest()[:24] if key else self._core.new_id()
        request = msgspec.json.encode(asked).decode()
        known = await self._core.store.get(ExecRow, agent, session, id)
        if known is not None:
            if known.request != request:
                raise error(errno.EEXIST, detail=f"key {key!r} stands for another command")
            return known, False
        living = self._sandboxes.session(await self._sandboxes.row(agent, session))
        if len(living.execs) >= self._core.limits.execs_running:
            raise error(errno.ENOBUFS, detail=f"{self._core.limits.execs_running} commands run already")
        row = ExecRow(
            agent=agent, session=session, id=id, request=request, state=RUNNING, at_ns=self._core.clock.now_ns()
        )
        living.execs[id] = anyio.CancelScope()  # now: it counts, and can be cancelled, from its commit on
        try:
            await self._begin(living, row)
        except BaseException:
            del living.execs[id]
            raise
        assert self._sandboxes.group is not None
        self._sandboxes.group.start_soon(self._see_through, living, row, asked)
        point("exec.submitted")
        return row, True

    async def _begin(self, living: Session, row: ExecRow) -> None:
        alive = Expect(SandboxRow, (row.agent, row.session), "done_ns", None, errno.ESTALE)
        room = AtMost(ExecRow, (row.agent, row.session), self._core.limits.execs, errno.ENOSPC)
        await self._core.commit(alive, Insert(row), room, DropLogs(row.agent, log_of(row.session, row.id)))
        if living.is_over:
            living.execs[row.id].cancel()

    async def _see_through(self, living: Session, row: ExecRow, asked: Exec) -> None:
        timer = ("exec", row.agent, row.session, row.id)
        is_late = False

        async def expire() -> None:
            nonlocal is_late
            is_late = True
            self._cut(living, row)

        if asked.timeout_ms is not None:
            self._timers.set(timer, row.at_ns + asked.timeout_ms * 1_000_000, expire)
        try:
            outcome, failure = await living.command(row)
            if is_late and outcome is None:
                failure = error(errno.ETIMEDOUT, detail=f"no end within {asked.timeout_ms} ms")
            await self._end(row, asked, outcome, failure)
        except FileNotFoundError:
            log.info("exec %s: its session %s is gone", row.id, row.session)
        except Exception:  # a bug in a provider ends its command, and nothing else
            log.exception("exec %s of %s", row.id, row.agent)
        finally:
            self._timers.cancel(timer)
            del living.execs[row.id]

    async def _end(self, row: ExecRow, asked: Exec, outcome: Outcome | None, failure: OSError | None) -> None:
        if failure is None and outcome is not None and outcome.cause:
            failure = error(LIMITS[outcome.cause], detail=f"it ran into its limit of {outcome.cause}")
        if failure is not None:
            state, number, reason = FAILED, row_of(failure).errno, detail_of(failure)[:2000]
        elif outcome is None:
            state, number, reason = CANCELLED, errno.ECANCELED, "cancelled"
        else:
            state, number, reason = COMPLETE, 0, ""
        done = msgspec.structs.replace(
            row, state=state, error=name_of(number), reason=reason,
            result=msgspec.json.encode(outcome.shown(asked.command)).decode() if outcome else "",
            done_ns=self._core.clock.now_ns(), version=row.version + 1,
        )  # fmt: skip
        name = log_of(row.session, row.id)
        alive = Expect(SandboxRow, (row.agent, row.session), errno=errno.ENOENT)
        ending: Sequence[Change] = (Put(done), Append(row.agent, name, last(outcome.code if outcome else None, reason)))
        await self._core.commit(alive, *ending)
        self._core.logs.finish(row.agent, name)
        self._core.trace(
            row.agent, "container", id=row.session, exec=row.id, state=state, errno=done.error or None,
            exit_code=outcome.code if outcome else None,
        )  # fmt: skip

    def _cut(self, living: Session, row: ExecRow) -> None:
        if (scope := living.execs.get(row.id)) is not None:
            scope.cancel()

    async def cancel(self, agent: str, session: str, id: str) -> None:
        """End a command that runs. ENOENT, EEXIST when it has ended."""
        row = await self.row(agent, session, id)
        living = self._sandboxes.running.get((agent, session))
        if row.state != RUNNING or living is None:
            raise error(errno.EEXIST, detail=f"exec is {row.state} already")
        self._cut(living, row)

    async def row(self, agent: str, session: str, id: str) -> ExecRow:
        """One exec. ENOENT."""
        row = await self._core.store.get(ExecRow, agent, session, id)
        if row is None:
            raise error(errno.ENOENT, detail=f"no exec {id!r}")
        return row
