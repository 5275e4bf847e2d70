"""`Running`: one command in a container from its start to its end, and `Box`, what is known of a container meanwhile.

It holds no scope and no task between two happenings: whoever reads them may stop at any.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import anyio.to_thread
import msgspec

from agentfs.containers.documents import Limits
from agentfs.containers.port import Cause, Exit, Happening, Output, Used
from agentfs.errors import error
from agentfs.providers.containers.attached import Attached
from agentfs.providers.containers.daemon import LONG_S, Daemon, cleaned
from agentfs.providers.containers.inmates import Inmates, Strays
from agentfs.providers.containers.watched import TOO_LARGE, Watched, past_file
from agentfs.providers.containers.workdir import Workdir

KILLED: Final = 137  # the code of what SIGKILL ended
_BEAT_S: Final = 5.0  # without a word from the engine, before it is asked whether it is there
END_S: Final = 5.0  # for the engine to notice an end
POLL_S: Final = 0.01
_PLAIN: Final = 3  # rounds of killing before the container is frozen for it
_ROUNDS: Final = 20


@dataclass(slots=True)
class Box:
    """A container of this runtime. ``roots``: the first process of each command that runs, by its exec.

    ``lock``: held while a command begins and while what is left of another is ended, so that neither takes the one
    for the other. ``used``: by a container that has ended.
    """

    id: str
    inmates: Inmates
    workdir: Workdir
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    roots: dict[str, int] = field(default_factory=dict)
    used: Used | None = None


async def swept(daemon: Daemon, box: Box) -> None:
    """End every process of code in *box* that belongs to no command of its `Box.roots`; the lock is held.

    What forks faster than it is killed, or seen, is killed frozen. What outlives even that takes the container with it.
    """
    freezes, left = True, Strays([], is_all=True)
    for turn in range(_ROUNDS):
        left = await _strays(box)
        if left.is_all and not left.pids:
            return
        if turn >= _PLAIN and freezes:
            killed = await _frozen(daemon, box)
            if killed == 0:
                return
            freezes = killed is not None
        else:
            box.inmates.kill(left.pids)
        await anyio.sleep(POLL_S * turn)
    if left.pids:
        await daemon.call(lambda client: client.kill(box.id), codes={404: errno.ENOENT, 409: errno.ENOENT})


async def _strays(box: Box) -> Strays:
    return await anyio.to_thread.run_sync(box.inmates.strays, list(box.roots.values()))


async def _frozen(daemon: Daemon, box: Box) -> int | None:
    """Kill while nothing in *box* can fork. How many, which are all there were; None when the engine cannot do that."""
    try:
        await daemon.call(lambda client: client.pause(box.id))
    except OSError:
        return None
    found = (await _strays(box)).pids
    box.inmates.kill(found)
    await daemon.call(lambda client: client.unpause(box.id))
    return len(found)


class Running:
    """One exec of *box*: `begin`, then `next` until the `Exit`, then `close`, whatever happened."""

    def __init__(
        self, daemon: Daemon, box: Box, limits: Limits, hide: Sequence[str], asked: Mapping[str, Any] | None = None
    ) -> None:
        """*asked*: what the engine's exec is to be; *hide*: values that stand in no error."""
        self._daemon, self._box, self._hide, self._asked = daemon, box, hide, asked or {}
        self._exec, self._pidfd = "", -1
        self._attached: Attached | None = None
        self._kills = box.inmates.kills()
        self._cause: Cause = ""
        self._is_ended = False
        self._limits, self._watched = limits, Watched(box.workdir, limits, self._over)

    async def begin(self, stdin: bytes) -> None:
        """Start it. ENOENT when the container is gone, EREMOTEIO when the engine cannot."""
        async with self._box.lock:
            with anyio.CancelScope(shield=True):  # half begun, nobody could tell whose the process is
                made = await self._daemon.call(
                    lambda client: client.exec_create(self._box.id, **self._asked, stdin=bool(stdin)),
                    codes={404: errno.ENOENT, 409: errno.ENOENT},
                    hide=self._hide,
                )
                self._exec = made["Id"]
                with anyio.move_on_after(LONG_S, shield=True):
                    await self._start(stdin)
                    return
        raise error(errno.ENOTCONN, detail="container engine: no answer to the start of a command")

    async def _start(self, stdin: bytes) -> None:
        attached = await self.attach(f"exec/{self._exec}/start", {"Detach": False, "Tty": False}, stdin)
        while not (about := await self._inspect())["Pid"]:
            if about["ExitCode"] is not None and not about["Running"]:
                raise error(errno.EREMOTEIO, detail=cleaned(await _words(attached), self._hide))
            await anyio.sleep(POLL_S)
        self._box.roots[self._exec] = about["Pid"]
        self._watched.start()
        try:
            self._pidfd = os.pidfd_open(about["Pid"])
        except ProcessLookupError:
            self._is_ended = True
        else:
            attached.watch(self._pidfd)

    async def attach(self, path: str, asked: Mapping[str, bool], stdin: bytes) -> Attached:
        """Ask the engine at *path* for the streams. ENOENT when there are none, EREMOTEIO, ENOTCONN."""
        self._attached = Attached(self._daemon.path, stdin)
        status, body = await self._attached.begin(await self._daemon.version(), path, asked)
        if status == 0:
            raise error(errno.ENOTCONN, detail="container engine: closed the connection")
        if status != 101:
            code = errno.ENOENT if status in (404, 409) else errno.EREMOTEIO
            raise error(code, detail=cleaned(_message(body), self._hide))
        return self._attached

    async def _inspect(self) -> Any:
        return await self._daemon.call(lambda client: client.exec_inspect(self._exec), codes={404: errno.ENOENT})

    async def next(self) -> Happening:
        """What happens next. ENOTCONN when the engine is away."""
        assert self._attached is not None
        deadline = time.monotonic() + (END_S if self._is_ended else _BEAT_S)
        while True:
            found: Output | None = None
            with anyio.move_on_after(deadline - time.monotonic()):
                found = await self._attached.next()
            if found is not None:
                return found
            if self._attached.is_over:
                await self._sweep()
                return await self._exit()
            if self._attached.is_ended and not self._is_ended:
                self._is_ended = True
                await self._sweep()
                deadline = time.monotonic() + END_S
            if time.monotonic() >= deadline:
                deadline = await self._beat()

    async def _beat(self) -> float:
        """See that the engine is there; until when to listen now."""
        if self._is_ended:
            raise error(errno.ENOTCONN, detail="container engine: does not tell of the end of a command")
        await self._daemon.call(lambda client: client.ping())
        return time.monotonic() + _BEAT_S

    def _over(self, cause: Cause) -> None:
        """End it for *cause*; in any thread. What gets away is ended with the rest of it."""
        self._cause = cause
        root = self._box.roots.get(self._exec)
        for _ in range(_PLAIN):
            self._box.inmates.kill(self._box.inmates.family(root) if root else ())

    async def _sweep(self) -> None:
        """End all that is left of it."""
        with anyio.CancelScope(shield=True):  # never left frozen
            async with self._box.lock:
                self._box.roots.pop(self._exec, None)
                with contextlib.suppress(FileNotFoundError):  # gone with its container
                    await swept(self._daemon, self._box)

    async def _exit(self) -> Exit:
        until = time.monotonic() + END_S
        while time.monotonic() < until:
            try:
                about = await self._inspect()
            except FileNotFoundError:
                return Exit(KILLED, self._cause or "gone")
            if not about["Running"] and about["ExitCode"] is not None:
                return await self._ended(about["ExitCode"] & 0xFF)
            await anyio.sleep(POLL_S)
        raise error(errno.ENOTCONN, detail="container engine: does not tell how a command ended")

    async def _ended(self, code: int) -> Exit:
        if self._cause:
            return Exit(code or KILLED, self._cause)
        if code in (0, TOO_LARGE):
            return Exit(code, past_file(self._limits) if code else "")
        kills = self._box.inmates.kills()
        if self._kills is not None and (kills or 0) > self._kills:
            return Exit(code, "memory")
        state = await self._state()
        if not state.get("Running") or self._box.inmates.is_over():
            return Exit(KILLED, "memory" if state.get("OOMKilled") else "gone")
        return Exit(code)

    async def _state(self) -> Any:
        try:
            about = await self._daemon.call(
                lambda client: client.inspect_container(self._box.id), codes={404: errno.ENOENT}
            )
        except FileNotFoundError:
            return {}
        return about["State"]

    async def close(self) -> None:
        """End it and everything it began, and give back what is held. Also without the engine."""
        self._watched.stop()
        try:
            if self._exec:
                await self._sweep()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._attached is not None:
            self._attached.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


async def _words(attached: Attached) -> str:
    """What the engine says on the stream of a command that did not begin."""
    words = b""
    with anyio.move_on_after(END_S):
        while len(words) < KILLED * 10 and (output := await attached.next()) is not None:
            words += output.data
    return words.decode(errors="replace")


def _message(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return body.decode(errors="replace")
