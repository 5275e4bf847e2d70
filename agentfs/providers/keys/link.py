"""`Link`: one keeper's process, started, and the connection to it, over which many ask at the same time.

It never starts a second one, and holds no key: requests and answers pass through it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from typing import Final

import msgspec
import trio

from agentfs.errors import error
from agentfs.providers.keys.wire import NOTES, PIECE, Answer, Ask, Frames, Source, framed, is_from, pair

PATIENCE_S: Final = 5.0
KEPT: Final = ("PATH", "PYTHONPATH", "LANG", "LC_ALL")
FOR_RING: Final = (
    "HOME", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "DISPLAY",
    "WAYLAND_DISPLAY", "PYTHON_KEYRING_BACKEND",
)  # fmt: skip
AWAY: Final = "the keeper of the keys is away"


class _Waiter:
    """Somebody whose answer is to come; without one when the keeper is gone."""

    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done, self.answer = trio.Event(), Answer(errno.ENOTCONN, "", str(error(errno.ENOTCONN, "", AWAY).strerror))


class Link:
    """A keeper's process of its own. ``gone`` is set when no answer will come any more."""

    def __init__(self, source: Source) -> None:
        """Start the process, from the thread that runs the event loop: the process ends with the thread."""
        self._near, far = pair()
        self._near.setblocking(False)
        self._out, self._stuck = bytearray(), trio.Event()
        self._waiting: deque[_Waiter] = deque()
        self.gone = trio.Event()
        phrase = (source.phrase,) if source.phrase >= 0 else ()
        command = [sys.executable, "-P", "-m", "agentfs.providers.keys.process"]
        try:
            self._process = subprocess.Popen(
                command, stdin=far.fileno(), stdout=subprocess.DEVNULL, pass_fds=phrase, start_new_session=True,
                env=_environment(source, os.environ),
            )  # fmt: skip
        finally:
            far.close()
            for descriptor in phrase:
                os.close(descriptor)

    @property
    def pid(self) -> int:
        """The keeper's process."""
        return self._process.pid

    async def ask(self, ask: Ask | Source) -> Answer:
        """The answer to *ask*; one that stands for an error is raised. EFBIG, EINVAL; ENOTCONN when the keeper is gone.

        Cancelled, it leaves the answers of others alone.
        """
        frame, waiter = framed(ask), _Waiter()
        if self.gone.is_set():
            return waiter.answer.given()
        self._waiting.append(waiter)
        self._out += frame
        self._flush()
        await waiter.done.wait()
        return waiter.answer.given()

    def _flush(self) -> None:
        """Send what goes without waiting."""
        try:
            while self._out:
                del self._out[: self._near.send(self._out)]
        except BlockingIOError:
            self._stuck.set()
        except OSError:  # whoever reads notices too, and tells everybody
            self._out.clear()

    async def serve(self) -> None:
        """Send and hand out answers until the keeper is gone."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._drain)
                await self._hand_out()
                nursery.cancel_scope.cancel()
        finally:
            self.gone.set()
            while self._waiting:
                self._waiting.popleft().done.set()

    async def _drain(self) -> None:
        while True:
            await self._stuck.wait()
            self._stuck = trio.Event()
            await trio.lowlevel.wait_writable(self._near)
            self._flush()

    async def _hand_out(self) -> None:
        """Give each answer to the one who has waited longest, until no more come or something else does."""
        frames = Frames()
        with contextlib.suppress(OSError, msgspec.DecodeError, IndexError):  # the last: an answer nobody asked for
            while piece := await self._received():
                for frame in frames.take(piece):
                    answer = msgspec.msgpack.decode(frame, type=Answer)
                    waiter = self._waiting.popleft()
                    waiter.answer = answer
                    waiter.done.set()

    async def _received(self) -> bytes:
        """The next piece that the keeper sent; nothing at the end, and for what another process sent."""
        while True:
            await trio.lowlevel.wait_readable(self._near)
            with contextlib.suppress(BlockingIOError):
                piece, notes, *_ = self._near.recvmsg(PIECE, NOTES)
                return piece if is_from(self.pid, notes) else b""

    async def aclose(self) -> int:
        """End the keeper: at the end of what it was asked, or by force after a while. Its exit code. Idempotent."""
        with trio.CancelScope(shield=True):
            if self._process.returncode is None:
                await self._end()
            self._near.close()
        return self._process.wait()

    async def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._near.shutdown(socket.SHUT_WR)
        descriptor = os.pidfd_open(self.pid)
        try:
            with trio.move_on_after(PATIENCE_S):
                await trio.lowlevel.wait_readable(descriptor)
                return
            self._process.kill()
        finally:
            os.close(descriptor)
            with trio.move_on_after(PATIENCE_S):
                await self.gone.wait()


def _environment(source: Source, env: Mapping[str, str]) -> dict[str, str]:
    """What the keeper's process needs of *env*, and no more."""
    kept = KEPT + (FOR_RING if source.kind == "keyring" else ())
    return {name: env[name] for name in kept if name in env}
