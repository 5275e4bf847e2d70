"""`Sandboxes`: sessions in sandboxes from their submit to their end: reserved, journalled, run, settled, reaped.

What is asked and allowed is in `agentfs.containers`, one session's way in `agentfs.engine.session`.
"""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from agentfs.containers import policy as policies
from agentfs.containers import terms
from agentfs.containers.documents import Limits, Request
from agentfs.containers.policy import Policy
from agentfs.containers.port import Spec
from agentfs.engine.core import Core
from agentfs.engine.documents import Documents
from agentfs.engine.execs import last
from agentfs.engine.housing import Housing
from agentfs.engine.journal import DONE, OPEN, UNKNOWN_OUTCOME
from agentfs.engine.money import CONTAINERS, Money
from agentfs.engine.orders import Order, known
from agentfs.engine.reaper import Reaper
from agentfs.engine.registries import Registries
from agentfs.engine.scribe import Scribe
from agentfs.engine.secrets import Secrets
from agentfs.engine.session import (
    EXPIRED,
    FAILED,
    LIVE,
    PROVISIONING,
    RUNNING,
    End,
    Session,
    command_id,
    failed,
    log_of,
    name_of,
)
from agentfs.engine.timers import Timers
from agentfs.errors import error
from agentfs.fault import point
from agentfs.ports import Append, AtMost, Change, Delete, DropLogs, Expect, Put
from agentfs.rows import AgentRow, ExecRow, SandboxRow
from agentfs.service import FileService

log = logging.getLogger(__name__)
POLICY = "containers-policy"


