"""The rows of money: accounts, holds, effects outside and approvals."""

from __future__ import annotations

from agentfs.rows.row import Row


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
