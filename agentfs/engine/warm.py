"""`Warm`: the sandboxes that programs run their ticks in: made at the first tick, kept for the next, then removed.

No row tells of them: what a crash leaves is reaped. It reads no effects and knows no session.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import anyio
from anyio.abc import TaskGroup

from agentfs.containers.documents import Request
from agentfs.containers.port import Command, Exit, Output, Spec
from agentfs.engine.core import Core
from agentfs.engine.sandboxes import Sandboxes
from agentfs.engine.settings import ExecProgram, Settings, request_of
from agentfs.engine.timers import Timers
from agentfs.errors import error
from agentfs.fault import point

log = logging.getLogger(__name__)
_CLOSE_S: Final = 10.0  # for every provider together to remove what is kept, when the engine ends

Take: TypeAlias = Callable[[Output], None]
Run: TypeAlias = Callable[[str, Request, Command, Take], Awaitable[Exit]]
"""`Warm.run`."""


@dataclass(slots=True, eq=False)
class _Kept:
    """The sandbox of one agent. ``is_over``: to be removed behind the tick that runs in it."""

    name: str
    spec: Spec
    is_busy: bool = True
    is_over: bool = False


class Warm:
    """At most one sandbox an agent, of the providers of *sandboxes* and by the same policy, but free of charge."""

    def __init__(self, core: Core, timers: Timers, sandboxes: Sandboxes) -> None:
        self._core, self._timers, self._sandboxes = core, timers, sandboxes
        self._kept: dict[str, _Kept] = {}
        self._group: TaskGroup | None = None

    def start(self, group: TaskGroup) -> None:
        """What is to be removed is removed by tasks of *group*."""
        self._group = group

    async def check(self, agent: str, settings: Settings) -> None:
        """Whether a program may have the sandbox it wants: EACCES, EOPNOTSUPP, ENOENT and ENOTCONN as in `run`."""
        if isinstance(settings.program, ExecProgram) and settings.program.sandbox is not None:
            await self._planned(agent, request_of(settings.program))

    async def run(self, agent: str, request: Request, command: Command, take: Take) -> Exit:
        """Run *command* in the sandbox that *request* wants for *agent*; *take* gets what comes out, as it comes.

        Cancelled, or when *take* raises, the command ends and so does the sandbox. One run an agent at a time.
        EACCES past the policy, EDQUOT when as many sessions run as it allows; EOPNOTSUPP for what no provider can do,
        or does only for money; ENOENT no such provider or image; ETIMEDOUT past ``max_time_secs``; ENOTCONN, EREMOTEIO.
        """
        async with self._sandboxes.ticking(agent):
            kept = await self._taken(agent, request)
            is_well = False
            try:
                ended = await self._ran(agent, kept, command, take)
                is_well = not ended.cause
            finally:
                with anyio.CancelScope(shield=True):
                    await self._left(agent, kept, is_well=is_well)
        return ended

    def leave(self, agent: str) -> None:
        """Remove the sandbox of *agent*, behind the tick that runs in it."""
        kept = self._kept.get(agent)
        if kept is None:
            return
        kept.is_over = True
        if not kept.is_busy and self._group is not None:
            del self._kept[agent]
            self._group.start_soon(self._remove, agent, kept)

    async def close(self) -> None:
        """Remove every sandbox; no tick runs any more. What cannot be removed now is reaped at the next start."""
        with anyio.move_on_after(_CLOSE_S, shield=True):
            for agent in list(self._kept):
                await self._remove(agent, self._kept.pop(agent))

    async def _planned(self, agent: str, request: Request) -> tuple[str, Spec]:
        name, spec = await self._sandboxes.planned(agent, f"tick-{self._core.new_id()}", request)
        if self._sandboxes.offers[name].usd_per_hour:
            raise error(errno.EOPNOTSUPP, detail=f"sandbox: {name} costs money, and nobody pays for ticks in sandboxes")
        return name, spec

    async def _taken(self, agent: str, request: Request) -> _Kept:
        """The sandbox of *agent*, as it would be made now; another one is removed first."""
        name, spec = await self._planned(agent, request)
        self._timers.cancel(("warm", agent))
        kept = self._kept.get(agent)
        if kept is not None and kept.name == name and _is_same(kept.spec, spec):
            kept.is_busy, kept.spec = True, replace(spec, id=kept.spec.id)
            return kept
        if kept is not None:
            del self._kept[agent]
            await self._remove(agent, kept)
        self._kept[agent] = kept = _Kept(name, spec)
        try:
            await self._make(agent, kept)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._left(agent, kept, is_well=False)
            raise
        return kept

    async def _make(self, agent: str, kept: _Kept) -> None:
        self._sandboxes.held.add(kept.spec.id)
        await self._sandboxes.offers[kept.name].provider.make(kept.spec)
        point("warm.made")
        self._core.trace(agent, "container", id=kept.spec.id, state="running", provider=kept.name)

    async def _ran(self, agent: str, kept: _Kept, command: Command, take: Take) -> Exit:
        scope, ended, seconds = anyio.CancelScope(), list[Exit](), kept.spec.limits.max_time_secs

        async def expire() -> None:
            scope.cancel()

        self._timers.set(("warm-limit", agent), self._core.clock.now_ns() + seconds * 1_000_000_000, expire)
        try:
            with scope:
                provider = self._sandboxes.offers[kept.name].provider
                async with aclosing(provider.run(kept.spec, command)) as happenings:
                    async for happening in happenings:
                        if isinstance(happening, Exit):
                            ended.append(happening)
                            break
                        take(happening)
        finally:
            self._timers.cancel(("warm-limit", agent))
        if scope.cancelled_caught:
            raise error(errno.ETIMEDOUT, detail=f"sandbox: limits.max_time_secs: no end within {seconds} s")
        if not ended:
            raise error(errno.EREMOTEIO, detail="the sandbox did not tell how the program ended")
        return ended[0]

    async def _left(self, agent: str, kept: _Kept, *, is_well: bool) -> None:
        """Keep it for the next tick, when nothing speaks against it."""
        kept.is_busy = False
        if kept.is_over or not is_well:
            del self._kept[agent]
            await self._remove(agent, kept)
            return

        async def expire() -> None:
            self.leave(agent)

        idle_ns = self._core.limits.warm_seconds * 1_000_000_000
        self._timers.set(("warm", agent), self._core.clock.now_ns() + idle_ns, expire)

    async def _remove(self, agent: str, kept: _Kept) -> None:
        try:
            await self._sandboxes.offers[kept.name].provider.remove(kept.spec.id)
        except OSError as exc:
            log.warning("sandbox %s: %s; it is reaped later", kept.spec.id, exc)
        self._sandboxes.held.discard(kept.spec.id)
        self._core.trace(agent, "container", id=kept.spec.id, state="complete", provider=kept.name)


def _is_same(kept: Spec, spec: Spec) -> bool:
    """Whether *kept* will do for *spec*; the environment is each command's own, and has a new token every time."""
    return replace(kept, id=spec.id, env=spec.env) == spec
