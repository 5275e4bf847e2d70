"""A provider of sandboxes in this process, for tests of the engine: commands are words that it knows."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import trio
from dictfs import DictService

from agentfs.containers.documents import Limits, Repo
from agentfs.containers.port import Command, Exit, Happening, Output, Spec, Used
from agentfs.errors import error
from agentfs.service import FileService


class Cells:
    """``wait`` never ends, ``exit N`` ends so, ``bug`` raises, anything else says itself.

    ``there``: its sandboxes, and whether anything may run in them.
    """

    capabilities = frozenset({"memory", "network"})

    def __init__(self) -> None:
        self.there: dict[str, bool] = {}
        self.ran: list[str] = []
        self.quieted: list[str] = []
        self.is_stuck = self.bug = False
        self.failure: OSError | None = None
        self.is_away = False  # when asked to end anything

    async def health(self) -> str:
        return ""

    async def images(self) -> Sequence[str]:
        return []

    async def make(self, spec: Spec) -> None:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        if spec.id in self.there:
            raise error(errno.EEXIST, detail=f"session {spec.id}")
        self.there[spec.id] = True

    async def run(self, spec: Spec, command: Command) -> AsyncGenerator[Happening, None]:
        await trio.lowlevel.checkpoint()
        if not self.there.get(spec.id):
            raise error(errno.ENOENT, detail="no sandbox")
        self.ran.append(line := command.argv[-1])
        if line == "bug":
            raise ZeroDivisionError
        yield Output("stdout", f"{line}\n".encode())
        if line == "wait":
            await trio.sleep_forever()
        yield Exit(int(line.removeprefix("exit ")) if line.startswith("exit ") else 0)

    async def clone(self, spec: Spec, repo: Repo, secret: str) -> None:
        raise error(errno.EOPNOTSUPP, detail="repo")

    async def quiet(self, spec: Spec) -> None:
        await trio.lowlevel.checkpoint()
        self.quieted.append(spec.id)
        if spec.id not in self.there:
            raise error(errno.ENOENT, detail="no sandbox")

    async def end(self, id: str) -> None:
        await trio.lowlevel.checkpoint()
        if self.is_away:
            raise error(errno.ENOTCONN, detail="away")
        if id in self.there:
            self.there[id] = False

    async def found(self) -> Sequence[str]:
        if self.bug:
            raise ZeroDivisionError
        if self.is_stuck:
            await trio.sleep_forever()
        return list(self.there)

    async def remove(self, id: str) -> None:
        await trio.lowlevel.checkpoint()
        self.there.pop(id, None)

    def files(self, id: str, limits: Limits) -> FileService:
        return DictService()

    async def used(self, id: str) -> Used:
        if id not in self.there:
            raise error(errno.ENOENT, detail="no sandbox")
        return Used(cpu_ms=1)

    async def aclose(self) -> None:
        """Nothing is held."""


def words(*commands: str, **more: Any) -> dict[str, Any]:
    """A request; without commands an interactive one."""
    kind = {} if commands else {"kind": "interactive"}
    return {"commands": list(commands), **kind, **more}
