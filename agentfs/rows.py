"""The durable tables: one frozen struct a table, the single source of the schema of every store.

A row is a plain record of columns (str, int, bytes, bool or None); documents are JSON text.
Behaviour lives in the engine.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table ``TABLE`` with primary key ``KEY``; ``seq`` 0 is replaced by the writer on insert.

    ``INDEX`` names the columns (after the ``agent`` prefix) that `Store.scan` may order by.
    """

    TABLE: ClassVar[str]
    KEY: ClassVar[tuple[str, ...]]
    INDEX: ClassVar[tuple[str, ...]] = ()


class AgentRow(Row, frozen=True, kw_only=True):
    """An agent's identity, configuration (JSON), flags, and ``ns``: its mount table if the operator wrote one."""

    TABLE = "agents"
    KEY = ("id",)
    id: str
    created_at_ns: int
    config: str
    config_at_ns: int
    is_paused: bool = False
    terminated_at_ns: int | None = None
    ns: str = ""
    ns_at_ns: int = 0


class StateRow(Row, frozen=True, kw_only=True):
    """What ticks change: the program's state (JSON), its schema version and the tick counters."""

    TABLE = "states"
    KEY = ("agent",)
    agent: str
    state: str = "null"
    schema: int = 0
    tick_count: int = 0
    last_tick_at_ns: int = 0
    last_tick_cause: str = ""
    failures: int = 0
    version: int = 0


class EnvelopeRow(Row, frozen=True, kw_only=True):
    """A pending envelope in acceptance order (``seq``); ``body`` is the envelope as JSON, ``kind`` the trigger's.

    ``purses``: the token budgets (JSON pairs of id and limit) that pay for its ticks beside the agent's own.
    """

    TABLE = "inbox"
    KEY = ("agent", "id")
    INDEX = ("seq",)
    agent: str
    id: str
    seq: int = 0
    kind: str = "message"
    source: str
    priority: int = 0
    attempts: int = 0
    not_before_ns: int = 0
    accepted_at_ns: int
    expires_at_ns: int | None = None
    body: str
    purses: str = ""


class ReceiptRow(Row, frozen=True, kw_only=True):
    """That an envelope id was accepted, with the hash of what came: outlives the envelope, for idempotency."""

    TABLE = "receipts"
    KEY = ("agent", "id")
    INDEX = ("seq",)
    agent: str
    id: str
    seq: int = 0
    hash: str
    accepted_at_ns: int


class SeenRow(Row, frozen=True, kw_only=True):
    """A key a program marked as seen."""

    TABLE = "seen"
    KEY = ("agent", "key")
    INDEX = ("seq",)
    agent: str
    key: str
    seq: int = 0
    at_ns: int


class DeadRow(Row, frozen=True, kw_only=True):
    """A dead letter: the envelope as JSON and why it is here."""

    TABLE = "deadletter"
    KEY = ("agent", "id")
    INDEX = ("seq",)
    agent: str
    id: str
    seq: int = 0
    kind: str = "message"
    source: str
    priority: int = 0
    reason: str
    attempts: int
    at_ns: int
    body: str
    purses: str = ""


class DeliveryRow(Row, frozen=True, kw_only=True):
    """An emitted envelope that waits to be delivered to another agent (the transactional outbox)."""

    TABLE = "deliveries"
    KEY = ("agent", "id")
    INDEX = ("seq",)
    agent: str
    id: str
    seq: int = 0
    to: str
    attempts: int = 0
    not_before_ns: int = 0
    at_ns: int
    body: str
    purses: str = ""


class AlarmRow(Row, frozen=True, kw_only=True):
    """A scheduled trigger: ``spec`` is the document as written (JSON), ``next_at_ns`` None when nothing is left.

    ``purses``: as in `EnvelopeRow`, of the bearer who wrote it.
    """

    TABLE = "alarms"
    KEY = ("agent", "name")
    agent: str
    name: str
    spec: str
    next_at_ns: int | None
    last_at_ns: int | None = None
    missed: int = 0
    changed_at_ns: int
    purses: str = ""


class KvRow(Row, frozen=True, kw_only=True):
    """One durable value of an agent's own."""

    TABLE = "kv"
    KEY = ("agent", "key")
    agent: str
    key: str
    value: bytes
    size: int
    changed_at_ns: int


class AccountRow(Row, frozen=True, kw_only=True):
    """What was reserved and spent from one account in one period, micro-USD; ``agent`` is empty for a token's."""

    TABLE = "accounts"
    KEY = ("agent", "account", "period")
    agent: str
    account: str
    period: str
    reserved_usd: int = 0
    spent_usd: int = 0
    version: int = 0
    changed_at_ns: int


class HoldRow(Row, frozen=True, kw_only=True):
    """One open reservation: ``amount_usd`` is held on each of ``charges`` (JSON) until it is settled or released."""

    TABLE = "holds"
    KEY = ("agent", "id")
    agent: str
    id: str
    amount_usd: int
    charges: str
    at_ns: int


