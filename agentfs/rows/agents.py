"""The rows of agents: what they are, their mail, alarms, values and conversations."""

from __future__ import annotations

from agentfs.rows.row import Row


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


class ConversationRow(Row, frozen=True, kw_only=True):
    """That an agent keeps a conversation of this name; its records are in a log, ``seq`` orders by the last change."""

    TABLE = "conversations"
    KEY = ("agent", "name")
    INDEX = ("seq",)
    agent: str
    name: str
    seq: int = 0
    changed_at_ns: int
