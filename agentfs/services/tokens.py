"""tokens: hand on some of one's own rights as a text: capability tokens, which can be narrowed and never widened.

``tokens/new`` (C) takes {"allow": ["PATH:OP+OP", ...]?, "ttl_s"?, "budget_usd"?, "depth"?} and answers {id, token,
expires_at}; the token is shown this once and kept nowhere. OP is read, write (existing and new files, and the answers
to what is written) or manage (make directories, remove, rename). Paths are those of whoever makes the token: the
operator's in /runtime/tokens, an agent's own in its tokens. Its bearer spends at most budget_usd, whatever the agent
may, and hands it on at most depth times. ``tokens/<id>`` (R) is {id allow budget_usd spent_usd depth by at expires_at
revoked_at}. ``tokens/ctl`` (X): revoke ID ends a token, every one made from it, and the files they hold open.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import msgspec

from agentfs.budget import check_usd
from agentfs.capability import parse_allow
from agentfs.engine.engine import Engine
from agentfs.engine.purse import token_charges
from agentfs.errors import error
from agentfs.rows import TokenRow
from agentfs.services import Scope, Service, document
from agentfs.tree import At, Call, Ctl, Dir, Entry, File, Info, Tree
from agentfs.types import Caveat, rfc3339

_USAGE = 'write {"allow":["/PATH:read+write"],"ttl_s":3600,"budget_usd":N,"depth":0} and read {"id":...,"token":...}\n'
_TTL_MAX_S = 10 * 366 * 86_400


class Wish(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The document written to ``new``."""

    allow: list[str] | None = None
    ttl_s: int | None = None
    budget_usd: int | None = None
    depth: int | None = None


class Mint:
    """The functions behind the table of the tokens of one issuer: an agent, or "" for the operator."""

    def __init__(self, engine: Engine, agent: str) -> None:
        self._engine, self._agent, self._core = engine, agent, engine.core

    async def new(self, at: At, doc: bytes) -> bytes:
        """Issue a token."""
        try:
            wish = msgspec.json.decode(doc, type=Wish)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise error(errno.EINVAL, at.path, f"request: {exc}") from exc
        if at.principal.role == "operator" and self._agent:
            raise error(errno.EPERM, at.path, "these are the agent's own; the operator's: /runtime/tokens/new")
        if at.principal.role == "peer":
            raise error(errno.EPERM, at.path, "a token would outlive the grant it is made by")
        caveat = self._caveat(wish)
        token_id, token = await self._engine.tokens.issue(at.principal, caveat)
        expires = rfc3339(caveat.expires_ns) if caveat.expires_ns is not None else None
        return msgspec.json.encode({"id": token_id, "token": token, "expires_at": expires}) + b"\n"

    def _caveat(self, wish: Wish) -> Caveat:
        if wish.ttl_s is not None and not 0 < wish.ttl_s <= _TTL_MAX_S:
            raise error(errno.EINVAL, detail=f"ttl_s: want 1..{_TTL_MAX_S}")
        if wish.depth is not None and not 0 <= wish.depth <= 16:
            raise error(errno.EINVAL, detail="depth: want 0..16")
        if wish.budget_usd is not None:
            check_usd("budget_usd", wish.budget_usd)
        now_ns = self._core.clock.now_ns()
        expires = None if wish.ttl_s is None else now_ns + wish.ttl_s * 1_000_000_000
        allow = None if wish.allow is None else parse_allow(wish.allow)
        return Caveat("", allow, expires, wish.budget_usd, wish.depth)

    async def about(self, at: At) -> bytes:
        """What was issued and what became of it; never the token."""
        row = await self._core.store.get(TokenRow, self._agent, at["id"])
        if row is None:
            raise error(errno.ENOENT, at.path)
        about = msgspec.json.decode(row.about, type=dict[str, object])
        limit = about.get("budget_usd")
        (charge,) = token_charges([(row.id, limit if isinstance(limit, int) else 0)])
        sums = await self._engine.money.ledger.usage(charge)
        times = {"at": row.at_ns, "expires_at": row.expires_ns, "revoked_at": row.revoked_at_ns}
        shown = {k: rfc3339(v) if v is not None else None for k, v in times.items()}
        money = {"reserved_usd": sums.reserved_usd, "spent_usd": sums.spent_usd}
        return document({"id": row.id, **about, **money, **shown})

    async def revoke(self, at: At, id: str) -> None:
        """End a token."""
        await self._engine.tokens.revoke(self._agent, id, at.principal)

    async def has(self, at: At, key: str) -> bool:
        """Whether it was issued."""
        return await self._core.store.get(TokenRow, self._agent, key) is not None

    async def keys(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        """Issued tokens by id, in pages."""
        rows = await self._core.store.scan(TokenRow, self._agent, after=after or None, limit=limit)
        return [Entry(r.id, Info(r.revoked_at_ns or r.at_ns, 0, r.at_ns)) for r in rows]


def table(engine: Engine, agent: str) -> Dir:
    """The directory of the tokens of one issuer."""
    mint = Mint(engine, agent)
    new = Call(name="new", answer=mint.new, usage=_USAGE)
    ctl = Ctl(name="ctl", verbs={"revoke": mint.revoke})
    return Dir(name="tokens", entries=[new, ctl], each=File(name="{id}", read=mint.about), has=mint.has, keys=mint.keys)


def tokens(scope: Scope) -> Tree:
    """The directory ``tokens/`` of one agent."""
    return scope.tree(root=table(scope.engine, scope.agent))


SERVICE = Service("tokens", "tokens", tokens)
