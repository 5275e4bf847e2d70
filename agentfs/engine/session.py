"""`Session`: one sandbox on its way: made, filled, its commands run one after the other, its artifacts named.

It settles no money and ends no row: it says how the session ended.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import anyio
import msgspec

from agentfs.containers.artifacts import named
from agentfs.containers.documents import Exec, Request, argv_of
from agentfs.containers.port import Command, ContainerProvider, Spec, Used
from agentfs.engine.core import Core
from agentfs.engine.execs import KEPT_BYTES, Outcome, Runner
from agentfs.engine.scribe import Scribe
from agentfs.engine.secrets import Secrets
from agentfs.errors import detail_of, error, row_of
from agentfs.fault import point
from agentfs.ports import Expect, Put
from agentfs.rows import AgentRow, ExecRow, SandboxRow

PROVISIONING, CLONING, RUNNING = "provisioning", "cloning", "running"
COMPLETE, FAILED, EXPIRED, CANCELLED = "complete", "failed", "expired", "cancelled"
LIVE: Final = (PROVISIONING, CLONING, RUNNING)
LIMITS: Final = {"memory": errno.ENOMEM, "disk": errno.ENOSPC, "file": errno.EFBIG, "gone": errno.EREMOTEIO}
"""The errno of what ended a command before its time."""
_RESULTS_BYTES: Final = 768 << 10  # of what all commands of a session print: it is one row
_GONE: Final = "its sandbox was taken away"


def log_of(session: str, command: str = "") -> str:
    """The name of the record log of a session's own commands, or of one exec."""
    return f"exec-{session}-{command}" if command else f"box-{session}"


def command_id(session: str, number: int) -> str:
    """The id of command *number* of a session's own, from 0."""
    return f"{session}-{number}"


@dataclass(frozen=True, slots=True)
class End:
    """How a session ended."""

    state: str
    errno: int = 0
    reason: str = ""
    exit_code: int | None = None
    artifacts: Sequence[dict[str, Any]] = ()


def name_of(number: int) -> str:
    """The table's name of an errno, "" of 0: one number may have two."""
    return row_of(OSError(number, "")).name if number else ""


def failed(exc: OSError) -> End:
    """The end of a session that *exc* ended."""
    return End(FAILED, row_of(exc).errno, detail_of(exc)[:2000])


