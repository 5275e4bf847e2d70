"""containers: run code that nobody trusts, in sandboxes, as files. It costs: mount it budgeted.

``containers/new`` (C) takes a ContainerRequest {"kind"?, "provider"?, "image"?, "repo"?, "commands"?, "stdin"?,
"artifacts"?, "workdir"?, "env"?, "limits"?, "max_cost_usd"?, "idempotency_key"?, "timeout_ms"?, "keep_secs"?} and
answers {session_id, status, and the paths} at once. ``kind`` ephemeral runs its ``commands`` (a line of shell, or a
list of words) until one fails; build does too and names its ``artifacts`` (globs below the workdir) with size and
sha256; interactive stays until it is stopped or its time is over. ``repo`` {url, git_ref?, subdir?, auth?} is cloned
first; ``auth``, and values of ``env``, may be ``secret:NAME``. ``limits``: max_time_secs max_memory_mb max_disk_mb
max_file_mb (of one file; past it EFBIG) max_cpu_cores max_processes max_files allow_network. ``image`` "" is the
provider's own, ``provider`` "" or local the best there is. No network unless asked for and allowed. The same
idempotency_key is the same session; with another request it is EEXIST. Past the policy: EACCES; past a budget or too
many at a time: EDQUOT; what a provider cannot do: EOPNOTSUPP.
``containers/sessions/<session>/status`` (R) provisioning | cloning | running | complete | failed | expired, with times.
``containers/sessions/<session>/result`` (R) the ContainerResponse; before the end EAGAIN.
``containers/sessions/<session>/output`` (S) {stream, data | base64, done?} a line, of its own commands.
``containers/sessions/<session>/exec/new`` (C) {"command", "env"?, "cwd"?, "stdin"?, "timeout_ms"?, "idempotency_key"?},
or a line of shell; answers {exec_id, and the paths}; it runs once the session does. ESTALE when that has ended.
``containers/sessions/<session>/exec/<exec>/status`` (R), ``result`` (R), ``output`` (S), ``ctl`` (X) cancel.
``containers/sessions/<session>/files/`` the workdir as a tree of real files, kept a day (``keep_secs``); EBUSY in
cloning; ENOSPC past max_disk_mb or max_files in all.
``containers/sessions/<session>/usage`` (R) cpu_time_ms, peak_memory_bytes, disk_bytes, network_bytes, cost_usd.
``containers/sessions/<session>/ctl`` (X) stop (of one that has ended: remove its files), keepalive.
``containers/providers/<provider>/info`` (R) what it can do and costs. ``images`` (R) one a line. ``health`` (R).
``containers/policy`` (RW, the operator writes) images, providers, network, limits, sessions at a time, costs.
``containers/auth/token`` (W, never read) {"registry": HOST[:PORT], "username", "password"}: who the agent is where
images are fetched that a provider has not (its option ``pull``, the policy's ``allow_pull``); a registry alone is
forgotten. It is used for this agent alone; what was fetched with it is another's only if the registry lets that one
read it too. ``auth/status`` (R) {registry: {"set": true, "at": TIME}}. There is no challenge and no credits: no
provider here asks the one or sells the other.
``containers/usage`` (R) {day, tick}: reserved, spent, limit and remaining. All amounts are micro-USD.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import msgspec

from agentfs.containers import documents, policy, registries
from agentfs.containers.port import Used
from agentfs.engine.core import FEW
from agentfs.engine.documents import Documents
from agentfs.engine.money import CONTAINERS
from agentfs.engine.orders import Order
from agentfs.engine.purse import Account
from agentfs.engine.sandboxes import POLICY
from agentfs.engine.session import LIVE, log_of
from agentfs.errors import error
from agentfs.record import Log
from agentfs.rows import SandboxRow
from agentfs.service import FileService
from agentfs.services import Scope, Service, document
from agentfs.services.execs import Execs
from agentfs.tree import At, Call, Ctl, Dir, Entry, File, Graft, Info, Stream, Tree
from agentfs.types import Facet, Path, names_of, rfc3339

_USAGE = 'write {"commands":["echo hello"]} and read {"session_id":...}\n'


class Containers:
    """The functions behind the table of one agent's sandboxes."""

    def __init__(self, scope: Scope) -> None:
        self._engine, self._core, self._agent = scope.engine, scope.engine.core, scope.agent
        self._sandboxes, self._documents = scope.engine.sandboxes, Documents(scope.engine.core)

    async def new(self, at: At, doc: bytes) -> bytes:
        """Submit a request."""
        request = documents.parse(doc)
        account = at.want.purse
        if not isinstance(account, Account):
            raise error(errno.EACCES, at.path, "not mounted budgeted")
        key = request.idempotency_key or at.want.key or self._core.new_id()
        row, is_new = await self._sandboxes.submit(Order(self._agent, request, account, key, at.path))
        where = f"{CONTAINERS}/sessions/{row.id}"
        paths = {f"{name}_path": f"{where}/{name}" for name in ("status", "result", "output", "exec", "files")}
        about = {"session_id": row.id, "status": row.state, "is_new": is_new, "reserved_usd": row.reserved_usd}
        return msgspec.json.encode({**about, **paths}) + b"\n"

    async def _row(self, at: At) -> SandboxRow:
        return await self._sandboxes.row(self._agent, at["session"])

    async def status(self, at: At) -> bytes:
        """One session now."""
        return document(_about(await self._row(at)))

    async def info(self, at: At) -> Info:
        """Version and time of the last change."""
        return _info(await self._row(at))

    async def result(self, at: At) -> bytes:
        """The response."""
        row = await self._row(at)
        if row.state in LIVE:
            raise error(errno.EAGAIN, at.path, f"{row.state}: no result yet")
        results = msgspec.json.decode(row.results or "[]")
        last = results[-1] if results else {}
        return document(
            {
                "session_id": row.id, "status": row.state, "exit_code": row.exit_code,
                "stdout": last.get("stdout", ""), "stderr": last.get("stderr", ""), "command_results": results,
                "artifacts": msgspec.json.decode(row.artifacts or "[]"), "usage": _used(row),
                "cost_usd": row.cost_usd, "reserved_usd": row.reserved_usd,
                "duration_ms": _ms(row.started_ns or row.at_ns, row.done_ns), "provider_id": row.provider,
                "errno": row.error or None, "error": row.reason or None,
            }
        )  # fmt: skip

    async def output(self, at: At) -> Log:
        """The log of what came out."""
        log = self._core.logs.durable(self._agent, log_of(at["session"]))  # first: whoever ends it looks for it
        log.is_finite = True
        if (await self._row(at)).state not in LIVE:
            log.finish()
        return log

    async def files(self, at: At) -> FileService:
        """Its workdir."""
        return await self._sandboxes.files(await self._row(at))

    async def used(self, at: At) -> bytes:
        """What it used up to now, or until its end."""
        row = await self._row(at)
        session = self._sandboxes.running.get((self._agent, row.id))
        used = _shown(await session.used()) if session else _used(row)
        return document({**used, "cost_usd": row.cost_usd, "reserved_usd": row.reserved_usd})

    async def stop(self, at: At) -> None:
        """End it, or remove the files of one that has ended."""
        await self._sandboxes.stop(self._agent, at["session"])

    async def keep(self, at: At) -> None:
        """Give it its whole time again."""
        await self._sandboxes.keep(self._agent, at["session"])

    async def has_session(self, at: At, key: str) -> bool:
        """Whether there is such a session."""
        return await self._core.store.get(SandboxRow, self._agent, key) is not None

    async def sessions(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        """Sessions by id, in pages."""
        rows = await self._core.store.scan(SandboxRow, self._agent, after=after or None, limit=min(limit, FEW))
        return [Entry(row.id, _info(row)) for row in rows]

    # -- providers -------------------------------------------------------------------------------------------------

    async def has_provider(self, at: At, key: str) -> bool:
        """Whether there is such a provider."""
        return key in self._sandboxes.offers

    async def providers(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        """Providers by name."""
        return [Entry(name) for name in sorted(self._sandboxes.offers) if name > after][:limit]

    async def provider(self, at: At) -> bytes:
        """What is known of one."""
        offer = self._sandboxes.offers[at["provider"]]
        is_first = next(iter(self._sandboxes.offers)) == at["provider"]
        about = {"capabilities": sorted(offer.provider.capabilities), "usd_per_hour": offer.usd_per_hour}
        return document({"id": at["provider"], "is_local": is_first, **about})

    async def images(self, at: At) -> bytes:
        """An image a line."""
        names = await self._sandboxes.offers[at["provider"]].provider.images()
        return "".join(f"{name}\n" for name in names).encode()

    async def health(self, at: At) -> bytes:
        """Whether it can be asked now."""
        reason = await self._sandboxes.offers[at["provider"]].provider.health()
        return document({"status": "away" if reason else "ok", "reason": reason or None})

    # -- registries ------------------------------------------------------------------------------------------------

    async def set_token(self, at: At, doc: bytes) -> None:
        """Set, replace or forget who the agent is at a registry."""
        await self._engine.registries.put(self._agent, registries.parse(doc))

    async def auth(self, at: At) -> bytes:
        """At which registries the agent is somebody, and since when."""
        rows = await self._engine.registries.rows(self._agent)
        return document({row.registry: {"set": True, "at": rfc3339(row.changed_at_ns)} for row in rows})

    # -- money and rules -------------------------------------------------------------------------------------------

    async def policy(self, at: At) -> bytes:
        """What may be had."""
        return document(msgspec.to_builtins(await self._sandboxes.policy(self._agent)))

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
        return document(await self._engine.money.account(row, CONTAINERS, at.principal, Path(CONTAINERS)).usage())


def _ms(since_ns: int, until_ns: int | None) -> int | None:
    return None if until_ns is None else (until_ns - since_ns) // 1_000_000


def _info(row: SandboxRow) -> Info:
    return Info(row.version, 0, row.done_ns or row.started_ns or row.at_ns, (_facet(row.agent),))


def _facet(agent: str) -> Facet:
    return agent, SandboxRow.TABLE


def _shown(used: Used) -> dict[str, int | None]:
    return {
        "cpu_time_ms": used.cpu_ms, "peak_memory_bytes": used.peak_memory_bytes, "disk_bytes": used.disk_bytes,
        "network_bytes": used.network_bytes,
    }  # fmt: skip


def _used(row: SandboxRow) -> dict[str, int | None]:
    return _shown(Used(**msgspec.json.decode(row.used or "{}")))


def _about(row: SandboxRow) -> dict[str, Any]:
    times = {"at": row.at_ns, "started_at": row.started_ns, "until": row.until_ns, "done_at": row.done_ns}
    return {
        "session_id": row.id, "status": row.state, "provider_id": row.provider, "source": row.source,
        "exit_code": row.exit_code, "reserved_usd": row.reserved_usd, "cost_usd": row.cost_usd,
        "errno": row.error or None, "error": row.reason or None, "has_files": row.has_files,
        "request": msgspec.json.decode(row.request),
        **{name: rfc3339(ns) if ns is not None else None for name, ns in times.items()},
    }  # fmt: skip


def containers(scope: Scope) -> Tree:
    """The directory ``containers/`` of one agent."""
    c, execs = Containers(scope), Execs(scope)
    session = Dir(
        name="{session}",
        entries=[
            File(name="status", read=c.status, info=c.info),
            File(name="result", read=c.result, info=c.info),
            Stream(name="output", log=c.output),
            execs.table(),
            Graft(name="files", service=c.files, pays=True),
            File(name="usage", read=c.used),
            Ctl(name="ctl", verbs={"stop": c.stop, "keepalive": c.keep}),
        ],
    )
    reads = {"info": c.provider, "images": c.images, "health": c.health}
    provider = Dir(name="{provider}", entries=[File(name=name, read=read) for name, read in reads.items()])
    return scope.tree(
        Call(name="new", answer=c.new, usage=_USAGE, pays=True),
        Dir(name="sessions", each=session, has=c.has_session, keys=c.sessions, facets=(names_of(_facet(scope.agent)),)),
        Dir(name="providers", each=provider, has=c.has_provider, keys=c.providers),
        Dir(name="auth", entries=[File(name="status", read=c.auth), File(name="token", write=c.set_token)]),
        File(name="policy", read=c.policy, write=c.set_policy, info=c.policy_info, operator=True),
        File(name="usage", read=c.usage),
    )


SERVICE = Service(CONTAINERS, CONTAINERS, containers, needs_budget=True)
