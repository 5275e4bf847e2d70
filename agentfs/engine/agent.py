"""`Agent`, the class a trusted inline program derives from, and `Program`, what the engine asks of any program.

Typed state, hooks, migration; nothing here touches a store.
"""

from __future__ import annotations

import copy
import errno
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import msgspec

from agentfs.engine.context import AgentContext
from agentfs.engine.trigger import Trigger
from agentfs.errors import error

S = TypeVar("S")


class Program(Protocol):
    """A loaded program of one agent, from wake to hibernation. Its calls never overlap."""

    @property
    def hooks(self) -> frozenset[str]:
        """Which of ``on_sleep``, ``on_error`` and ``on_terminate`` it wants."""
        ...

    async def run(self, ctx: AgentContext) -> None:
        """One tick: effects go to *ctx*. Any exception rolls the tick back."""
        ...

    async def hook(self, name: str, ctx: AgentContext, error_text: str = "") -> None:
        """Run one of `hooks`; effects of ``on_error`` are dropped."""
        ...


class Agent(Generic[S]):
    """Derive, set ``State`` to a type msgspec can encode, override hooks; ticks commit ``self.state``."""

    State: ClassVar[Any] = dict
    SCHEMA: ClassVar[int] = 1
    state: S

    def migrate(self, state: Any, schema: int) -> Any:
        """*state* as JSON values of the older version *schema*, in the form of ``SCHEMA``; refuses by default."""
        raise error(errno.EINVAL, detail=f"state: version {schema}, and {type(self).__name__} migrates none")

    async def on_create(self, ctx: AgentContext) -> None:
        """Once, in the agent's first tick, before anything else."""

    async def on_wake(self, ctx: AgentContext) -> None:
        """In the first tick after hibernation."""

    async def on_trigger(self, ctx: AgentContext, trigger: Trigger) -> None:
        """The tick itself."""

    async def on_sleep(self, ctx: AgentContext) -> None:
        """Before the agent hibernates; its effects are committed."""

    async def on_error(self, ctx: AgentContext, error_text: str) -> None:
        """After a failed tick; effects are dropped."""

    async def on_terminate(self, ctx: AgentContext) -> None:
        """When the agent is terminated; its effects are committed."""

    def load_state(self, raw: Any, schema: int) -> None:
        """Set ``self.state`` from its JSON values. EINVAL when a version cannot be migrated or the shape is wrong."""
        if raw is None:
            self.state = self.State()
            return
        if schema > self.SCHEMA:
            raise error(errno.EINVAL, detail=f"state: version {schema} is newer than {self.SCHEMA}")
        raw = copy.deepcopy(raw)  # what it holds stays as it was, so that a change can be told from it
        if schema < self.SCHEMA:
            raw = self.migrate(raw, schema)
        try:
            self.state = msgspec.convert(raw, self.State)
        except msgspec.ValidationError as exc:
            raise error(errno.EINVAL, detail=f"state: {exc}") from exc
