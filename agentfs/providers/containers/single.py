"""`Single`: the one command a container is made for, from its start to its end, which is that of the container.

It is begun without an exec, which takes a fifth of the time that a new container takes: as `docker run` does.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import anyio
import anyio.to_thread

from agentfs.containers.documents import Limits
from agentfs.containers.port import Cause, Exit, Used
from agentfs.errors import error
from agentfs.providers.containers.daemon import LONG_S, Daemon
from agentfs.providers.containers.running import END_S, KILLED, POLL_S, Box, Running
from agentfs.providers.containers.watched import TOO_LARGE, past_file

_STREAMS: Final = "stream=1&stdin=1&stdout=1&stderr=1"
_BY_SIGNAL: Final = 128


class Single(Running):
    """What the main process of *box* becomes: see `Running`."""

    def __init__(self, daemon: Daemon, box: Box, limits: Limits, hide: Sequence[str], code: bytes) -> None:
        """*code*: what its shell reads, see `script`."""
        super().__init__(daemon, box, limits, hide)
        self._code, self._begun_s = code, time.time()
        self._kills_at_end: int | None = None
        self._noted = threading.Event()

    async def begin(self, stdin: bytes) -> None:
        """Tell it what to be. ENOENT when the container is gone."""
        try:
            self._pidfd = os.pidfd_open(self._box.inmates.pid)
        except ProcessLookupError:
            raise error(errno.ENOENT, detail="its container does not run") from None
        threading.Thread(target=self._note, args=(os.dup(self._pidfd),), name="agentfs-used", daemon=True).start()
        with anyio.move_on_after(LONG_S, shield=True):
            path = f"containers/{self._box.id}/attach?{_STREAMS}"
            (await self.attach(path, {}, self._code + stdin)).watch(self._pidfd)
            self._watched.start()
            return
        raise error(errno.ENOTCONN, detail="container engine: no answer to the start of a command")

    def _note(self, pidfd: int) -> None:
        """Keep what was used, when the last process has ended: the engine takes away soon after who counted it.

        In a thread, as nobody may be reading the output just then.
        """
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll()
        os.close(pidfd)
        inmates = self._box.inmates
        self._kills_at_end = inmates.kills()
        self._box.used = Used(inmates.cpu_ms(), inmates.peak_bytes(), network_bytes=0)
        self._noted.set()

    def _over(self, cause: Cause) -> None:
        self._cause = cause
        self._kill()

    def _kill(self) -> None:
        """All others end with the first process."""
        self._box.inmates.kill([self._box.inmates.pid])

    async def _beat(self) -> float:
        if not self._is_ended:
            return await super()._beat()
        assert self._attached is not None
        self._attached.is_over = True  # all has ended, though the engine leaves the streams open
        return time.monotonic()

    async def _sweep(self) -> None:
        with anyio.move_on_after(END_S, shield=True):
            self._kill()
            await anyio.wait_readable(self._pidfd)

    async def _exit(self) -> Exit:
        await anyio.to_thread.run_sync(self._noted.wait, END_S)
        until = time.monotonic() + END_S
        while (state := await self._state()).get("Running"):
            if time.monotonic() >= until:
                raise error(errno.ENOTCONN, detail="container engine: does not tell how a command ended")
            await anyio.sleep(POLL_S)
        code = state["ExitCode"] & 0xFF if state else KILLED
        return Exit(code, self._cause or await self._why(code, state), self._box.used or Used())

    async def _why(self, code: int, state: Mapping[str, Any]) -> Cause:
        if not state:
            return "gone"
        if code in (0, TOO_LARGE):
            return past_file(self._limits) if code else ""
        if self._kills_at_end or state.get("OOMKilled"):
            return "memory"
        return "gone" if code > _BY_SIGNAL and await self._is_taken() else ""

    async def _is_taken(self) -> bool:
        """Whether somebody asked the engine to end the container."""
        wanted = {"container": self._box.id, "event": "kill"}
        asked = {"since": f"{self._begun_s:.6f}", "until": f"{time.time():.6f}", "filters": wanted}
        return await self._daemon.call(lambda client: any(True for _ in client.events(**asked, decode=True)))

    async def close(self) -> None:
        self._watched.stop()
        try:
            if self._pidfd >= 0:
                await self._sweep()
        finally:
            self._let_go()
