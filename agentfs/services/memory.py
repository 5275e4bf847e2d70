"""memory: what an agent keeps of its conversations. A program appends to it, in the one commit of its tick.

``memory/conversations/<name>`` (S) is one conversation, mostly with one sender: a JSON object a line, with at,
envelope_id and what the program put there: of an ``llm`` program role, content, tool_calls and the like. Removing the
file forgets the conversation. The 1000 that had a word last are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentfs.engine import memory as kept
from agentfs.record import Log
from agentfs.rows import ConversationRow
from agentfs.services import Scope, Service
from agentfs.tree import At, Dir, Entry, Info, Stream, Tree


class Memory:
    """The functions behind the table of one agent's memory."""

    def __init__(self, scope: Scope) -> None:
        self._core, self._agent = scope.engine.core, scope.agent

    async def log(self, at: At) -> Log:
        """One conversation."""
        return self._core.logs.durable(self._agent, kept.log_of(at["name"]))

    async def has(self, at: At, key: str) -> bool:
        """Whether there is such a conversation."""
        return await self._core.store.get(ConversationRow, self._agent, key) is not None

    async def keys(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        """Conversations by name, in pages."""
        rows = await self._core.store.scan(ConversationRow, self._agent, after=after or None, limit=limit)
        return [Entry(row.name, Info(row.changed_at_ns, 0, row.changed_at_ns)) for row in rows]

    async def forget(self, at: At) -> None:
        """Remove one."""
        await kept.forget(self._core, self._agent, at["name"])


def memory(scope: Scope) -> Tree:
    """The directory ``memory/`` of one agent."""
    m = Memory(scope)
    conversation = Stream(name="{name}", log=m.log, remove=m.forget)
    return scope.tree(Dir(name="conversations", each=conversation, has=m.has, keys=m.keys))


SERVICE = Service("memory", "memory", memory)
