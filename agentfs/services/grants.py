"""grants: let the holder of a key in, over signed HTTP requests: somebody else's agent, or one of this runtime.

``grants/<pubkey>`` (RW) is {"allow": ["PATH:OP+OP", ...], "expires_at"?, "note"?}: what whoever signs with that key may
do in this agent's own namespace, and never more than the agent itself. The name is the public key, 64 hex digits or an
npub. Paths and OP (read, write, manage) are those of tokens. The key's holder finds them at ``/agents/ID/PATH`` over
HTTP, and no agents but those that let it in. A change or unlink counts at once, also for files that are open; so does
the expiry, an RFC 3339 time. Only the operator and the agent itself grant: no bearer of a token, and no key that was
let in.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence

import msgspec

from agentfs.bech32 import public_of
from agentfs.capability import parse_allow
from agentfs.errors import error
from agentfs.rows import GrantRow
from agentfs.services import Scope, Service, document
from agentfs.tree import At, Dir, Entry, File, Info, Tree
from agentfs.types import parse_time, rfc3339

_HEX = re.compile(r"[0-9a-f]{64}\Z")
_ALLOW_MAX = 64
_NOTE_MAX = 256
_TIME_MAX_NS = 1 << 62


class Wish(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The document as written and read."""

    allow: list[str]
    expires_at: str | None = None
    note: str = ""


class Doors:
    """The functions behind the table of one agent's grants."""

    def __init__(self, scope: Scope) -> None:
        self._core, self._peers, self._agent = scope.engine.core, scope.engine.peers, scope.agent

    async def _row(self, at: At) -> GrantRow:
        row = await self._core.store.get(GrantRow, self._agent, _pubkey(at["pubkey"]) or "")
        if row is None:
            raise error(errno.ENOENT, at.path)
        return row

    async def read(self, at: At) -> bytes:
        """One grant."""
        row = await self._row(at)
        allow = msgspec.json.decode(row.allow, type=list[str])
        expires_at = rfc3339(row.expires_ns) if row.expires_ns is not None else None
        return document(Wish(allow=allow, expires_at=expires_at, note=row.note))

    async def info(self, at: At) -> Info:
        """Version and time of the last change."""
        return _info(await self._row(at))

    async def write(self, at: At, doc: bytes) -> None:
        """Grant, or change what was granted."""
        _check_granter(at)
        pubkey = _checked(at)
        try:
            wish = msgspec.json.decode(doc, type=Wish)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise error(errno.EINVAL, at.path, f"grant: {exc}") from exc
        row = GrantRow(
            agent=self._agent, pubkey=pubkey, allow=_allow(wish), expires_ns=self._expiry(wish), note=wish.note,
            changed_at_ns=0,
        )  # fmt: skip
        await self._peers.put(row, at.want.match, at.principal.source)

    def _expiry(self, wish: Wish) -> int | None:
        if len(wish.note) > _NOTE_MAX:
            raise error(errno.EINVAL, detail=f"note: over {_NOTE_MAX} characters")
        if wish.expires_at is None:
            return None
        expires_ns = parse_time(wish.expires_at)
        if not self._core.clock.now_ns() < expires_ns < _TIME_MAX_NS:
            raise error(errno.EINVAL, detail=f"expires_at: {wish.expires_at[:40]}: want a time to come")
        return expires_ns

    async def create(self, at: At) -> None:
        """Any key may be let in; it is once the document is written."""
        _check_granter(at)
        _checked(at)

    async def remove(self, at: At) -> None:
        """Let it in no more."""
        _check_granter(at)
        await self._peers.remove(self._agent, _checked(at), at.want.match, at.principal.source)

    async def has(self, at: At, key: str) -> bool:
        """Whether it was let in."""
        pubkey = _pubkey(key)
        return pubkey is not None and await self._core.store.get(GrantRow, self._agent, pubkey) is not None

    async def keys(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        """Keys in hex, in pages."""
        rows = await self._core.store.scan(GrantRow, self._agent, after=after or None, limit=limit)
        return [Entry(row.pubkey, _info(row)) for row in rows]


def _pubkey(name: str) -> str | None:
    """The key that a file's name stands for, in hex; None for another name."""
    if _HEX.match(name):
        return name
    try:
        return public_of(name).hex() if name.startswith("npub1") else None
    except OSError:
        return None


def _checked(at: At) -> str:
    pubkey = _pubkey(at["pubkey"])
    if pubkey is None:
        raise error(errno.EINVAL, at.path, "name: want a public key as 64 hex digits in lower case, or an npub")
    return pubkey


def _check_granter(at: At) -> None:
    """Else a right could be made larger, or outlive what it came from, by way of a key."""
    if at.principal.role not in ("operator", "agent") or at.principal.token:
        raise error(errno.EPERM, at.path, "only the operator and the agent itself let somebody in")


def _allow(wish: Wish) -> str:
    if not 0 < len(wish.allow) <= _ALLOW_MAX:
        raise error(errno.EINVAL, detail=f"allow: want 1..{_ALLOW_MAX} of PATH:OP")
    found = [f"/{path}:{'+'.join(sorted(ops))}" for path, ops in parse_allow(wish.allow)]
    return msgspec.json.encode(found).decode()


def _info(row: GrantRow) -> Info:
    return Info(row.changed_at_ns, 0, row.changed_at_ns)


def grants(scope: Scope) -> Tree:
    """The directory ``grants/`` of one agent."""
    doors = Doors(scope)
    each = File(name="{pubkey}", read=doors.read, write=doors.write, info=doors.info, remove=doors.remove)
    return scope.tree(root=Dir(each=each, has=doors.has, keys=doors.keys, create=doors.create))


SERVICE = Service("grants", "grants", grants)
