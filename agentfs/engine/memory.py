"""Conversations that an agent keeps: a log of records for each, and a row by which it is found.

What is in a record is the program's business; files over them are in `agentfs.services.memory`.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import msgspec

from agentfs.engine.core import Core
from agentfs.engine.effects import Remember
from agentfs.errors import error
from agentfs.ports import Append, Change, Delete, DropLogs, Expect, Put
from agentfs.rows import ConversationRow
from agentfs.types import rfc3339


def log_of(conversation: str) -> str:
    """The name of a conversation's record log."""
    return f"memory-{conversation}"


async def remembered(core: Core, envelope: str, agent: str, effect: Remember) -> Sequence[Change]:
    """The changes that append the records of *effect*; past the limit the oldest conversation goes. EFBIG."""
    name, now_ns = effect.conversation, core.clock.now_ns()
    head = {"at": rfc3339(now_ns), "envelope_id": envelope}
    docs = [msgspec.json.encode({**head, **record}) for record in effect.records]
    if any(len(doc) > core.limits.document_bytes for doc in docs):
        raise error(errno.EFBIG, detail=f"remember: a record over {core.limits.document_bytes} bytes")
    gone = await _oldest(core, agent) if await core.store.get(ConversationRow, agent, name) is None else ()
    row = ConversationRow(agent=agent, name=name, changed_at_ns=now_ns)
    return [*gone, Put(row), *(Append(agent, log_of(name), doc, limit=core.limits.log_bytes) for doc in docs)]


async def _oldest(core: Core, agent: str) -> Sequence[Change]:
    """The changes that forget what has to go before one more fits."""
    over = await core.store.count(ConversationRow, agent) + 1 - core.limits.conversations
    rows = await core.store.scan(ConversationRow, agent, by="seq", limit=over) if over > 0 else ()
    return [change for row in rows for change in _dropped(row)]


def _dropped(row: ConversationRow) -> Sequence[Change]:
    return Delete(ConversationRow, (row.agent, row.name)), DropLogs(row.agent, log_of(row.name))


async def forget(core: Core, agent: str, conversation: str) -> None:
    """Remove a conversation with all its records. ENOENT."""
    row = await core.store.get(ConversationRow, agent, conversation)
    if row is None:
        raise error(errno.ENOENT, detail=f"no conversation {conversation!r}")
    still = Expect(ConversationRow, (agent, conversation), errno=errno.ENOENT)
    await core.commit(still, *_dropped(row))
    core.logs.finish(agent, log_of(conversation))
