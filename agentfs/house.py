"""`House`: the tree that every face serves: ``/agents /views /runtime`` for the operator, an agent's own for an agent.

It mounts services; it starts nothing and knows no provider and no face.
"""

from __future__ import annotations

import copy
import errno
from collections.abc import Callable, Mapping
from typing import Any, Self

from agentfs.engine.engine import Engine
from agentfs.engine.settings import Settings
from agentfs.errors import error
from agentfs.namespace import Namespace
from agentfs.service import FileHandle, FileService
from agentfs.services import discover
from agentfs.services.agents import Agents, Register, seen_as
from agentfs.services.runtime import runtime
from agentfs.spaces import Mounts, Spaces
from agentfs.types import NO_WANT, Mode, Path, Principal, Want
from agentfs.views import View


class Door:
    """Shut when a drain begins: every open is then refused."""

    is_shut = False


class House(View):
    """The operator's tree; `attach` gives an agent its own namespace instead, and a peer what *doors* show it.

    Once its ``door`` is shut, opens are refused with ENOTCONN: the first step of a drain.
    """

    def __init__(self, tree: FileService, doors: FileService, spaces: Spaces) -> None:
        super().__init__(tree)
        self._tree, self._doors, self._spaces, self.door = tree, doors, spaces, Door()

    def attach(self, principal: Principal) -> Self:
        room = copy.copy(self)
        if principal.role == "peer":
            room._service = self._spaces.guarded(self._doors.attach(principal), principal, {"agents"}.__contains__)
        elif not principal.is_operator:
            room._service = self._spaces.view(principal)
        elif principal.caveats:
            room._service = self._spaces.guarded(self._tree.attach(principal), principal)
        else:
            room._service = self._tree.attach(principal)
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
    mounts = Mounts(discover())
    spaces = Spaces(engine, mounts)
    engine.adopt(mounts.grant, spaces.remounted)
    register, root, doors = Register(engine, default, check), Namespace(), Namespace()

    def own(agent: str, principal: Principal) -> FileService:
        return spaces.view(seen_as(principal, agent))

    root.mount(Agents(register.table(), spaces.office, engine.core.versions), Path("agents"), name="agents")
    root.mount(Agents(register.views(), own, engine.core.versions), Path("views"), name="views")
    root.mount(runtime(engine, config), Path("runtime"), name="runtime")
    doors.mount(Agents(register.doors(), spaces.door, engine.core.versions), Path("agents"), name="agents")
    return House(root, doors, spaces), spaces
