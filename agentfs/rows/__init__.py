"""The durable tables: one frozen struct a table, the single source of the schema of every store.

A row is a plain record of columns (str, int, bytes, bool or None); documents are JSON text.
Behaviour lives in the engine.
"""

from __future__ import annotations

from agentfs.rows.access import GrantRow, IdentityRow, KeyRow, PeerRow, RegistryRow, SecretRow, TokenRow
from agentfs.rows.agents import (
    AgentRow,
    AlarmRow,
    ConversationRow,
    DeadRow,
    DeliveryRow,
    EnvelopeRow,
    KvRow,
    ReceiptRow,
    SeenRow,
    StateRow,
)
from agentfs.rows.money import AccountRow, ApprovalRow, EffectRow, HoldRow
from agentfs.rows.row import Row
from agentfs.rows.work import DocumentRow, ExecRow, JobRow, SandboxRow

TABLES: tuple[type[Row], ...] = (
    AgentRow, StateRow, EnvelopeRow, ReceiptRow, SeenRow, DeadRow, DeliveryRow, AlarmRow, KvRow, AccountRow, HoldRow,
    EffectRow, ApprovalRow, TokenRow, KeyRow, IdentityRow, SecretRow, GrantRow, PeerRow, JobRow, DocumentRow,
    ConversationRow, SandboxRow, ExecRow, RegistryRow,
)  # fmt: skip

__all__ = [
    "TABLES",
    "AccountRow",
    "AgentRow",
    "AlarmRow",
    "ApprovalRow",
    "ConversationRow",
    "DeadRow",
    "DeliveryRow",
    "DocumentRow",
    "EffectRow",
    "EnvelopeRow",
    "ExecRow",
    "GrantRow",
    "HoldRow",
    "IdentityRow",
    "JobRow",
    "KeyRow",
    "KvRow",
    "PeerRow",
    "ReceiptRow",
    "RegistryRow",
    "Row",
    "SandboxRow",
    "SecretRow",
    "SeenRow",
    "StateRow",
    "TokenRow",
]
