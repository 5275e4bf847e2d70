"""`Scribe`: what comes of answers into their logs: one commit takes what has come of every job of an agent.

While one commit is under way, what comes waits for the next. It knows no job: a `Page` is changes of one agent.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from agentfs.engine.core import Core
from agentfs.ports import Append, Change, Expect
from agentfs.record import Pulse
from agentfs.rows import AgentRow


@dataclass(slots=True, eq=False)
class Page:
    """The writing of one job: what waits, and what became of it. `scope` is cancelled when something is not stored."""

    agent: str
    waiting: list[Change] = field(default_factory=list)
    failure: OSError | None = None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    is_under_way: bool = False
    pulse: Pulse = field(default_factory=Pulse)

    @property
    def weight(self) -> int:
        """How many bytes of records wait."""
        return sum(len(change.doc) for change in self.waiting if isinstance(change, Append))

    async def stored(self) -> None:
        """Wait until nothing waits any more; `failure` tells what became of it."""
        while self.waiting or self.is_under_way:
            await self.pulse.wait(self.pulse.count)

    def settle(self, failure: OSError | None) -> None:
        """What was under way is stored, or not: then nothing more of this page will be."""
        self.is_under_way = False
        if failure is not None:
            self.failure = failure
            self.waiting.clear()
            self.scope.cancel()
        self.pulse.fire()


class Scribe:
    """Writes the pages of every agent, in the order in which their changes came."""

    def __init__(self, core: Core, group: TaskGroup) -> None:
        self._core, self._group = core, group
        self._pages: dict[str, list[Page]] = {}

    def write(self, page: Page, *changes: Change) -> None:
        """Store *changes* soon; raises what became of earlier ones."""
        if page.failure is not None:
            raise page.failure
        is_new = not page.waiting
        page.waiting.extend(changes)
        if page.agent not in self._pages:
            self._pages[page.agent] = []
            self._group.start_soon(self._store, page.agent)
        if is_new:
            self._pages[page.agent].append(page)

    async def _store(self, agent: str) -> None:
        with anyio.CancelScope(shield=True):  # what has come is stored, also while everything is being stopped
            while pages := self._pages[agent]:
                self._pages[agent] = []
                taken = [(page, page.waiting) for page in pages]
                for page in pages:
                    page.waiting, page.is_under_way = [], True
                if len(taken) == 1 or not await self._try_together(agent, taken):
                    for page, changes in taken:
                        page.settle(await self._commit(agent, changes))
            del self._pages[agent]

    async def _try_together(self, agent: str, taken: list[tuple[Page, list[Change]]]) -> bool:
        failure = await self._commit(agent, [change for _, changes in taken for change in changes])
        if failure is None:
            for page, _ in taken:
                page.settle(None)
        return failure is None

    async def _commit(self, agent: str, changes: list[Change]) -> OSError | None:
        try:
            await self._core.commit(Expect(AgentRow, (agent,), errno=errno.ENOENT), *changes)
        except OSError as exc:
            return exc
        return None
