"""`House`: the tree that every face serves: ``/agents /views /runtime`` for the operator, an agent's own for an agent.

It mounts services; it starts nothing and knows no provider and no face.
"""

from __future__ import annotations

import copy
import errno
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from agentfs.engine.engine import Engine
from agentfs.engine.settings import Settings
from agentfs.errors import error
from agentfs.namespace import Namespace
from agentfs.service import FileHandle, FileService
from agentfs.services import Scope, Service, discover
from agentfs.services.agents import Agents, Register
from agentfs.services.runtime import runtime
from agentfs.tree import Errors
from agentfs.types import NO_WANT, Bind, Mode, Path, Principal, Want
from agentfs.views import View

_SPACES_HELD = 256


class Spaces:
    """The namespaces of agents, built when they are first walked, the most recent ones kept."""

    def __init__(self, engine: Engine, services: Sequence[Service]) -> None:
        self._engine, self._services = engine, services
        self._held: OrderedDict[str, Namespace] = OrderedDict()

    def of(self, agent: str) -> Namespace:
        """The namespace of *agent*, every service mounted."""
        space = self._held.get(agent)
        if space is None:
            space = self._held[agent] = self._build(agent)
            if len(self._held) > _SPACES_HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(agent)
        return space

    def _build(self, agent: str) -> Namespace:
        def report(path: Path, exc: OSError) -> None:
            self._engine.note_error(agent, path, exc)

        space, errors = Namespace(), Errors(report)
        for service in self._services:
            scope = Scope(self._engine, agent, errors, space)
            space.mount(service.build(scope), Path(service.at), Bind.AFTER, name=service.name)
        return space


class Door:
    """Shut when a drain begins: every open is then refused."""

    is_shut = False


class House(View):
    """The operator's tree; `attach` gives an agent's principal its own namespace instead.

    Once its ``door`` is shut, opens are refused with ENOTCONN: the first step of a drain.
    """

    def __init__(self, tree: FileService, spaces: Spaces) -> None:
        super().__init__(tree)
        self._tree, self._spaces, self.door = tree, spaces, Door()

    def attach(self, principal: Principal) -> Self:
        room = copy.copy(self)
        tree = self._tree if principal.is_operator else self._spaces.of(principal.name)
        room._service = tree.attach(principal)
        return room

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        self._check(path)
        return await super().open(path, mode, want=want)

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        self._check(path)
        return await super().create(path, mode, want=want)

    def _check(self, path: Path) -> None:
        if self.door.is_shut:
            raise error(errno.ENOTCONN, path)


def build(
    engine: Engine, default: Settings, check: Callable[[Settings], None], config: Mapping[str, Any]
) -> tuple[House, Spaces]:
    """The house over *engine*; *default* is for ``mkdir``, *check* refuses programs that cannot run."""
    spaces = Spaces(engine, discover())
    register, root = Register(engine, default, check), Namespace()
    root.mount(Agents(register, spaces.of, as_agent=False), Path("agents"), name="agents")
    root.mount(Agents(register, spaces.of, as_agent=True), Path("views"), name="views")
    root.mount(runtime(engine, config), Path("runtime"), name="runtime")
    return House(root, spaces), spaces
