"""Small values that cross every boundary: paths, modes, stats, principals, ids and times.

No I/O and no behaviour beyond checking a value; imports only the error table.
"""

from __future__ import annotations

import enum
import errno
import os
import re
import stat as _stat
import unicodedata
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NewType, Protocol, TypeAlias

import msgspec

from agentfs.errors import error

Path = NewType("Path", str)
"""Unrooted, clean, slash-separated; the empty string is the root of a service."""

AgentId = NewType("AgentId", str)

Facet: TypeAlias = tuple[str, str]
"""Something of an agent that changes as one, such as all rows of a table: agent ("" for none in particular), name."""

AGENTS: Final[Facet] = ("", "agents")
"""Which agents there are, and how each is set up."""

DAY: Final[Facet] = ("", "day")
"""The UTC day, with which budgets begin anew."""


def names_of(facet: Facet) -> Facet:
    """What changes when a row of *facet* comes or goes, and not when one becomes another."""
    agent, name = facet
    return agent, f"{name}/"


ROOT: Final = Path("")
PATH_MAX: Final = 4096
DEPTH_MAX: Final = 64
NAME_MAX: Final = 255
_AGENT_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")


class Mode(enum.Flag):
    """How a file is opened (9P OREAD, OWRITE, OTRUNC, plus append)."""

    READ = enum.auto()
    WRITE = enum.auto()
    TRUNCATE = enum.auto()
    APPEND = enum.auto()

    @property
    def is_change(self) -> bool:
        """Whether anything can be changed through it: more than READ."""
        return bool(self._value_ & ~1)


class Kind(enum.Enum):
    """What kind of file this is: it tells a face how to treat offsets, answers and caching."""

    DIR = "dir"
    FILE = "file"  # one document per open, read as a snapshot
    CTL = "ctl"  # verbs, one per line
    CALL = "call"  # write a request, read its answer on the same handle
    QUEUE = "queue"  # takes many documents per open; after a write, reads give the receipts
    STREAM = "stream"  # a record log, or its blocking twin
    DATA = "data"  # random access


class Bind(enum.Enum):
    """Where a mount goes in a union (Plan 9 MREPL, MBEFORE, MAFTER)."""

    REPLACE = "replace"
    BEFORE = "before"
    AFTER = "after"


OPERATIONS: Final = frozenset({"read", "write", "manage"})
"""``read``: list and read; ``write``: write and create files, and read their answers; ``manage``: the rest.

``manage`` is to make directories, to remove and to rename.
"""


