"""`Jobs`: requests to models from their submit to their end: reserved, journalled, routed, streamed, settled.

What is asked and decided is in `agentfs.compute`; one run of one job in `agentfs.engine.run`.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence

import anyio
import msgspec
from anyio.abc import TaskGroup

from agentfs.compute import policy as policies
from agentfs.compute.documents import Request
from agentfs.compute.policy import Policy
from agentfs.compute.routing import Offer, places
from agentfs.engine.core import FEW, Core
from agentfs.engine.journal import OPEN, UNKNOWN_OUTCOME, Intent
from agentfs.engine.models import Models
from agentfs.engine.money import COMPUTE, Money
from agentfs.engine.orders import Order, known
from agentfs.engine.run import Ending, Run
from agentfs.engine.scribe import Scribe
from agentfs.engine.timers import Timers
from agentfs.errors import error
from agentfs.fault import point
from agentfs.ports import Append, AtMost, Change, Delete, DropLogs, Expect, Put
from agentfs.rows import AgentRow, JobRow

log = logging.getLogger(__name__)
POLICY = "compute-policy"
PENDING, RUNNING, STREAMING = "pending", "running", "streaming"
COMPLETE, FAILED, CANCELLED = "complete", "failed", "cancelled"
LIVE = (PENDING, RUNNING, STREAMING)
_WANTED_NS = 3_600_000_000_000  # a job whose time is over, and that may be replayed, is looked at again


def log_of(job: str) -> str:
    """The name of a job's record log."""
    return f"job-{job}"