class Sandboxes:
    """The sessions of every agent over the providers of one runtime."""

    def __init__(
        self, core: Core, timers: Timers, money: Money, secrets: Secrets, registries: Registries, housing: Housing
    ) -> None:
        self._core, self._timers, self._money, self._secrets = core, timers, money, secrets
        self._registries, self._documents = registries, Documents(core)
        self.offers, self._inside, self._ready = housing.offers, housing.inside, housing.ready
        self.running: dict[tuple[str, str], Session] = {}
        self._beginning = Counter[tuple[str, str]]()
        self.held: set[str] = set()  # sandboxes that are no session's, and are not to be reaped
        self._ticking: set[str] = set()  # agents of which a tick runs in one of those
        self.group: TaskGroup | None = None
        self.scribe: Scribe | None = None
        self._slots = anyio.Semaphore(core.limits.sandboxes_running)
        self._reaper = Reaper(core, timers, self.offers, self.running, self.held)

    async def submit(self, order: Order[Request]) -> tuple[SandboxRow, bool]:
        """The session of *order*, and whether it is new; it runs by itself from now on.

        EACCES past the policy, ENOENT for the provider, EOPNOTSUPP for what it cannot do, EDQUOT for money and for
        sessions at a time, EPERM while it needs approval, EEXIST for a key of another request, ENOSPC, EINVAL.
        """
        request, agent = order.request, order.agent
        rules = await self.policy(agent)
        limits = rules.limits(request)
        name = self._choice(request, rules, limits)
        rules.check(request, self._image(request, rules, name))
        price = self.offers[name].usd_per_hour
        now_ns = self._core.clock.now_ns()
        until_ns = now_ns + terms.time_ns(request, limits)
        reserved = terms.reserved(request, rules, price, limits)
        intent = order.intent(CONTAINERS, msgspec.to_builtins(request), reserved, until_ns)
        old, same = await known(self._core, self._money.journal, SandboxRow, intent)
        if same is None:
            self._count(agent, rules, intent.id)
        stored = msgspec.json.encode(request).decode()
        row = SandboxRow(
            agent=agent, id=intent.id, request=stored, state=PROVISIONING, provider=name,
            source=order.account.principal.source, at_ns=now_ns, reserved_usd=reserved, usd_per_hour=price,
            until_ns=until_ns, version=old.version + 1 if old else 1,
        )  # fmt: skip
        room = AtMost(SandboxRow, (agent,), self._core.limits.sandboxes, errno.ENOSPC)
        self._beginning[agent, row.id] += 1  # at once: others ask how many there are
        try:
            new: Sequence[Change] = (Put(row), room, *await self._fresh(row))
            spec = await self._spec(row)  # now: from the commit on nothing may come between
            _, is_new = await self._money.begin(order.account, intent, order.path, _shown(request), *new)
            if is_new:
                self._core.logs.finish(agent, log_of(row.id))  # of the same key before, which came to nothing
                self._start(row, spec)
                point("sandbox.submitted")
        finally:
            self._beginning[agent, row.id] -= 1
            self._beginning += Counter()  # without what is at 0
        return row if is_new else await self.row(agent, intent.id), is_new

    async def _fresh(self, row: SandboxRow) -> Sequence[Change]:
        """Drops what an older session of this name left: its output, and its execs with theirs."""
        execs = self._core.every(ExecRow, row.agent, row.id)
        logs = [DropLogs(row.agent, log_of(row.id, each.id)) async for each in execs]
        return [DropLogs(row.agent, log_of(row.id)), Delete(ExecRow, (row.agent, row.id)), *logs]

    def _count(self, agent: str, rules: Policy, id: str = "") -> None:
        """EDQUOT when as many of *agent* run as *rules* allow, besides the session *id*."""
        others = sum(key[0] == agent and key[1] != id for key in self._beginning.keys() | self.running.keys())
        if others + (agent in self._ticking) >= rules.max_sessions:
            raise error(errno.EDQUOT, detail=f"max_sessions: {rules.max_sessions} of {agent} run already")

    @asynccontextmanager
    async def ticking(self, agent: str) -> AsyncIterator[None]:
        """For as long as a tick of *agent* runs in a sandbox: it counts as a session. EDQUOT as `submit`."""
        self._count(agent, await self.policy(agent))
        self._ticking.add(agent)
        try:
            yield
        finally:
            self._ticking.discard(agent)

    def _image(self, request: Request, rules: Policy, provider: str) -> str:
        return request.image or rules.default_image or self.offers[provider].image

    def _choice(self, request: Request, rules: Policy, limits: Limits) -> str:
        """The provider: the one that is named, else the first that may and can."""
        wanted = request.provider or rules.default_provider
        able = [name for name in self.offers if wanted in ("", "local", name) and rules.allows(name)]
        if wanted not in ("", "local", *self.offers):
            known = " ".join(self.offers) or "none"
            raise error(errno.ENOENT, detail=f"provider: there is no {wanted!r}; there are: {known}")
        if not able:
            raise error(
                errno.EACCES if self.offers else errno.ENOTCONN,
                detail="provider: none is allowed here" if self.offers else "provider: this runtime has no sandboxes",
            )
        network = [name for name in able if "network" in self.offers[name].provider.capabilities]
        if limits.allow_network and not network:
            raise error(errno.EOPNOTSUPP, detail=f"limits.allow_network: {able[0]} has no network")
        return network[0] if limits.allow_network else able[0]

    async def planned(self, agent: str, id: str, request: Request) -> tuple[str, Spec]:
        """At which provider to make a sandbox that is no session, and how. Errors of the policy, as `submit`."""
        rules = await self.policy(agent)
        limits = rules.limits(request)
        name = self._choice(request, rules, limits)
        image = self._image(request, rules, name)
        rules.check(request, image)
        return name, await self._made(Spec(id, agent, image, request.workdir, limits=limits), rules)

    # -- running ---------------------------------------------------------------------------------------------------

    async def restore(self, group: TaskGroup) -> None:
        """Take up what a process that died left; then reap what no row owns, and go on doing so."""
        self.scribe = Scribe(self._core, group)
        self.group = living = await group.start(self._host)
        for agent in await self._core.store.agents(SandboxRow):
            async for row in self._core.every(SandboxRow, agent):
                async for lost in self._core.every(ExecRow, agent, row.id):
                    if lost.state == RUNNING:
                        await self._lose(lost)
                if row.state in LIVE:
                    self._money.journal.live.add((row.agent, row.id))
                    living.start_soon(self._restore, row)  # an engine that is away must not hold up the start
                else:
                    self._reaper.watch(row.expires_ns)
        self._reaper.group = group
        group.start_soon(self._reaper.reap)

    async def _host(self, *, task_status: TaskStatus[TaskGroup]) -> None:
        async with anyio.create_task_group() as group:
            task_status.started(group)
            await anyio.sleep_forever()
        self.group = None

    def pause(self) -> None:
        """End what runs in every sandbox, and let none begin: the next start takes the sessions up."""
        if self.group is not None:
            self.group.cancel_scope.cancel()

    async def _lose(self, row: ExecRow) -> None:
        lost = msgspec.structs.replace(
            row, state=FAILED, error="EREMOTEIO", reason=UNKNOWN_OUTCOME, done_ns=self._core.clock.now_ns(),
            version=row.version + 1,
        )  # fmt: skip
        name = log_of(row.session, row.id)
        await self._core.commit(Put(lost), Append(row.agent, name, last(None, lost.reason)))

    async def _restore(self, row: SandboxRow) -> None:
        request = msgspec.json.decode(row.request, type=Request)
        try:
            if row.provider not in self.offers:
                raise error(errno.ENOTCONN, detail=f"there is no provider {row.provider} any more")
            if row.state != RUNNING or request.kind == "interactive":
                self._start(row, await self._spec(row))
                return
            end = End(FAILED, errno.EREMOTEIO, UNKNOWN_OUTCOME)
        except OSError as exc:
            end = failed(exc)
        await self._ended(row)
        await self.end(row, end, [])
        self._money.journal.live.discard((row.agent, row.id))

    async def _spec(self, row: SandboxRow) -> Spec:
        request, rules = msgspec.json.decode(row.request, type=Request), await self.policy(row.agent)
        image, limits = self._image(request, rules, row.provider), terms.kept(request, rules)
        main = command_id(row.id, 0) if request.kind != "interactive" and len(request.commands) == 1 else ""
        return await self._made(Spec(row.id, row.agent, image, request.workdir, limits=limits, main=main), rules)

    async def _made(self, spec: Spec, rules: Policy) -> Spec:
        """*spec* with what every sandbox of its agent gets, and what lets it have its image."""
        inside, login = await self._inside(spec.agent), await self._registries.login(spec.agent, spec.image)
        return replace(
            spec, env=inside.env, view=inside.view, sockets=inside.sockets, login=login, may_pull=rules.allow_pull
        )

    def _start(self, row: SandboxRow, spec: Spec) -> None:
        if self.group is None or self.scribe is None:
            raise error(errno.ENOTCONN, detail="the runtime is starting")
        key, provider = (row.agent, row.id), self.offers[row.provider].provider
        self._money.journal.live.add(key)
        self._reaper.begin(row.id)
        session = Session(self._core, self.scribe, self._secrets, provider, spec, row)
        self.running[key] = session
        self._limit(session)
        self.group.start_soon(self._see_through, session)

    def _limit(self, session: Session) -> None:
        async def expire() -> None:
            session.stop(End(EXPIRED, errno.ETIMEDOUT, "its time is over"))

        row = session.row
        self._timers.set(("sandbox", row.agent, row.id), row.until_ns or row.at_ns, expire)

    async def _see_through(self, session: Session) -> None:
        key = (session.row.agent, session.row.id)
        try:
            end = await session.live(self._slots, self._ready)
            await self.end(session.row, end, session.results, await self._left(session))
        except FileNotFoundError:
            log.info("session %s: its agent %s is gone", session.row.id, session.row.agent)
        except Exception:  # a bug in a provider ends its session, and nothing else
            log.exception("session %s of %s", session.row.id, session.row.agent)
            await self._bury(session)
        finally:
            self._timers.cancel(("sandbox", *key))
            del self.running[key]
            self._money.journal.live.discard(key)

    async def _left(self, session: Session) -> str:
        """End the sandbox; what it used, as JSON."""
        used = msgspec.json.encode(await session.used()).decode()
        await self._ended(session.row)
        return used

    async def _ended(self, row: SandboxRow) -> None:
        """Nothing of *row* runs any more; where the provider is away now, the reaper tries again."""
        with anyio.CancelScope(shield=True):
            try:
                await self._reaper.end(row.provider, row.id)
            except OSError as exc:
                log.warning("session %s: %s", row.id, exc)

    async def _bury(self, session: Session) -> None:
        try:
            await self.end(session.row, End(FAILED, errno.EIO, "internal error"), session.results)
        except OSError:
            log.exception("session %s of %s", session.row.id, session.row.agent)  # resolved at the next start

    async def end(self, row: SandboxRow, end: End, results: Sequence[object], used: str = "") -> None:
        """Record how *row* ended and settle its money, in one commit."""
        now_ns, request = self._core.clock.now_ns(), msgspec.json.decode(row.request, type=Request)
        done = msgspec.structs.replace(
            row, state=end.state, exit_code=end.exit_code, reason=end.reason, done_ns=now_ns, version=row.version + 1,
            error=name_of(end.errno), used=used,
            results=msgspec.json.encode(results).decode(), artifacts=msgspec.json.encode(end.artifacts).decode(),
            expires_ns=now_ns + terms.kept_ns(request, self._core.limits.sandbox_ttl_seconds),
            cost_usd=0 if row.started_ns is None else terms.cost(row.usd_per_hour, now_ns - row.started_ns),
        )  # fmt: skip
        told = Append(row.agent, log_of(row.id), last(done.exit_code, done.reason, status=done.state))
        entry = await self._money.journal.get(row.agent, row.id)
        if entry is None or entry.state != OPEN:  # it was given up meanwhile
            done = msgspec.structs.replace(done, cost_usd=entry.spent_usd if entry else 0)
            await self._core.commit(Expect(AgentRow, (row.agent,), errno=errno.ENOENT), Put(done), told)
        else:
            done = msgspec.structs.replace(done, cost_usd=min(done.cost_usd, entry.reserved_usd))
            await self._money.journal.finish(
                row.agent, row.id, DONE, Put(done), told, receipt={"session_id": row.id, "state": done.state},
                reason=done.reason, cost_usd=done.cost_usd,
            )  # fmt: skip
        point("sandbox.ended")
        self._reaper.watch(done.expires_ns)
        self._core.logs.finish(row.agent, log_of(row.id))
        self._core.trace(
            row.agent, "container", id=row.id, state=done.state, provider=done.provider, exit_code=done.exit_code,
            cost_usd=done.cost_usd, errno=done.error or None,
        )  # fmt: skip

    # -- verbs -----------------------------------------------------------------------------------------------------

    def session(self, row: SandboxRow) -> Session:
        """The session of *row*, also while it is being made. ESTALE when it has ended; EBUSY while it is taken up."""
        session = self.running.get((row.agent, row.id))
        if session is None or session.is_over:
            raise _not_there(row)
        return session

    async def stop(self, agent: str, name: str) -> None:
        """End a session; of one that has ended, remove the files. ENOENT."""
        row = await self.row(agent, name)
        session = self.running.get((agent, name))
        if session is not None:
            session.stop(End("complete", reason="stopped"))
        elif row.state in LIVE:
            raise _not_there(row)
        elif row.has_files:
            await self._reaper.remove(row)
            await self._core.commit(Put(msgspec.structs.replace(row, has_files=False, version=row.version + 1)))

    async def keep(self, agent: str, name: str) -> None:
        """Let a running session have its whole time again from now. EDQUOT where that is more than is paid for."""
        session = self.session(await self.row(agent, name))
        if session.row.usd_per_hour:
            raise error(errno.EDQUOT, detail="keepalive: what is reserved pays for no more time")
        limits = session.spec.limits
        await session.change(until_ns=self._core.clock.now_ns() + terms.time_ns(session.request, limits))
        self._limit(session)

    def close(self, agent: str) -> None:
        """*agent* ends: so does what it runs."""
        for (owner, _), session in self.running.items():
            if owner == agent:
                session.stop(End("complete", reason="its agent ended"))

    async def files(self, row: SandboxRow) -> FileService:
        """The workdir of a session. EBUSY while it is cloned into; ENOENT when it is gone."""
        offer = self.offers.get(row.provider)
        if offer is None or not row.has_files:
            raise error(errno.ENOENT, detail="its files are gone")
        request = msgspec.json.decode(row.request, type=Request)
        if request.repo is not None and row.state in LIVE and row.state != RUNNING:
            raise _not_there(row)  # git has the network, and does what .git/config says
        return offer.provider.files(row.id, terms.kept(request, await self.policy(row.agent)))

    # -- what there is ---------------------------------------------------------------------------------------------

    async def row(self, agent: str, session: str) -> SandboxRow:
        """One session. ENOENT."""
        row = await self._core.store.get(SandboxRow, agent, session)
        if row is None:
            raise error(errno.ENOENT, detail=f"no session {session!r}")
        return row

    async def policy(self, agent: str) -> Policy:
        """What the operator lets *agent* have."""
        row = await self._documents.row(agent, POLICY)
        return policies.parse(row.text.encode()) if row else Policy()


def _not_there(row: SandboxRow) -> OSError:
    return error(errno.EBUSY if row.state in LIVE else errno.ESTALE, detail=f"session is {row.state}")


def _shown(request: Request) -> bytes:
    return msgspec.json.encode(request, order="sorted")
