"""`Reaper`: removes what is over: sandboxes that no row owns, what still runs of ended ones, old sessions."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Container, Mapping
from functools import partial
from typing import Final

import msgspec
from anyio.abc import TaskGroup

from agentfs.containers.port import Offer
from agentfs.engine.core import Core
from agentfs.engine.session import LIVE, Session, log_of
from agentfs.engine.timers import Timers
from agentfs.ports import Delete, DropLogs, Expect
from agentfs.rows import ExecRow, SandboxRow

log = logging.getLogger(__name__)
_EVERY_NS: Final = 60_000_000_000


class Reaper:
    """Over the providers *offers*; *running* has every session that runs now by agent and id.

    *held*: ids of sandboxes that are no session's and have somebody who removes them.
    """

    def __init__(
        self, core: Core, timers: Timers, offers: Mapping[str, Offer], running: Mapping[tuple[str, str], Session],
        held: Container[str],
    ) -> None:  # fmt: skip
        self._held = held
        self._core, self._timers, self._offers, self._running = core, timers, offers, running
        self.group: TaskGroup | None = None
        self._quiet: set[str] = set()  # where nothing runs any more, and of which there are only files

    async def reap(self) -> None:
        """Remove what no row owns and end what should have ended, now and from time to time."""
        try:
            rows = await self._rows()
            for name in self._offers:
                await self._well(partial(self._reap_at, name, rows))
            for session in list(self._running.values()):
                await self._well(session.look)
        finally:
            self._at("sandboxes-reap", self._core.clock.now_ns() + _EVERY_NS, self.reap)

    async def _rows(self) -> Mapping[str, SandboxRow]:
        """Every session by its id, without what it told: that may be large."""
        rows: dict[str, SandboxRow] = {}
        for agent in await self._core.store.agents(SandboxRow):
            async for row in self._core.every(SandboxRow, agent):
                rows[row.id] = msgspec.structs.replace(row, request="", results="", artifacts="")
        return rows

    def _at(self, key: str, at_ns: int, action: Callable[[], Awaitable[None]]) -> None:
        """Have *action* begin at *at_ns*: no timer waits for an engine of sandboxes."""

        async def begin() -> None:
            if self.group is not None:
                self.group.start_soon(self._well, action)

        self._timers.set(key, at_ns, begin)

    async def _well(self, action: Callable[[], Awaitable[None]]) -> None:
        try:
            await action()
        except OSError as exc:
            log.info("reaper: %s", exc)
        except Exception:
            log.exception("reaper: tried again later")

    async def _reap_at(self, name: str, rows: Mapping[str, SandboxRow]) -> None:
        provider = self._offers[name].provider
        for found in await provider.found():
            if found in self._held:
                continue
            row = rows.get(found)
            if row is None:
                row = await self._late(found)
            if row is None or (row.provider != name or not row.has_files):
                log.info("reaped %s of %s", found, name)
                await provider.remove(found)
            elif row.state not in LIVE and (row.agent, row.id) not in self._running and found not in self._quiet:
                await self.end(name, found)

    async def _late(self, session: str) -> SandboxRow | None:
        """The row of one that began while this was looking."""
        for agent in await self._core.store.agents(SandboxRow):
            if (row := await self._core.store.get(SandboxRow, agent, session)) is not None:
                return row
        return None

    def begin(self, session: str) -> None:
        """The sandbox *session* is used, maybe again: something runs in it."""
        self._quiet.discard(session)

    async def end(self, name: str, session: str) -> None:
        """End everything in a sandbox of the provider *name*; its files stay."""
        if name in self._offers:
            await self._offers[name].provider.end(session)
            self._quiet.add(session)

    async def remove(self, row: SandboxRow) -> None:
        """Remove the sandbox of *row* with its files."""
        self._quiet.discard(row.id)
        if row.provider in self._offers:
            await self._offers[row.provider].provider.remove(row.id)

    def watch(self, at_ns: int | None) -> None:
        """Sweep at *at_ns* at the latest."""
        known = self._timers.next_at("sandboxes")
        if at_ns is not None and (known is None or at_ns < known):
            self._at("sandboxes", at_ns, self.sweep)

    async def sweep(self) -> None:
        """Forget sessions whose time is over, with their files and outputs."""
        now_ns = self._core.clock.now_ns()
        for agent in await self._core.store.agents(SandboxRow):
            async for row in self._core.every(SandboxRow, agent):
                if row.expires_ns is None or row.expires_ns > now_ns:
                    self.watch(row.expires_ns)
                else:
                    await self._well(partial(self._forget, row))

    async def _forget(self, row: SandboxRow) -> None:
        try:
            await self.remove(row)
        except OSError as exc:
            log.info("session %s: %s; it is reaped later", row.id, exc)
        execs = self._core.every(ExecRow, row.agent, row.id)
        logs = [DropLogs(row.agent, log_of(row.id, each.id)) async for each in execs]
        same = Expect(SandboxRow, (row.agent, row.id), "version", row.version)
        gone = (Delete(SandboxRow, (row.agent, row.id)), Delete(ExecRow, (row.agent, row.id)))
        await self._core.commit(same, *gone, DropLogs(row.agent, log_of(row.id)), *logs)
