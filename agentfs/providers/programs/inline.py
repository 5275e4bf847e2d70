"""`Inline`: runs an `Agent` subclass in the runtime; for trusted code only: what does not yield holds everything up."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import msgspec

from agentfs.engine.agent import Agent
from agentfs.engine.context import AgentContext
from agentfs.engine.settings import InlineProgram
from agentfs.errors import error

_HOOKS = ("on_sleep", "on_error", "on_terminate")


def load_class(ref: str) -> type[Agent[object]]:
    """The class *ref* names (``module:Class`` or ``/path/file.py:Class``). EINVAL when there is none."""
    where, _, name = ref.rpartition(":")
    try:
        module = _load_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
        found = getattr(module, name)
    except (Exception, SystemExit) as exc:
        raise error(errno.EINVAL, detail=f"program.ref: {ref!r}: {type(exc).__name__}: {exc}") from exc
    if not (isinstance(found, type) and issubclass(found, Agent)):
        raise error(errno.EINVAL, detail=f"program.ref: {ref!r} is not a subclass of agentfs.engine.agent.Agent")
    return found


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"agentfs_program_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Inline:
    """One agent's instance of its class, from wake to hibernation."""

    def __init__(self, program: InlineProgram) -> None:
        self._agent = load_class(program.ref)()
        cls = type(self._agent)
        self._hooks = frozenset(name for name in _HOOKS if getattr(cls, name) is not getattr(Agent, name))

    @property
    def hooks(self) -> frozenset[str]:
        """The hooks the class overrides."""
        return self._hooks

    async def run(self, ctx: AgentContext) -> None:
        """Load the committed state, call the hooks that are due and the trigger's, hand the state over."""
        agent = self._agent
        agent.load_state(ctx.state, ctx.schema)
        if ctx.is_first:
            await agent.on_create(ctx)
        if ctx.is_woken:
            await agent.on_wake(ctx)
        await agent.on_trigger(ctx, ctx.trigger)
        self._save(ctx)

    async def hook(self, name: str, ctx: AgentContext, error_text: str = "") -> None:
        """Run one hook on the committed state."""
        self._agent.load_state(ctx.state, ctx.schema)
        if name == "on_error":
            await self._agent.on_error(ctx, error_text)
            return
        await (self._agent.on_sleep(ctx) if name == "on_sleep" else self._agent.on_terminate(ctx))
        self._save(ctx)

    def _save(self, ctx: AgentContext) -> None:
        state = msgspec.to_builtins(self._agent.state)
        if state != ctx.state or ctx.schema != self._agent.SCHEMA:
            ctx.set_state(state, self._agent.SCHEMA)
