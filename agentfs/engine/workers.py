"""`Workers`: one task an awake agent: takes its envelopes one by one, then lets it hibernate.

An agent with nothing to do has no task and no memory.
"""

from __future__ import annotations

import logging

import anyio
from anyio.abc import TaskGroup

from agentfs.engine.core import Core
from agentfs.engine.mail import Mail
from agentfs.engine.settings import Settings, settings_of
from agentfs.engine.tick import Running, Ticks
from agentfs.engine.timers import Timers
from agentfs.rows import AgentRow, StateRow

log = logging.getLogger(__name__)
_STORE_RETRY_NS = 1_000_000_000


class Workers:
    """Starts and ends the tasks of agents. `start` must be given the group they run in."""

    def __init__(self, core: Core, mail: Mail, timers: Timers) -> None:
        self._core, self._mail, self._timers = core, mail, timers
        self._running: dict[str, Running] = {}
        self._group: TaskGroup | None = None
        self._ticks: Ticks | None = None
        self._slots = anyio.Semaphore(core.limits.parallel_ticks)
        self.is_draining = False

    def start(self, group: TaskGroup, ticks: Ticks) -> None:
        """Workers run in *group* from now on."""
        self._group, self._ticks = group, ticks

    def wake(self, agent: str) -> None:
        """*agent* may have something to do."""
        if (running := self._running.get(agent)) is not None:
            running.is_dirty = True
        elif self._group is not None and not self.is_draining:
            self._running[agent] = Running(agent)
            self._core.versions.bump(agent, "lifecycle")
            self._group.start_soon(self._serve, agent, self._running[agent])

    def is_loaded(self, agent: str) -> bool:
        """Whether *agent* is awake."""
        return agent in self._running

    def is_ticking(self, agent: str) -> bool:
        """Whether a tick of *agent* runs right now."""
        running = self._running.get(agent)
        return running is not None and running.scope is not None

    @property
    def busy(self) -> int:
        """How many agents are awake."""
        return len(self._running)

    def cancel_tick(self, agent: str, why: str) -> None:
        """End the running tick of *agent*, if there is one."""
        if (running := self._running.get(agent)) is not None:
            running.cancel(why)

    def hibernate(self, agent: str) -> None:
        """Let *agent* go to sleep after its running tick, whatever is pending; what comes later wakes it again."""
        if (running := self._running.get(agent)) is not None:
            running.is_leaving, running.is_dirty = True, False

    def reload(self, agent: str) -> None:
        """The program changed: load it anew for the next tick."""
        if (running := self._running.get(agent)) is not None:
            running.is_stale = True

    async def _serve(self, agent: str, running: Running) -> None:
        try:
            while await self._step(running):
                pass
            await self._sleep(running)
        except OSError as exc:  # the store refused: nothing was spent, try again when it may be better
            log.warning("agent %s waits for its store: %s", agent, exc)
            self._wake_at(agent, self._core.clock.now_ns() + _STORE_RETRY_NS)
        except Exception:
            log.exception("agent %s cannot be served", agent)  # a bug of ours: the other agents live on
            self._wake_at(agent, self._core.clock.now_ns() + _STORE_RETRY_NS)
        finally:
            del self._running[agent]
            self._mail.forget(agent)
            self._core.versions.bump(agent, "lifecycle")
            self._core.rests.fire()
        if running.is_dirty:
            self.wake(agent)

    async def _step(self, running: Running) -> bool:
        """Run the next envelope; False when there is nothing to run now."""
        if self.is_draining:
            return False
        if running.is_leaving:
            await self._set_alarm_clock(running.agent)
            return False
        running.is_dirty = False
        settings = await self._settings(running.agent)
        if settings is None:
            return False
        slot, wake_at_ns = (await self._mail.box(running.agent)).next(self._core.clock.now_ns())
        if slot is None:
            if wake_at_ns is not None:
                self._wake_at(running.agent, wake_at_ns)
            return running.is_dirty
        async with self._slots:
            settings = await self._settings(running.agent)  # paused or changed while it waited for its turn
            if settings is None or self._ticks is None or running.is_leaving or self.is_draining:
                return False
            await self._ticks.run(running, settings, slot.id)
        return True

    async def _set_alarm_clock(self, agent: str) -> None:
        """A retry that waits for its time wakes the agent however it fell asleep."""
        _, wake_at_ns = (await self._mail.box(agent)).next(self._core.clock.now_ns())
        if wake_at_ns is not None:
            self._wake_at(agent, wake_at_ns)

    async def _settings(self, agent: str) -> Settings | None:
        """The settings of an agent that may tick, else None."""
        row, state = await self._core.store.get(AgentRow, agent), await self._core.store.get(StateRow, agent)
        if row is None or state is None or row.is_paused or row.terminated_at_ns is not None:
            return None
        settings = settings_of(row.config)
        return settings if state.failures < settings.quarantine_after else None

    def _wake_at(self, agent: str, at_ns: int) -> None:
        async def wake() -> None:
            self._core.versions.bump(agent, "lifecycle")  # no longer waits for that, awake as it may be
            self.wake(agent)

        self._timers.set(("wake", agent), at_ns, wake)
        self._core.versions.bump(agent, "lifecycle")

    async def _sleep(self, running: Running) -> None:
        row = await self._core.store.get(AgentRow, running.agent)
        if row is None or self.is_draining or self._ticks is None:
            return
        name = "on_sleep" if row.terminated_at_ns is None else "on_terminate"
        await self._ticks.run_hook(running, row, name)
