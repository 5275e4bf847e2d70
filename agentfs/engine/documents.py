"""`Documents`: what the operator writes about a service, of one agent or of the whole runtime."""

from __future__ import annotations

from agentfs.engine.core import Core
from agentfs.ports import Expect, Put
from agentfs.rows import DocumentRow


class Documents:
    """By agent ("" the whole runtime) and name; what they say is for who reads them to check. Holds no state."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def row(self, agent: str, name: str) -> DocumentRow | None:
        """One document, None where the operator wrote none."""
        return await self._core.store.get(DocumentRow, agent, name)

    async def put(self, agent: str, name: str, text: bytes, match: int | None) -> None:
        """Replace a document. ESTALE: *match* is not its version."""
        old = await self.row(agent, name)
        at_ns = max(self._core.clock.now_ns(), old.changed_at_ns + 1 if old else 0)
        row = DocumentRow(agent=agent, name=name, text=text.decode(), changed_at_ns=at_ns)
        same = [Expect(DocumentRow, (agent, name), "changed_at_ns", match)] if match is not None else []
        await self._core.commit(*same, Put(row))