@dataclass(frozen=True, slots=True)
class Caveat:
    """One link of a capability token: everything on the chain must allow what is done.

    ``allow``: (path prefix, some of `OPERATIONS`); None is everything. ``budget_usd`` is in micro-USD.
    ``depth``: how many links may follow. None is "no limit".
    """

    id: str
    allow: tuple[tuple[Path, frozenset[str]], ...] | None = None
    expires_ns: int | None = None
    budget_usd: int | None = None
    depth: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is attached: fixed at attach time, never taken from a uid or from a request body.

    ``role`` is ``operator``, ``agent``, ``driver`` or ``peer``; ``name`` is the agent's or driver's id, or the peer's
    public key (64 hex digits, which no agent's id can be). Whoever came with a capability token has the role of its
    issuer, narrowed by the token's ``caveats``.
    """

    role: str
    name: str = ""
    caveats: tuple[Caveat, ...] = ()

    @property
    def token(self) -> str:
        """The id of the token's last link; "" without one."""
        return self.caveats[-1].id if self.caveats else ""

    @property
    def purses(self) -> tuple[tuple[str, int], ...]:
        """The budgets on the token's chain, as (id, limit in micro-USD): each pays for all that is spent."""
        return tuple((c.id, c.budget_usd) for c in self.caveats if c.budget_usd is not None)

    @property
    def source(self) -> str:
        """The ``source`` field of envelopes this principal sends; no agent can have a token's."""
        return f"token:{self.token}" if self.caveats else self.name or self.role

    @property
    def bearer(self) -> Principal:
        """Whose allowance it uses: anybody can make links of a token, and wins nothing by it.

        Of an agent's tokens it is the agent's own, of the operator's that of the one that was issued.
        """
        return Principal(self.role, self.name, self.caveats[:1] if self.is_operator else ())

    @property
    def is_operator(self) -> bool:
        """True for the operator, who may do everything the files allow."""
        return self.role == "operator"


OPERATOR: Final = Principal("operator")


class Purse(Protocol):
    """What a budgeted mount gives along with every operation: the account that pays for it."""

    def paying(self, path: Path, doc: bytes) -> AbstractAsyncContextManager[None]:
        """Hold the mount's own price while one unit is applied to *path*; paid if that succeeds.

        EDQUOT past a budget; EPERM while it needs approval.
        """
        ...


class Use(Protocol):
    """One request to something that is used only when an approver has allowed it; it is asked for at most once."""

    @property
    def is_settled(self) -> bool:
        """Whether it is decided, has expired, or was withdrawn."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether it is settled and can be spent no more."""
        ...

    async def settled(self) -> None:
        """Ask an approver, if that was not done yet, and wait. ENOSPC; cancelled, it stays asked for."""
        ...

    async def spend(self) -> None:
        """Use the one allow up. EACCES when it was denied or spent, ETIMEDOUT expired, ECANCELED withdrawn."""
        ...

    async def withdraw(self) -> None:
        """Nobody waits any more: an allow has no effect from now on. Idempotent, never fails."""
        ...


class Confirm(Protocol):
    """What a mount with ``confirm`` gives along with every call: whoever must allow each use."""

    def use(self, path: Path, doc: bytes) -> Use:
        """The use that the request *doc* to *path* stands for; nobody is asked yet."""
        ...


@dataclass(frozen=True, slots=True)
class Want:
    """What a face knows and a service may need for one open, create, remove or rename.

    ``match``: the ``qid.version`` the caller saw (If-Match), checked inside the commit, ESTALE otherwise.
    ``key``: idempotency key. ``trace``: W3C traceparent. ``exclusive``: O_EXCL. ``purse``: set by a budgeted mount.
    ``confirm``: set by a mount of which each use waits until it is allowed.
    """

    match: int | None = None
    key: str | None = None
    trace: str | None = None
    exclusive: bool = False
    purse: Purse | None = None
    confirm: Confirm | None = None


NO_WANT: Final = Want()


class Qid(msgspec.Struct, frozen=True):
    """Identity of a file within its service (9P): ``path`` is stable, ``version`` rises with every change."""

    path: int = 0
    version: int = 0


class Stat(msgspec.Struct, frozen=True):
    """What a directory entry says of a file. ``mode`` holds type and permission bits, ``size`` bytes (advisory).

    ``until``: what is said here, and what is in it, holds until one of these facets changes, ``named``: that it is
    there, and the same file; None: who knows. ``lists``: ``until`` goes for the names in this directory too, and they
    move ``mtime_ns``.
    """

    name: str
    mode: int
    size: int = 0
    mtime_ns: int = 0
    qid: Qid = Qid()
    kind: Kind = Kind.FILE
    until: tuple[Facet, ...] | None = None
    named: tuple[Facet, ...] | None = None
    lists: bool = False

    @property
    def is_dir(self) -> bool:
        """True for a directory."""
        return _stat.S_ISDIR(self.mode)


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a log: ``line`` are its exact bytes, newline included; ``cursor`` is ``<epoch>-<seq>``."""

    cursor: str
    line: bytes


def clean(raw: str) -> Path:
    """The one gate for paths: relative, no empty, ``.`` or ``..`` segment, within the limits.

    A segment may still fail `check_name`; such a name can be looked up (and is absent) but not created.
    Raises EINVAL, EILSEQ (lone surrogates) or ENAMETOOLONG.
    """
    if raw == "":
        return ROOT
    try:
        size = len(raw.encode())
    except UnicodeEncodeError as exc:
        raise error(errno.EILSEQ) from exc
    parts = raw.split("/")
    if size > PATH_MAX or len(parts) > DEPTH_MAX:
        raise error(errno.ENAMETOOLONG, raw[:80], f"path over {PATH_MAX} bytes or {DEPTH_MAX} segments")
    for part in parts:
        if part in ("", ".", "..") or "\0" in part:
            raise error(errno.EINVAL, raw, f"path segment {part!r}")
        if len(part) > NAME_MAX // 4 and len(part.encode()) > NAME_MAX:
            raise error(errno.ENAMETOOLONG, raw[:80], f"segment over {NAME_MAX} bytes")
    return Path(raw)


def check_name(name: str, path: str = "") -> str:
    """*name* if a file may be created under it, else EINVAL, EILSEQ or ENAMETOOLONG.

    1-255 bytes of NFC UTF-8, no control character, ``/`` or ``@``, no leading ``.``, no trailing ``~``.
    """
    clean(name)
    reason = ""
    if "/" in name or "@" in name or not name:
        reason = "empty, or holds / or @"
    elif name.startswith(".") or name.endswith("~"):
        reason = "starts with . or ends with ~"
    elif any(unicodedata.category(c) == "Cc" for c in name):
        reason = "holds a control character"
    elif not unicodedata.is_normalized("NFC", name):
        reason = "is not in normal form NFC"
    if reason:
        raise error(errno.EINVAL, path or name, f"name {reason}")
    return name


def agent_id(raw: str) -> AgentId:
    """*raw* as an `AgentId` (``[a-z0-9][a-z0-9-]{0,62}``), else EINVAL."""
    if not _AGENT_ID.match(raw):
        raise error(errno.EINVAL, raw[:80], "agent id: want [a-z0-9][a-z0-9-]{0,62}")
    return AgentId(raw)


def join(top: Path, rest: str) -> Path:
    """*rest* below *top*; both may be the root."""
    return Path(f"{top}/{rest}" if top and rest else top or rest)


def split(path: Path) -> tuple[Path, str]:
    """Parent and last segment of *path*."""
    top, _, name = path.rpartition("/")
    return Path(top), name


def new_id(now_ns: int) -> str:
    """A UUIDv7 (RFC 9562): time-ordered by *now_ns* to the millisecond, 74 random bits."""
    value = (now_ns // 1_000_000) << 80 | 7 << 76 | int.from_bytes(os.urandom(10)) & (1 << 76) - 1
    value = value & ~(3 << 62) | 2 << 62
    h = f"{value:032x}"
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


@lru_cache(maxsize=4096)  # the same few are shown again and again
def rfc3339(at_ns: int) -> str:
    """*at_ns* (ns since the epoch) as RFC 3339 UTC with milliseconds."""
    at = datetime.fromtimestamp(at_ns // 1_000_000 / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str) -> int:
    """RFC 3339 *text* as ns since the epoch; a time without offset is UTC. EINVAL when malformed."""
    try:
        at = datetime.fromisoformat(text)
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        if at.timestamp() < 0:
            raise ValueError("before 1970")
        return int(at.timestamp() * 1000) * 1_000_000
    except (ValueError, OverflowError) as exc:
        raise error(errno.EINVAL, detail=f"time {text[:40]!r}: want RFC 3339, e.g. 2026-01-31T09:00:00Z") from exc
