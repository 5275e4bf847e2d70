"""effects: do something outside once, within a budget: the idempotency journal as files. It costs: mount it budgeted.

``effects/new`` (C) takes {"provider", "request", "key"?, "max_cost_usd"?, "timeout_ms"?} and answers {id, key, state,
is_new, ...}. With is_new true the caller may act now: the intent and the reservation are durable. With is_new false it
must not: the same key came before, and state and receipt say what became of it. Another request under the same key is
EEXIST, past a budget it is EDQUOT, over the approval threshold EPERM. ``effects/<id>/status`` (R) is the entry;
``effects/<id>/result`` (RW) takes the outcome once: {"receipt", "cost_usd"?}, or {"error"} when nothing happened, which
releases the reservation. What nobody reports before the timeout (10 minutes) ends as unknown_outcome, spent in full.
``effects/usage`` (R) is {day, tick}: reserved, spent, limit and remaining; ``effects/policy`` (R) is what the mount
allows. Amounts are whole micro-USD: 1000000 is a dollar. Keys are kept for an hour behind their outcome.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import msgspec

from agentfs.engine.journal import DONE, FAILED, OPEN, Intent, hash_of
from agentfs.engine.money import EFFECTS, OWN, check_provider
from agentfs.engine.purse import Account
from agentfs.errors import error
from agentfs.rows import EffectRow
from agentfs.services import Scope, Service, document
from agentfs.tree import At, Call, Dir, Entry, File, Info, Tree
from agentfs.types import Path, rfc3339

_USAGE = 'write {"provider":"NAME","key":"KEY","request":...,"max_cost_usd":N} and read {"id":...,"is_new":true}\n'
_TIMEOUT_MAX_MS = 86_400_000


class Request(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The document written to ``new``."""

    provider: str
    request: Any
    key: str = ""
    max_cost_usd: int = 0
    timeout_ms: int = 600_000


