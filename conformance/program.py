"""The agent that every driver's runtime runs: it answers each message with the message. Nothing else happens in it."""

from __future__ import annotations

from typing import Any

from agentfs.engine.agent import Agent
from agentfs.engine.context import AgentContext
from agentfs.engine.trigger import Trigger


class Echo(Agent[dict[str, Any]]):
    """Replies with what it was sent and counts it."""

    async def on_trigger(self, ctx: AgentContext, trigger: Trigger) -> None:
        self.state["n"] = self.state.get("n", 0) + 1
        ctx.reply(trigger.payload)
