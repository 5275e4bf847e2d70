"""logs: what an agent does and did. Every line is one JSON object with seq, at, agent and type.

``trace`` (S) is the live ring in memory: tick_start tick_end tool_start tool_done job message_in message_out lifecycle
log error, committed or not; ``recent`` (R) its last 100 lines. ``ticks`` (S) has one line a finished attempt.
``trajectory`` (S) holds committed records only, each with the SHA-256 of the line before it (``prev``); ``verify`` (R)
checks that chain now.
"""

from __future__ import annotations

from hashlib import sha256

from agentfs.record import Log
from agentfs.services import Scope, Service, document
from agentfs.tree import At, File, Stream, Tree

_RECENT = 100


class Logs:
    """The functions behind the table of one agent's logs."""

    def __init__(self, scope: Scope) -> None:
        self._logs, self._agent = scope.engine.core.logs, scope.agent

    async def trace(self, at: At) -> Log:
        """The live ring."""
        return self._logs.ring(self._agent)

    async def ticks(self, at: At) -> Log:
        """Finished attempts."""
        return self._logs.durable(self._agent, "ticks")

    async def trajectory(self, at: At) -> Log:
        """Committed records."""
        return self._logs.durable(self._agent, "trajectory")

    async def recent(self, at: At) -> bytes:
        """The last lines of the trace."""
        ring = self._logs.ring(self._agent)
        first = (await ring.heads())[-1].next - _RECENT
        lines = [line for head in await ring.heads() for line in await ring.lines(head.generation, seq=first)]
        return b"".join(line.line for line in lines)

    async def verify(self, at: At) -> bytes:
        """Walk the chain: {ok, records} or, where it breaks, {ok: false, records, broken_at}."""
        log, prev, count = self._logs.durable(self._agent, "trajectory"), "", 0
        for head in await log.heads():
            seq = head.first
            while lines := await log.lines(head.generation, seq=seq):
                for line in lines:
                    if prev and f'"prev":"{prev}"'.encode() not in line.line[:128]:
                        return document({"ok": False, "records": count, "broken_at": line.seq})
                    prev, count = sha256(line.line).hexdigest(), count + 1
                seq = lines[-1].seq + 1
        return document({"ok": True, "records": count, "tail": prev or None})


def logs(scope: Scope) -> Tree:
    """The directory ``logs/`` of one agent."""
    table = Logs(scope)
    return scope.tree(
        Stream(name="trace", log=table.trace),
        File(name="recent", read=table.recent),
        Stream(name="ticks", log=table.ticks),
        Stream(name="trajectory", log=table.trajectory),
        File(name="verify", read=table.verify),
    )


SERVICE = Service("logs", "logs", logs)
