"""Protocols for what lies outside the core: `Clock`, `Store` with the changes it commits, `Ledger`, `Signer`.

No implementation: those are in `agentfs.providers`, and every one passes `conformance.store`.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentfs.rows import Row
    from agentfs.types import Facet, Record

R = TypeVar("R", bound="Row")


class Clock(Protocol):
    """Time as the core knows it; tests give one that they move by hand."""

    def now_ns(self) -> int:
        """Wall-clock ns since the epoch, UTC."""
        ...

    def monotonic_ns(self) -> int:
        """Ns of a clock that never jumps."""
        ...

    async def sleep_until(self, at_ns: int) -> None:
        """Return once `now_ns` has reached *at_ns*; at once (after a checkpoint) when it has."""
        ...


@dataclass(frozen=True, slots=True)
class Insert:
    """Add a new row; *errno* (EEXIST) when its key is taken. A ``seq`` of 0 gets the store's next number."""

    row: Row
    errno: int = errno.EEXIST


@dataclass(frozen=True, slots=True)
class Put:
    """Add or replace a row; a ``seq`` of 0 gets the store's next number."""

    row: Row


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove the rows whose key starts with *key* (all key columns: at most one row). No match is no error."""

    table: type[Row]
    key: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Append:
    """Append *doc* (a JSON object, no newline) to the log *log* of *agent*; the writer assigns sequence and offset.

    Its line is ``{"seq":N,`` + doc[1:] + newline; with *chain* ``{"seq":N,"prev":"<sha256 of the line before>",``.
    When the log's current generation holds *limit* bytes or more it is rotated first: a new epoch, the old
    generation kept as ``.1``, the one before dropped.
    """

    agent: str
    log: str
    doc: bytes
    chain: bool = False
    limit: int = 16 << 20


@dataclass(frozen=True, slots=True)
class Trim:
    """Keep only the *keep* newest rows (by ``seq``) of *table* for *agent*."""

    table: type[Row]
    agent: str
    keep: int


@dataclass(frozen=True, slots=True)
class Expect:
    """Precondition: the row exists and its *column* equals *value* (*column* ""): exists at all. Else *errno*."""

    table: type[Row]
    key: tuple[str, ...]
    column: str = ""
    value: object = None
    errno: int = errno.ESTALE


@dataclass(frozen=True, slots=True)
class AtMost:
    """Precondition, checked where it stands among the changes: at most *limit* rows below *prefix*. Else *errno*."""

    table: type[Row]
    prefix: tuple[str, ...]
    limit: int
    errno: int = errno.ENOBUFS


@dataclass(frozen=True, slots=True)
class DropLogs:
    """Remove every log of *agent*, or the one called *log*."""

    agent: str
    log: str = ""


Change: TypeAlias = Insert | Put | Delete | Append | Trim | Expect | AtMost | DropLogs


@dataclass(frozen=True, slots=True)
class Unit:
    """What is committed together or not at all; changes apply in order."""

    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit did: rows as stored (of Insert and Put, in order), records (of Append, in order), facets touched.

    A facet is ``(agent, table or log name)``; ``("", ...)`` stands for rows that belong to no agent. Where rows came or
    went, it is told with its `names_of`.
    """

    rows: tuple[Row, ...] = ()
    records: tuple[Record, ...] = ()
    facets: frozenset[Facet] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class LogHead:
    """One generation of a log. Sequence numbers go on across generations; offsets begin at 0 in each.

    ``generation`` counts rotations from 1; ``first`` and ``next`` are sequence numbers; ``size`` in bytes.
    """

    epoch: str
    generation: int
    first: int
    next: int
    size: int
    changed_at_ns: int
    tail_hash: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A stored record: its sequence number, the offset behind its last byte, its exact bytes."""

    seq: int
    end: int
    line: bytes


class Store(Protocol):
    """Durable rows and logs. `commit` is the only write. Every method may be called concurrently.

    Reads show committed data only. Raises EIO (damaged), ENOSPC (full), ENOTCONN (closed) beside what is named.
    """

    async def commit(self, unit: Unit) -> Committed:
        """Apply all of *unit* durably, or none of it and raise the failed change's errno.

        Cancelling the caller does not undo a unit already handed over.
        """
        ...

    async def get(self, table: type[R], *key: str) -> R | None:
        """The row with the full key *key*, or None."""
        ...

    async def scan(
        self, table: type[R], *prefix: str, by: str = "", after: object = None, limit: int = -1, newest: bool = False
    ) -> Sequence[R]:
        """Rows whose key starts with *prefix*, ordered by the rest of the key, or by the index column *by*.

        Only rows behind *after* (the next key column's value, or *by*'s); *newest* reverses the order (then
        *after* means before); at most *limit* rows (-1: all).
        """
        ...

    async def count(self, table: type[Row], *prefix: str) -> int:
        """How many rows have a key that starts with *prefix*."""
        ...

    async def total(self, table: type[Row], column: str, *prefix: str) -> int:
        """The sum of the integer *column* over the rows below *prefix*."""
        ...

    async def agents(self, table: type[Row]) -> Sequence[str]:
        """The distinct ``agent`` values of *table*, sorted."""
        ...

    async def log(self, agent: str, log: str) -> Sequence[LogHead]:
        """The generations held, oldest first (at most two); empty when nothing was ever appended."""
        ...

    async def lines(
        self, agent: str, log: str, generation: int, *, seq: int = 0, offset: int = 0, limit: int = 256
    ) -> Sequence[Line]:
        """Records of one generation with a number >= *seq* and an end behind *offset*, in order, at most *limit*."""
        ...

    async def usage(self) -> tuple[int, int]:
        """Bytes used and bytes free."""
        ...

    async def check(self) -> Sequence[str]:
        """Every fault found by a full check, one sentence each; empty when sound (fsck)."""
        ...

    async def aclose(self) -> None:
        """Finish what was handed over, then close. Idempotent."""
        ...


@dataclass(frozen=True, slots=True, order=True)
class Charge:
    """One account that pays: of *agent* (empty for a token's), in *period*, up to *limit_usd* (None: no limit)."""

    agent: str
    account: str
    period: str
    limit_usd: int | None = None


@dataclass(frozen=True, slots=True)
class Sums:
    """What stands in one account in one period, micro-USD."""

    reserved_usd: int = 0
    spent_usd: int = 0

    def remaining(self, limit_usd: int) -> int:
        """What may still be reserved: ``limit - reserved - spent``; below 0 where a limit was lowered."""
        return limit_usd - self.reserved_usd - self.spent_usd


class Ledger(Protocol):
    """Money on accounts, write-ahead: no method returns before its change is durable. Safe for concurrent use.

    *also* is committed with the money or not at all; its failures are raised as they are.
    """

    async def reserve(
        self, agent: str, hold: str, amount_usd: int, charges: Sequence[Charge], *also: Change
    ) -> Committed:
        """Hold *amount_usd* on every one of *charges* under the id *hold*. EDQUOT past a limit, EEXIST for the id."""
        ...

    async def settle(self, agent: str, hold: str, cost_usd: int, *also: Change) -> Committed:
        """Turn the hold into *cost_usd* spent and release the rest. ENOENT: no such hold; EINVAL: over the hold."""
        ...

    async def usage(self, charge: Charge) -> Sums:
        """What stands in an account now."""
        ...


@dataclass(frozen=True, slots=True)
class Key:
    """Which secret key: that of the seed at ``number``, or where there is one ``imported``, as the keeper sealed it.

    ``pubkey`` (32 bytes) must be given along with ``imported``, and is not asked for otherwise.
    """

    number: int
    pubkey: bytes = b""
    imported: bytes = b""


class Signer(Protocol):
    """Secret keys that can be used and never read: BIP-340 signatures, NIP-44 encryption, sealing.

    Public keys are 32 bytes (x only), digests 32, signatures 64; text is UTF-8. Safe for concurrent use.
    Raises ENOTCONN when the keeper of the keys is away, EINVAL for what has another form.
    """

    async def pubkey(self, key: Key) -> bytes:
        """The public half of a key."""
        ...

    async def sign(self, key: Key, digest: bytes) -> bytes:
        """A BIP-340 signature of *digest* with fresh randomness."""
        ...

    async def encrypt(self, key: Key, peer: bytes, text: str) -> str:
        """*text* for the public key *peer* (NIP-44, version 2)."""
        ...

    async def decrypt(self, key: Key, peer: bytes, payload: str) -> str:
        """What *peer* encrypted for this key, in the form of NIP-44 or, from older peers, of NIP-04."""
        ...

    async def seal(self, name: str, data: bytes) -> bytes:
        """*data* so that only this keeper can open it, and only under the same *name*."""
        ...

    async def unseal(self, name: str, sealed: bytes) -> bytes:
        """The reverse of `seal`. EINVAL when it was tampered with or sealed under another name or by another.

        EPERM for the name of an imported key: those are used, and opened for nobody.
        """
        ...

    def verify(self, pubkey: bytes, digest: bytes, signature: bytes) -> bool:
        """Whether *signature* of *digest* is *pubkey*'s; False for malformed input too. Asks no keeper."""
        ...