class Result(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The document written to ``result``; ``error`` says that nothing happened."""

    receipt: Any = None
    cost_usd: int | None = None
    error: str = ""


class Effects:
    """The functions behind the table of one agent's journal."""

    def __init__(self, scope: Scope) -> None:
        self._core, self._money, self._agent = scope.engine.core, scope.engine.money, scope.agent
        self._engine = scope.engine

    async def new(self, at: At, doc: bytes) -> bytes:
        """Begin an effect, or find the one of this key."""
        request = _decoded(doc, Request)
        check_provider(request.provider)
        if not 0 < request.timeout_ms <= _TIMEOUT_MAX_MS:
            raise error(errno.EINVAL, at.path, f"timeout_ms: want 1..{_TIMEOUT_MAX_MS}")
        account = at.want.purse
        if not isinstance(account, Account):
            raise error(errno.EACCES, at.path, "not mounted budgeted")
        now_ns = self._core.clock.now_ns()
        intent = Intent(
            agent=self._agent, provider=request.provider, key=request.key or at.want.key or self._core.new_id(),
            hash=hash_of(request.request), max_cost_usd=request.max_cost_usd, charges=account.charges(),
            source=at.principal.source, deadline_ns=now_ns + request.timeout_ms * 1_000_000,
        )  # fmt: skip
        row, is_new = await self._money.begin(account, intent, at.path, doc)
        paths = {"status_path": f"{EFFECTS}/{row.id}/status", "result_path": f"{EFFECTS}/{row.id}/result"}
        return msgspec.json.encode({**_about(row), "is_new": is_new, **paths}) + b"\n"

    async def _row(self, at: At) -> EffectRow:
        row = await self._money.journal.get(self._agent, at["id"])
        if row is None:
            raise error(errno.ENOENT, at.path)
        return row

    async def status(self, at: At) -> bytes:
        """One entry."""
        return document(_about(await self._row(at)))

    async def info(self, at: At) -> Info:
        """Version and time of the last change."""
        return _info(await self._row(at))

    async def result(self, at: At) -> bytes:
        """The outcome; before there is one EAGAIN."""
        row = await self._row(at)
        if row.state == OPEN:
            raise error(errno.EAGAIN, at.path, "no outcome yet")
        return document({"receipt": msgspec.json.decode(row.receipt), "cost_usd": row.spent_usd, "error": row.error})

    async def report(self, at: At, doc: bytes) -> None:
        """Record the outcome, once."""
        result, row = _decoded(doc, Result), await self._row(at)
        if row.provider in OWN:
            raise error(errno.EPERM, at.path, f"{row.provider}: the runtime tells what came of it")
        cost = 0 if result.error and result.cost_usd is None else result.cost_usd
        await self._money.journal.finish(
            self._agent, row.id, FAILED if result.error else DONE, receipt=result.receipt, reason=result.error,
            cost_usd=await self._believed(at, row, cost),
        )  # fmt: skip

    async def _believed(self, at: At, row: EffectRow, cost_usd: int | None) -> int | None:
        """The cost that counts: the word of who spends for less than it reserved only where the mount trusts it."""
        grant = self._money.grants(await self._engine.row(self._agent), EFFECTS)
        is_trusting = grant is not None and grant.policy is not None and grant.policy.is_trusting
        is_trusted = is_trusting or (at.principal.is_operator and not at.principal.token)
        if is_trusted or cost_usd is None:
            return cost_usd
        return max(cost_usd, row.reserved_usd)

    async def has(self, at: At, key: str) -> bool:
        """Whether there is such an entry."""
        return await self._money.journal.get(self._agent, key) is not None

    async def keys(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        """Entries by id, in pages."""
        rows = await self._core.store.scan(EffectRow, self._agent, after=after or None, limit=limit)
        return [Entry(row.id, _info(row)) for row in rows]

    async def _account(self, at: At) -> Account:
        return self._money.account(await self._engine.row(self._agent), EFFECTS, at.principal, Path(EFFECTS))

    async def usage(self, at: At) -> bytes:
        """What stands in every account that would pay now."""
        return document(await (await self._account(at)).usage())

    async def policy(self, at: At) -> bytes:
        """What the mount allows."""
        return document(msgspec.to_builtins((await self._account(at)).policy))


def _decoded(doc: bytes, shape: Any) -> Any:
    try:
        return msgspec.json.decode(doc, type=shape)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise error(errno.EINVAL, detail=f"request: {exc}") from exc


def _info(row: EffectRow) -> Info:
    return Info(row.version, 0, row.done_at_ns or row.at_ns)


def _about(row: EffectRow) -> dict[str, Any]:
    times = {"at": row.at_ns, "deadline": row.deadline_ns, "done_at": row.done_at_ns}
    return {
        "id": row.id, "provider": row.provider, "key": row.key, "state": row.state, "source": row.source,
        "envelope_id": row.envelope or None, "request_hash": row.hash, "reserved_usd": row.reserved_usd,
        "spent_usd": row.spent_usd, "overrun_usd": row.overrun_usd, "receipt": msgspec.json.decode(row.receipt),
        "error": row.error or None, **{k: rfc3339(v) if v is not None else None for k, v in times.items()},
    }  # fmt: skip


def effects(scope: Scope) -> Tree:
    """The directory ``effects/`` of one agent."""
    e = Effects(scope)
    entry = Dir(
        name="{id}",
        entries=[
            File(name="status", read=e.status, info=e.info),
            File(name="result", read=e.result, write=e.report, info=e.info, pays=True),
        ],
    )
    new = Call(name="new", answer=e.new, usage=_USAGE, pays=True)
    usage, policy = File(name="usage", read=e.usage), File(name="policy", read=e.policy)
    return scope.tree(root=Dir(entries=[new, usage, policy], each=entry, has=e.has, keys=e.keys))


SERVICE = Service(EFFECTS, EFFECTS, effects, needs_budget=True)