class EffectRow(Row, frozen=True, kw_only=True):
    """An entry of the idempotency journal: the intent, and once it is known the outcome (``receipt`` is JSON)."""

    TABLE = "effects"
    KEY = ("agent", "id")
    agent: str
    id: str
    provider: str
    key: str
    hash: str
    state: str = "open"
    source: str
    envelope: str = ""
    reserved_usd: int = 0
    spent_usd: int = 0
    overrun_usd: int = 0
    receipt: str = "null"
    error: str = ""
    at_ns: int
    deadline_ns: int | None = None
    done_at_ns: int | None = None
    expires_ns: int | None = None
    version: int = 0


class ApprovalRow(Row, frozen=True, kw_only=True):
    """A request to an approver, with what was decided on it.

    ``kind``: ``spend`` is one over the approval threshold, of which ``id`` is the hash of who, where and what;
    ``confirm`` a use that waits, with an id of its own.
    """

    TABLE = "approvals"
    KEY = ("agent", "id")
    agent: str
    id: str
    source: str
    path: str
    request: str
    cost_usd: int
    kind: str = "spend"
    approvers: str = "operator"
    state: str = "pending"
    by: str = ""
    at_ns: int
    expires_ns: int
    decided_at_ns: int | None = None
    version: int = 0


class TokenRow(Row, frozen=True, kw_only=True):
    """A capability token that was issued or revoked (never the token itself); ``agent`` is empty for the operator's."""

    TABLE = "tokens"
    KEY = ("agent", "id")
    agent: str
    id: str
    about: str = "{}"
    at_ns: int
    expires_ns: int | None = None
    revoked_at_ns: int | None = None


class KeyRow(Row, frozen=True, kw_only=True):
    """A key's number, given once and to one agent: never reused, also when that agent is gone."""

    TABLE = "keys"
    KEY = ("number",)
    number: str
    owner: str


class IdentityRow(Row, frozen=True, kw_only=True):
    """A public key (hex) of an agent; ``until_ns`` is set once another has taken its place.

    ``imported`` is its secret key as the keeper sealed it, empty for one of the seed's. ``handover`` is the statement
    by which the key before this one announced it and ``signature`` (hex) that one's of it.
    """

    TABLE = "identities"
    KEY = ("agent", "number")
    agent: str
    number: str
    pubkey: str
    since_ns: int
    until_ns: int | None = None
    imported: bytes = b""
    handover: str = ""
    signature: str = ""


class SecretRow(Row, frozen=True, kw_only=True):
    """A secret of an agent's, sealed by the keeper."""

    TABLE = "secrets"
    KEY = ("agent", "name")
    agent: str
    name: str
    sealed: bytes
    changed_at_ns: int


class JobRow(Row, frozen=True, kw_only=True):
    """One request to a model (``request``: JSON, without its caller's key); its journal entry has the same id.

    ``state`` is pending, running, streaming, complete, failed or cancelled; ``output`` JSON, "" before the end;
    ``error`` an errno's name and ``reason`` the words. ``usage`` is JSON, "" when the provider reported none.
    ``has_key``: its caller brought a key, which is stored nowhere.
    """

    TABLE = "jobs"
    KEY = ("agent", "id")
    agent: str
    id: str
    request: str
    state: str
    source: str
    at_ns: int
    reserved_usd: int
    has_key: bool = False
    provider: str = ""
    model: str = ""
    output: str = ""
    finish_reason: str = ""
    usage: str = ""
    error: str = ""
    reason: str = ""
    cost_usd: int = 0
    started_ns: int | None = None
    first_ns: int | None = None
    done_ns: int | None = None
    expires_ns: int | None = None
    version: int = 1


class DocumentRow(Row, frozen=True, kw_only=True):
    """A document that the operator keeps for a service: of *agent*, or for "" of the whole runtime."""

    TABLE = "documents"
    KEY = ("agent", "name")
    agent: str
    name: str
    text: str
    changed_at_ns: int


class GrantRow(Row, frozen=True, kw_only=True):
    """What the holder of a key may do in an agent's namespace: ``allow`` is a JSON list of ``PATH:OP+OP``."""

    TABLE = "grants"
    KEY = ("agent", "pubkey")
    agent: str
    pubkey: str
    allow: str
    expires_ns: int | None = None
    note: str = ""
    changed_at_ns: int


class PeerRow(Row, frozen=True, kw_only=True):
    """A key whose clock is ahead of ours: up to ``ahead_ns`` its signed requests were let in before they were due."""

    TABLE = "peers"
    KEY = ("pubkey",)
    pubkey: str
    ahead_ns: int


class ConversationRow(Row, frozen=True, kw_only=True):
    """That an agent keeps a conversation of this name; its records are in a log, ``seq`` orders by the last change."""

    TABLE = "conversations"
    KEY = ("agent", "name")
    INDEX = ("seq",)
    agent: str
    name: str
    seq: int = 0
    changed_at_ns: int


TABLES: tuple[type[Row], ...] = (
    AgentRow, StateRow, EnvelopeRow, ReceiptRow, SeenRow, DeadRow, DeliveryRow, AlarmRow, KvRow, AccountRow, HoldRow,
    EffectRow, ApprovalRow, TokenRow, KeyRow, IdentityRow, SecretRow, GrantRow, PeerRow, JobRow, DocumentRow,
    ConversationRow,
)  # fmt: skip
