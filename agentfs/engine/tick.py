"""`Ticks`: one tick: load, run the program, commit everything at once; or record why not and what happens next.

It is told which envelope to run; choosing and serialising is the workers' business.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
import msgspec

from agentfs.engine.agent import Program
from agentfs.engine.alarms import Alarms
from agentfs.engine.commit import Draft, Outcome
from agentfs.engine.context import AgentContext
from agentfs.engine.core import Core
from agentfs.engine.envelope import Metadata, decode, encode
from agentfs.engine.mail import Mail
from agentfs.engine.money import Money, Spender
from agentfs.engine.secrets import Secrets
from agentfs.engine.settings import Settings, settings_of
from agentfs.engine.timers import Timers
from agentfs.engine.trigger import Trigger
from agentfs.errors import detail_of, error, row_of
from agentfs.ports import Append, Change, Delete, Expect, Put
from agentfs.rows import AgentRow, EnvelopeRow, StateRow
from agentfs.service import FileService
from agentfs.types import rfc3339

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Running:
    """A worker's hold on one agent: its loaded program and, during a tick, how to end it."""

    agent: str
    born_ns: int = 0
    program: Program | None = None
    is_woken: bool = True
    is_dirty: bool = False
    is_leaving: bool = False
    is_stale: bool = False
    scope: anyio.CancelScope | None = None
    why: str = ""

    def recognise(self, about: AgentRow) -> None:
        """Forget the program when it belonged to an agent of the same name that is gone."""
        if self.born_ns != about.created_at_ns:
            self.born_ns, self.program, self.is_woken = about.created_at_ns, None, True

    def cancel(self, why: str) -> None:
        """End the tick that runs now, if any."""
        if self.scope is not None and not self.scope.cancel_called:
            self.why = why
            self.scope.cancel()


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at one envelope."""

    row: EnvelopeRow
    about: AgentRow
    state: StateRow
    trigger: Trigger
    started_ns: int


class Ticks:
    """Runs ticks of any agent; at most one at a time for each is its caller's promise."""

    def __init__(
        self, core: Core, mail: Mail, alarms: Alarms, timers: Timers,
        money: Money, secrets: Secrets, load: Callable[[str, Settings], Program], view: Callable[[str], FileService],
        emitted: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._core, self._mail, self._alarms, self._timers, self._money = core, mail, alarms, timers, money
        self._secrets = secrets
        self._load, self._view, self._emitted = load, view, emitted

    async def run(self, running: Running, settings: Settings, envelope_id: str) -> None:
        """Run the tick of one pending envelope to its commit, retry or dead letter. Raises what the store does."""
        agent = running.agent
        box = await self._mail.box(agent)
        about = await self._core.store.get(AgentRow, agent)
        row = await self._core.store.get(EnvelopeRow, agent, envelope_id)
        state = await self._core.store.get(StateRow, agent)
        if about is None or row is None or state is None:
            box.remove(envelope_id)
            return
        running.recognise(about)
        box.running, box.purses = envelope_id, row.purses
        try:
            if row.expires_at_ns is not None and row.expires_at_ns <= self._core.clock.now_ns():
                await self._bury(row, "expired")
            elif (attempt := self._begin(row, state, about)) is None:
                await self._bury(row, "unreadable: nested too deeply")
            else:
                await self._attempt(running, settings, attempt)
        finally:
            box.running = None

    def _begin(self, row: EnvelopeRow, state: StateRow, about: AgentRow) -> Attempt | None:
        """One try, or None for an envelope that can be decoded no more: trying again would not help."""
        try:
            return self._try(row, state, about)
        except (OSError, RecursionError):
            log.exception("envelope %s of %s", row.id, row.agent)
            return None

    def _try(self, row: EnvelopeRow, state: StateRow, about: AgentRow) -> Attempt:
        envelope, now_ns = decode(row.body), self._core.clock.now_ns()
        trigger = Trigger(
            kind=row.kind, agent=row.agent, tick_id=self._core.new_id(), attempt=row.attempts + 1,  # type: ignore[arg-type]
            at=rfc3339(now_ns), id=row.id, source=row.source, payload=envelope.payload, metadata=envelope.metadata,
            alarm=envelope.metadata.extra.get("alarm") if row.kind == "alarm" else None,
            state=msgspec.json.decode(state.state),
        )  # fmt: skip
        return Attempt(row, about, state, trigger, now_ns)

    async def _attempt(self, running: Running, settings: Settings, attempt: Attempt) -> None:
        ids = {"tick_id": attempt.trigger.tick_id, "envelope_id": attempt.row.id}
        self._core.trace(running.agent, "tick_start", cause=attempt.row.kind, attempt=attempt.trigger.attempt, **ids)
        spender = Spender(self._core, self._money, attempt.about, attempt.row.id, attempt.row.purses)
        ctx = self._context(running, spender, attempt.state, attempt.trigger)
        try:
            await self._guarded(running, settings, lambda program: program.run(ctx))
            outcome = await Draft(self._core, ctx).build()
            await self._commit(attempt, outcome)
        except Exception as exc:  # noqa: BLE001  # whatever a program raises is its tick's failure
            if isinstance(exc, OSError) and exc.errno == errno.ESTALE and await self._is_gone(attempt.row):
                (await self._mail.box(running.agent)).remove(attempt.row.id)
                return
            await self._fail(running, settings, attempt, ctx, exc)
            return
        running.is_woken = False
        self._after(running.agent, outcome)
        self._core.trace(running.agent, "tick_end", outcome="ok", **ids)

    def _context(self, running: Running, spender: Spender, state: StateRow, trigger: Trigger) -> AgentContext:
        return AgentContext(
            self._core, trigger, self._view(running.agent), spender, self._secrets, is_first=state.tick_count == 0,
            is_woken=running.is_woken, schema=state.schema,
        )  # fmt: skip

    async def _guarded(self, running: Running, settings: Settings, call: Callable[[Program], Awaitable[None]]) -> None:
        """Run the program under its time limit and within reach of `Running.cancel`. ETIMEDOUT, ECANCELED."""

        async def expire() -> None:
            running.cancel("timeout")

        key = ("limit", running.agent)
        self._timers.set(key, self._core.clock.now_ns() + settings.tick_timeout_ms * 1_000_000, expire)
        with anyio.CancelScope() as scope:
            running.scope, running.why = scope, ""
            self._core.versions.bump(running.agent, "lifecycle")
            try:
                await call(self._program(running, settings))
            except SystemExit as exc:  # a program that exits ends its tick, not the runtime
                raise error(errno.EREMOTEIO, detail=f"program called exit({exc.code!r})") from exc
            finally:
                running.scope = None
                self._core.versions.bump(running.agent, "lifecycle")
                self._timers.cancel(key)
        if scope.cancelled_caught:
            running.program = None  # cut off half-way: whatever it held in memory is not to be trusted
            if running.why == "timeout":
                raise error(errno.ETIMEDOUT, detail=f"tick over {settings.tick_timeout_ms} ms")
            raise error(errno.ECANCELED, detail=f"tick ended by {running.why}")

    def _program(self, running: Running, settings: Settings) -> Program:
        if running.program is None or running.is_stale:
            running.program, running.is_stale = self._load(running.agent, settings), False
        return running.program

    async def run_hook(self, running: Running, about: AgentRow, name: str) -> None:
        """Run ``on_sleep`` or ``on_terminate`` as a small tick of its own; a failure of it is only logged."""
        state = await self._core.store.get(StateRow, running.agent)
        running.recognise(about)
        is_over = name == "on_sleep" and running.program is None
        if state is None or is_over or (name == "on_terminate" and state.last_tick_cause == name):  # done before
            return
        try:
            settings = settings_of(about.config)
            if name not in self._program(running, settings).hooks:
                return
            trigger = Trigger(
                kind="event", agent=running.agent, tick_id=self._core.new_id(), attempt=1, source="runtime",
                payload=name, at=rfc3339(self._core.clock.now_ns()), id=name, metadata=Metadata(),
                state=msgspec.json.decode(state.state),
            )  # fmt: skip
            spender = Spender(self._core, self._money, about, f"{name}:{trigger.tick_id}", "")
            ctx = self._context(running, spender, state, trigger)
            await self._guarded(running, settings, lambda program: program.hook(name, ctx))
            outcome = await Draft(self._core, ctx).build()
            await self._commit_hook(state, name, outcome)
        except Exception:
            log.exception("%s of %s failed", name, running.agent)
            return
        self._after(running.agent, outcome)

    async def _commit_hook(self, state: StateRow, name: str, outcome: Outcome) -> None:
        changed = msgspec.structs.replace(
            state,
            state=encode(outcome.state.state) if outcome.state else state.state,
            schema=outcome.state.schema if outcome.state else state.schema,
            last_tick_cause=name if name == "on_terminate" else state.last_tick_cause,
            version=state.version + 1,
        )
        still = Expect(StateRow, (state.agent,), "version", state.version)
        await self._core.commit(still, Put(changed), *outcome.changes)

    # -- ends ------------------------------------------------------------------------------------------------------

    async def _commit(self, attempt: Attempt, outcome: Outcome) -> None:
        row, state = attempt.row, attempt.state
        await self._core.commit(
            Expect(AgentRow, (row.agent,), "created_at_ns", attempt.about.created_at_ns),
            Expect(EnvelopeRow, (row.agent, row.id), "attempts", row.attempts),
            Expect(StateRow, (row.agent,), "version", state.version),
            Delete(EnvelopeRow, (row.agent, row.id)),
            Put(self._advanced(attempt, state, outcome)),
            *outcome.changes,
            *self._records(attempt, "ok", ""),
        )
        (await self._mail.box(row.agent)).remove(row.id)

    def _advanced(self, attempt: Attempt, state: StateRow, outcome: Outcome | None) -> StateRow:
        set_state = outcome.state if outcome else None
        return msgspec.structs.replace(
            state,
            state=encode(set_state.state) if set_state else state.state,
            schema=set_state.schema if set_state else state.schema,
            tick_count=state.tick_count + (1 if outcome else 0),
            last_tick_at_ns=attempt.started_ns,
            last_tick_cause=attempt.row.kind,
            failures=0 if outcome else state.failures + 1,
            version=state.version + 1,
        )

    def _records(self, attempt: Attempt, outcome: str, reason: str) -> list[Change]:
        agent, now_ns = attempt.row.agent, self._core.clock.now_ns()
        fields: dict[str, object] = {
            "tick_id": attempt.trigger.tick_id, "envelope_id": attempt.row.id, "cause": attempt.row.kind,
            "attempt": attempt.trigger.attempt, "outcome": outcome, "error": reason or None,
        }  # fmt: skip
        span = {"started_at": rfc3339(attempt.started_ns), "duration_ms": (now_ns - attempt.started_ns) // 1_000_000}
        record = self._core.record
        return [
            Append(agent, "ticks", record(agent, "tick", {**fields, **span})),
            Append(agent, "trajectory", record(agent, "tick_end", fields), chain=True),
        ]

    def _after(self, agent: str, outcome: Outcome) -> None:
        for name in outcome.disarmed:
            self._alarms.disarm(agent, name)
        for row in outcome.armed:
            self._alarms.arm(row)
        for envelope in outcome.sent:
            self._core.trace(agent, "message_out", envelope_id=envelope.id, to=envelope.to)
        if outcome.sent:
            self._emitted(agent)

    async def _is_gone(self, row: EnvelopeRow) -> bool:
        return await self._core.store.get(EnvelopeRow, row.agent, row.id) is None

    async def _fail(
        self, running: Running, settings: Settings, attempt: Attempt, ctx: AgentContext, exc: Exception
    ) -> None:
        row, reason = attempt.row, self._reason(exc)
        state = await self._core.store.get(StateRow, row.agent) or attempt.state  # `recover` may have come meanwhile
        changes: list[Change] = [Put(self._advanced(attempt, state, None)), *self._records(attempt, "failed", reason)]
        retry = settings.retry
        again = msgspec.structs.replace(
            row, attempts=row.attempts + 1, not_before_ns=self._core.clock.now_ns() + retry.delay_ns(row.attempts + 1)
        )
        key = (row.agent, row.id)
        is_last = again.attempts >= retry.attempts
        changes += [Delete(EnvelopeRow, key), Put(self._mail.dead(again, reason))] if is_last else [Put(again)]
        still = [Expect(AgentRow, (row.agent,), "created_at_ns", attempt.about.created_at_ns), Expect(EnvelopeRow, key)]
        await self._core.commit(*still, *changes)
        box = await self._mail.box(row.agent)
        box.remove(row.id) if is_last else box.add(again)
        ids = {"tick_id": attempt.trigger.tick_id, "envelope_id": row.id}
        self._core.trace(row.agent, "tick_end", outcome="failed", error=reason, dead_letter=is_last or None, **ids)
        await self._tell(running, settings, ctx, reason)

    def _reason(self, exc: Exception) -> str:
        if isinstance(exc, OSError) and exc.errno is not None:
            text = f"{row_of(exc).name}: {detail_of(exc)}"
        else:
            log.info("tick failed", exc_info=exc)
            text = f"{type(exc).__name__}: {exc}"
        return text[:1000].encode(errors="replace").decode()  # a lone surrogate could not be stored

    async def _tell(self, running: Running, settings: Settings, ctx: AgentContext, reason: str) -> None:
        if running.program is None or "on_error" not in running.program.hooks:
            return
        try:
            await self._guarded(running, settings, lambda program: program.hook("on_error", ctx, reason))
        except Exception:
            log.exception("on_error of %s failed", running.agent)

    async def _bury(self, row: EnvelopeRow, reason: str) -> None:
        key = (row.agent, row.id)
        await self._core.commit(Expect(EnvelopeRow, key), Delete(EnvelopeRow, key), Put(self._mail.dead(row, reason)))
        (await self._mail.box(row.agent)).remove(row.id)
        self._core.trace(row.agent, "error", envelope_id=row.id, reason=reason)