class Session:
    """One session until its end; `stop` may come at any time, and then the sandbox is ended by who sees it through."""

    def __init__(
        self, core: Core, scribe: Scribe, secrets: Secrets, provider: ContainerProvider, spec: Spec, row: SandboxRow
    ) -> None:
        self._core, self._scribe, self._secrets = core, scribe, secrets
        self.provider, self.spec, self.row = provider, spec, row
        self.request = msgspec.json.decode(row.request, type=Request)
        self.results: list[dict[str, object]] = []
        self.execs: dict[str, anyio.CancelScope] = {}
        self._scope, self._end = anyio.CancelScope(), End(COMPLETE)
        self._begun, self.is_over = anyio.Event(), False

    def stop(self, end: End) -> None:
        """End it so."""
        if not self._scope.cancel_called:
            self._end = end
            self._scope.cancel()

    async def change(self, **fields: Any) -> None:
        """Store what changed of its row."""
        self.row = msgspec.structs.replace(self.row, version=self.row.version + 1, **fields)
        alive = Expect(AgentRow, (self.row.agent,), "terminated_at_ns", None, errno.ECANCELED)
        await self._core.commit(
            alive, Expect(SandboxRow, (self.row.agent, self.row.id), errno=errno.ENOENT), Put(self.row)
        )

    async def live(self, slots: anyio.Semaphore, ready: Callable[[], Awaitable[None]]) -> End:
        """Until its commands have run, or, of an interactive one, until it is stopped; in one of *slots*.

        It begins when *ready* has returned.
        """
        try:
            with self._scope:
                try:
                    async with slots:
                        await ready()
                        return await self._live()
                except OSError as exc:
                    return failed(exc)
            return self._end
        finally:
            self.is_over = True
            self._begun.set()
            for scope in list(self.execs.values()):
                scope.cancel()

    async def _live(self) -> End:
        if self.row.state == RUNNING:  # found again: its own commands are not run twice
            try:
                await self.provider.quiet(self.spec)
            except FileNotFoundError:
                return End(FAILED, errno.EREMOTEIO, _GONE)
            self._begun.set()
            await anyio.sleep_forever()
        await self._begin()
        self._begun.set()
        end = await self._commands()
        if end.errno or end.exit_code:
            return end
        if self.request.kind == "interactive":
            await anyio.sleep_forever()
        if self.request.kind == "build":
            end = replace(
                end, artifacts=await named(self.provider.files(self.row.id, self.spec.limits), self.request.artifacts)
            )
        return end

    async def _begin(self) -> None:
        try:
            await self.provider.make(self.spec)
        except FileExistsError:  # a start before this one left it
            await self.provider.remove(self.row.id)
            await self.provider.make(self.spec)
        point("sandbox.made")
        if (repo := self.request.repo) is not None:
            await self.change(state=CLONING)
            await self.provider.clone(self.spec, repo, (await self._env({"auth": repo.auth}))["auth"].strip())
        await self.change(state=RUNNING, started_ns=self._core.clock.now_ns())

    async def _commands(self) -> End:
        """The commands of the request, until one fails."""
        most = min(KEPT_BYTES, _RESULTS_BYTES // (2 * max(1, len(self.request.commands))))
        runner = Runner(self._core, self._scribe, self.provider, self.spec, log_of(self.row.id), most)
        env, end = await self._env(self.request.env), End(COMPLETE)
        for number, words in enumerate(self.request.commands):
            stdin = self.request.stdin.encode() if number == 0 else b""
            outcome = await runner.run(Command(command_id(self.row.id, number), argv_of(words), env, stdin=stdin))
            self.results.append(outcome.shown(words))
            end = ended(outcome)
            if end.exit_code != 0:
                break
        return end

    async def _env(self, values: Mapping[str, str]) -> Mapping[str, str]:
        """*values* with every secret in its place. What is wrong with one is told with its name."""
        try:
            found = await self._secrets.used(self.row.agent, values)
        except OSError as exc:
            raise error(row_of(exc).errno, detail=f"{exc.filename}: {detail_of(exc)}") from exc
        if odd := [name for name, value in found.items() if "\0" in value]:
            raise error(errno.EINVAL, detail=f"env.{odd[0]}: the secret holds NUL")
        return found

    async def command(self, row: ExecRow) -> tuple[Outcome | None, OSError | None]:
        """Run what *row* asks for, within its scope in `execs`, once the session runs.

        None as outcome when it was cut off, or why it could not be run.
        """
        asked = msgspec.json.decode(row.request, type=Exec)
        runner = Runner(self._core, self._scribe, self.provider, self.spec, log_of(row.session, row.id))
        outcome: Outcome | None = None
        failure: OSError | None = None
        with self.execs[row.id]:
            try:
                await self._begun.wait()
                env = await self._env({**self.request.env, **asked.env})
                stdin, argv = asked.stdin.encode(), argv_of(asked.command)
                outcome = await runner.run(Command(f"{row.session}-{row.id}", argv, env, asked.cwd, stdin))
            except OSError as exc:
                failure = exc
        if outcome is not None and outcome.cause == "gone":
            self.stop(End(FAILED, errno.EREMOTEIO, _GONE))
        elif failure is not None:
            await self.look()
        return outcome, failure

    async def look(self) -> None:
        """End it where its sandbox is gone; nobody can tell while the engine is away."""
        if self.row.state != RUNNING or self.request.kind != "interactive":
            return  # it finds out by itself
        try:
            await self.provider.used(self.row.id)
        except FileNotFoundError:
            self.stop(End(FAILED, errno.EREMOTEIO, _GONE))
        except OSError:
            return

    async def used(self) -> Used:
        """What it used up to now; nothing is known of one that is gone."""
        try:
            return await self.provider.used(self.row.id)
        except OSError:
            return Used()


def ended(outcome: Outcome) -> End:
    """What a command's end makes of its session."""
    if not outcome.cause:
        return End(COMPLETE, exit_code=outcome.code)
    is_gone = outcome.cause == "gone"
    reason = _GONE if is_gone else f"it ran into its limit of {outcome.cause}"
    return End(FAILED, LIMITS[outcome.cause], reason, outcome.code)
