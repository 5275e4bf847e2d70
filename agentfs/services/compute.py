"""compute: ask models, within a budget: jobs as files. It costs: mount it budgeted.

``compute/new`` (C) takes a ComputeRequest {"input", "model"?, "kind"?, "stream"?, "timeout_ms"?, "idempotency_key"?,
"max_cost_usd"?, "api_key"?} and answers {job_id, status, status_path, stream_path, result_path} at once. Kinds: chat
{messages...} complete {prompt} embeddings {text | texts} image_generate {prompt} image_analyze {prompt, image}
transcribe {audio} speak {text} custom:NAME; what else is in ``input`` goes to the model's server as it is, but for what
the runtime decides (model, stream, n). A model that is not here needs a price, or the caller's own key. ``model`` is
MODEL or PROVIDER/MODEL, "" for any; a key goes only to a provider named so. The same idempotency_key is the same job;
with another request it is EEXIST. Past a budget: EDQUOT; over the approval threshold: EPERM; a model that nobody has:
ENOENT, that the policy forbids: EACCES.
``compute/jobs/<job>/status`` (R) pending | running | streaming | complete | failed | cancelled, times, provider, model.
``compute/jobs/<job>/result`` (R) the ComputeResponse; before the end EAGAIN, after a failure the job's own error.
``compute/jobs/<job>/stream`` (S) a ComputeChunk {job_id, delta, finish_reason?, usage?} a line.
``compute/jobs/<job>/ctl`` (X) cancel.
``compute/providers/<provider>/info`` (R) kinds, models, prices, what was measured, and whether it can be asked.
``compute/providers/<provider>/models`` (R) a model a line. ``compute/providers/<provider>/health`` (R) status, reason.
``compute/policy`` (RW, the operator writes) which providers and models, defaults, preference; {} allows all.
``compute/usage`` (R) {day, tick}: reserved, spent, limit and remaining. All amounts are micro-USD.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import msgspec

from agentfs.compute import documents, policy
from agentfs.engine.jobs import COMPLETE, LIVE, POLICY, log_of
from agentfs.engine.money import COMPUTE
from agentfs.engine.orders import Order
from agentfs.engine.purse import Account
from agentfs.errors import error
from agentfs.record import Log
from agentfs.rows import JobRow
from agentfs.services import Scope, Service, document
from agentfs.tree import At, Call, Ctl, Dir, Entry, File, Info, Stream, Tree
from agentfs.types import Facet, Path, names_of, rfc3339

_USAGE = 'write {"model":"MODEL","input":{"messages":[{"role":"user","content":"..."}]}} and read {"job_id":...}\n'


class Compute:
    """The functions behind the table of one agent's jobs."""

    def __init__(self, scope: Scope) -> None:
        self._engine, self._core, self._agent = scope.engine, scope.engine.core, scope.agent
        self._jobs, self._models = scope.engine.jobs, scope.engine.jobs.models
        self._documents = self._models.documents

    async def new(self, at: At, doc: bytes) -> bytes:
        """Submit a request."""
        request = documents.parse(doc)
        account = at.want.purse
        if not isinstance(account, Account):
            raise error(errno.EACCES, at.path, "not mounted budgeted")
        key = request.idempotency_key or at.want.key or self._core.new_id()
        row, is_new = await self._jobs.submit(Order(self._agent, request, account, key, at.path))
        where = f"{COMPUTE}/jobs/{row.id}"
        paths = {f"{name}_path": f"{where}/{name}" for name in ("status", "stream", "result")}
        about = {"job_id": row.id, "status": row.state, "is_new": is_new, "reserved_usd": row.reserved_usd}
        return msgspec.json.encode({**about, **paths}) + b"\n"

    async def _row(self, at: At) -> JobRow:
        return await self._jobs.row(self._agent, at["job"])

    async def status(self, at: At) -> bytes:
        """One job now."""
        return document(_about(await self._row(at)))

    async def info(self, at: At) -> Info:
        """Version and time of the last change."""
        return _info(await self._row(at))

    async def result(self, at: At) -> bytes:
        """The response, or why there is none."""
        row = await self._row(at)
        if row.state in LIVE:
            raise error(errno.EAGAIN, at.path, f"{row.state}: no result yet")
        if row.state != COMPLETE:
            raise error(getattr(errno, row.error, errno.EREMOTEIO), at.path, row.reason)
        usage = msgspec.json.decode(row.usage, type=documents.Usage).shown() if row.usage else None
        return document(
            {
                "job_id": row.id, "output": msgspec.json.decode(row.output), "finish_reason": row.finish_reason,
                "usage": usage, "cost_usd": row.cost_usd, "latency_ms": _ms(row.at_ns, row.done_ns),
                "provider_id": row.provider, "model": row.model,
            }
        )  # fmt: skip

    async def stream(self, at: At) -> Log:
        """The log of chunks."""
        log = self._core.logs.durable(self._agent, log_of(at["job"]))  # first: whoever ends the job looks for it
        log.is_finite = True
        if (await self._row(at)).state not in LIVE:
            log.finish()
        return log

    async def cancel(self, at: At) -> None:
        """End a job that runs."""
        await self._jobs.cancel(self._agent, at["job"])

    async def has_job(self, at: At, key: str) -> bool:
        """Whether there is such a job."""
        return await self._core.store.get(JobRow, self._agent, key) is not None

    async def jobs(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        """Jobs by id, in pages."""
        found: list[Entry] = []
        while rows := await self._jobs.rows(self._agent, after, limit - len(found)):
            found += [Entry(row.id, _info(row)) for row in rows]
            after = rows[-1].id
        return found

    # -- providers -------------------------------------------------------------------------------------------------

    async def has_provider(self, at: At, key: str) -> bool:
        """Whether there is such a provider."""
        return key in self._models.served

    async def providers(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        """Providers by name."""
        return [Entry(name) for name in sorted(self._models.served) if name > after][:limit]

    async def provider(self, at: At) -> bytes:
        """What is known of one."""
        await self._models.refresh()
        about = self._models.about(at["provider"])
        prices = {
            o.model: msgspec.to_builtins(o.price)
            for o in await self._models.offers(is_all=True)
            if o.provider == at["provider"]
        }
        return document({**about, "prices": prices})

    async def models(self, at: At) -> bytes:
        """A model a line."""
        await self._models.refresh()
        found = self._models.about(at["provider"])["models"]
        return "".join(f"{model}\n" for model in found).encode() if isinstance(found, list) else b""

    async def health(self, at: At) -> bytes:
        """Whether it can be asked now."""
        await self._models.refresh()
        about = self._models.about(at["provider"])
        return document({name: about[name] for name in ("status", "reason", "failures")})

    # -- money -----------------------------------------------------------------------------------------------------

    async def policy(self, at: At) -> bytes:
        """What may be asked of whom."""
        return document(msgspec.to_builtins(await self._jobs.policy(self._agent)))

    async def set_policy(self, at: At, doc: bytes) -> None:
        """Replace it."""
        policy.parse(doc)
        await self._documents.put(self._agent, POLICY, doc, at.want.match)

    async def policy_info(self, at: At) -> Info:
        """When it was written."""
        row = await self._documents.row(self._agent, POLICY)
        return Info(row.changed_at_ns, 0, row.changed_at_ns) if row else Info()

    async def usage(self, at: At) -> bytes:
        """What stands in every account that would pay now."""
        row = await self._engine.row(self._agent)
        return document(await self._engine.money.account(row, COMPUTE, at.principal, Path(COMPUTE)).usage())


def _ms(since_ns: int | None, until_ns: int | None) -> int | None:
    return None if since_ns is None or until_ns is None else (until_ns - since_ns) // 1_000_000


def _info(row: JobRow) -> Info:
    return Info(row.version, 0, row.done_ns or row.first_ns or row.started_ns or row.at_ns, (_facet(row.agent),))


def _facet(agent: str) -> Facet:
    return agent, JobRow.TABLE


def _about(row: JobRow) -> dict[str, Any]:
    times = {"at": row.at_ns, "started_at": row.started_ns, "first_at": row.first_ns, "done_at": row.done_ns}
    return {
        "job_id": row.id, "status": row.state, "provider_id": row.provider or None, "model": row.model or None,
        "source": row.source, "reserved_usd": row.reserved_usd, "cost_usd": row.cost_usd,
        "errno": row.error or None, "error": row.reason or None, "first_token_ms": _ms(row.started_ns, row.first_ns),
        "latency_ms": _ms(row.at_ns, row.done_ns), "request": msgspec.json.decode(row.request),
        **{name: rfc3339(ns) if ns is not None else None for name, ns in times.items()},
    }  # fmt: skip


def compute(scope: Scope) -> Tree:
    """The directory ``compute/`` of one agent."""
    c = Compute(scope)
    job = Dir(
        name="{job}",
        entries=[
            File(name="status", read=c.status, info=c.info),
            File(name="result", read=c.result, info=c.info),
            Stream(name="stream", log=c.stream),
            Ctl(name="ctl", verbs={"cancel": c.cancel}),
        ],
    )
    reads = {"info": c.provider, "models": c.models, "health": c.health}
    provider = Dir(name="{provider}", entries=[File(name=name, read=read) for name, read in reads.items()])
    return scope.tree(
        Call(name="new", answer=c.new, usage=_USAGE, pays=True),
        Dir(name="jobs", each=job, has=c.has_job, keys=c.jobs, facets=(names_of(_facet(scope.agent)),)),
        Dir(name="providers", each=provider, has=c.has_provider, keys=c.providers),
        File(name="policy", read=c.policy, write=c.set_policy, info=c.policy_info, operator=True),
        File(name="usage", read=c.usage),
    )


SERVICE = Service(COMPUTE, COMPUTE, compute, needs_budget=True)