class Jobs:
    """The jobs of every agent over the providers of one runtime."""

    def __init__(self, core: Core, timers: Timers, money: Money, models: Models) -> None:
        self._core, self._timers, self._money, self.models = core, timers, money, models
        self._runs: dict[tuple[str, str], Run] = {}
        self._group: TaskGroup | None = None
        self._scribe: Scribe | None = None
        self._slots = anyio.Semaphore(core.limits.jobs_running)

    async def submit(self, order: Order[Request]) -> tuple[JobRow, bool]:
        """The job of *order*, and whether it is new; it runs by itself from now on.

        ENOENT and EACCES for the model, EDQUOT, EPERM while it needs approval, EEXIST for a key of another request,
        ENOSPC, EINVAL.
        """
        request, agent = order.request, order.agent
        rules = await self.policy(agent)
        rules.check(request)
        old, same = await known(self._core, self._money.journal, JobRow, self._intent(order, 0))
        self._look()
        offers = [] if same else await self.models.route(request, rules)
        reserved = same.reserved_usd if same else _reserved(request, rules, offers)
        intent = self._intent(order, reserved)
        row = JobRow(
            agent=agent, id=intent.id, request=msgspec.json.encode(request.kept()).decode(), state=PENDING,
            source=order.account.principal.source, at_ns=self._core.clock.now_ns(), reserved_usd=reserved,
            has_key=bool(request.api_key), version=old.version + 1 if old else 1,
        )  # fmt: skip
        doc = msgspec.json.encode(request.kept(), order="sorted")
        room = AtMost(JobRow, (agent,), self._core.limits.jobs, errno.ENOSPC)
        new: Sequence[Change] = (Put(row), room, DropLogs(agent, log_of(row.id)))
        _, is_new = await self._money.begin(order.account, intent, order.path, doc, *new)
        if is_new:
            self._core.logs.finish(agent, log_of(row.id))  # of the same key before, which came to nothing
            self._start(row, request)
            point("job.submitted")
        return row if is_new else await self.row(agent, intent.id), is_new

    def _intent(self, order: Order[Request], reserved: int) -> Intent:
        request = order.request
        until_ns = self._core.clock.now_ns() + request.timeout_ms * 1_000_000
        return order.intent(COMPUTE, msgspec.to_builtins(request.kept()), reserved, until_ns)

    def _look(self) -> None:
        """Have lists of models that are old asked for again, while jobs go on with what is known."""
        if self._group is not None and self.models.is_old:
            self._group.start_soon(self.models.refresh)

    # -- running ---------------------------------------------------------------------------------------------------

    async def restore(self, group: TaskGroup) -> None:
        """Take up what a process that died left: what was never sent is sent, the rest counts as failed and spent."""
        self._group, self._scribe = group, Scribe(self._core, group)
        for agent in await self._core.store.agents(JobRow):
            async for row in self._core.every(JobRow, agent):
                await self._take_up(row)

    async def _take_up(self, row: JobRow) -> None:
        if row.state == PENDING and row.has_key:
            await self.end(row, Ending(FAILED, errno.EREMOTEIO, "the caller's key is not kept", cost_usd=0))
        elif row.state == PENDING:
            self._start(row, msgspec.json.decode(row.request, type=Request))
        elif row.state in LIVE:
            await self.end(row, Ending(FAILED, errno.EREMOTEIO, UNKNOWN_OUTCOME, is_certain=False))
        else:
            self._watch(row.expires_ns)

    def _start(self, row: JobRow, request: Request) -> None:
        key, group, scribe = (row.agent, row.id), self._group, self._scribe
        if group is None or scribe is None:
            raise error(errno.ENOTCONN, detail="the runtime is starting")
        self._money.journal.live.add(key)
        run = self._runs[key] = Run(self._core, self._timers, self.models, scribe, row, request)
        group.start_soon(self._see_through, run)

    async def _see_through(self, run: Run) -> None:
        key = (run.row.agent, run.row.id)
        try:
            ending = await run.run(self._slots, lambda: self.policy(run.row.agent))
            await self.end(run.row, ending)
        except FileNotFoundError:
            log.info("job %s: its agent %s is gone", run.row.id, run.row.agent)
        except Exception:  # a bug in a provider ends its job, and nothing else
            log.exception("job %s of %s", run.row.id, run.row.agent)
            await self._bury(run)
        finally:
            del self._runs[key]
            self._money.journal.live.discard(key)

    async def _bury(self, run: Run) -> None:
        try:
            await self.end(run.row, Ending(FAILED, errno.EIO, "internal error", is_certain=False))
        except OSError:
            log.exception("job %s of %s", run.row.id, run.row.agent)  # resolved at the next start

    async def end(self, row: JobRow, ending: Ending) -> None:
        """Record how *row* ended and settle its money, in one commit."""
        now_ns = self._core.clock.now_ns()
        done = msgspec.structs.replace(
            ending.applied(row), done_ns=now_ns, version=row.version + 1,
            expires_ns=now_ns + self._core.limits.job_ttl_seconds * 1_000_000_000,
        )  # fmt: skip
        last = Append(row.agent, log_of(row.id), ending.chunk(row.id))
        entry = await self._money.journal.get(row.agent, row.id)
        if entry is None or entry.state != OPEN:  # it was given up meanwhile
            await self._core.commit(Expect(AgentRow, (row.agent,), errno=errno.ENOENT), Put(done), last)
        else:
            done = msgspec.structs.replace(done, cost_usd=ending.cost(entry.reserved_usd))
            await self._money.journal.finish(
                row.agent, row.id, ending.entry, Put(done), last, receipt={"job_id": row.id, "state": done.state},
                reason=done.reason, cost_usd=ending.cost_usd,
            )  # fmt: skip
        point("job.ended")
        self._watch(done.expires_ns)
        self._core.logs.finish(row.agent, log_of(row.id))
        self._core.trace(
            row.agent, "job", id=row.id, state=done.state, provider=done.provider or None, model=done.model or None,
            cost_usd=done.cost_usd, errno=done.error or None,
        )  # fmt: skip

    async def cancel(self, agent: str, job: str) -> None:
        """End a job that runs; one that has ended stays as it is. ENOENT, EEXIST."""
        row = await self.row(agent, job)
        run = self._runs.get((agent, job))
        if run is None:
            raise error(errno.EEXIST, detail=f"job is {row.state} already")
        run.cancel()

    def close(self, agent: str) -> None:
        """*agent* ends: so does what it asked for."""
        for (owner, _), run in self._runs.items():
            if owner == agent:
                run.cancel()

    # -- what there is ---------------------------------------------------------------------------------------------

    async def row(self, agent: str, job: str) -> JobRow:
        """One job. ENOENT."""
        row = await self._core.store.get(JobRow, agent, job)
        if row is None:
            raise error(errno.ENOENT, detail=f"no job {job!r}")
        return row

    async def rows(self, agent: str, after: str, limit: int = FEW) -> Sequence[JobRow]:
        """A few jobs behind the id *after*, at most *limit*: each may hold a large answer."""
        return await self._core.store.scan(JobRow, agent, after=after or None, limit=min(limit, FEW))

    async def policy(self, agent: str) -> Policy:
        """What the operator lets *agent* ask for."""
        row = await self.models.documents.row(agent, POLICY)
        return policies.parse(row.text.encode()) if row else Policy()

    def _watch(self, at_ns: int | None) -> None:
        known = self._timers.next_at("jobs")
        if at_ns is not None and (known is None or at_ns < known):
            self._timers.set("jobs", at_ns, self.sweep)

    async def sweep(self) -> None:
        """Forget jobs whose time is over, with their streams."""
        now_ns = self._core.clock.now_ns()
        for agent in await self._core.store.agents(JobRow):
            async for row in self._core.every(JobRow, agent):
                if row.expires_ns is None or row.expires_ns > now_ns:
                    self._watch(row.expires_ns)
                elif await self._is_wanted(row):
                    self._watch(now_ns + _WANTED_NS)
                else:
                    same = Expect(JobRow, (agent, row.id), "version", row.version)
                    await self._core.commit(same, Delete(JobRow, (agent, row.id)), DropLogs(agent, log_of(row.id)))

    async def _is_wanted(self, row: JobRow) -> bool:
        """Whether its envelope is there yet, if only as a dead letter: a replay must find what was paid for."""
        entry = await self._money.journal.get(row.agent, row.id)
        return entry is not None and bool(entry.envelope) and entry.expires_ns is None


def _reserved(request: Request, rules: Policy, offers: Sequence[Offer]) -> int:
    """What is reserved: as the request or the policy says, else the dearest of the two places it may go to."""
    if request.max_cost_usd is not None:
        return request.max_cost_usd
    if rules.default_max_cost_usd is not None:
        return rules.default_max_cost_usd
    costs = [offer.cost(request) for offer in places(offers, rules)]
    if None in costs:
        raise error(errno.EINVAL, detail=f"max_cost_usd: wanted, for the price of {offers[0].model} is not known")
    return max(cost for cost in costs if cost is not None)
