"""One open ``/dev/fuse``: whole messages in, whole answers out. What they mean is not known here.

The kernel's side may go away at any time: reading then raises `GoneError`, and answers are dropped.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import Final, TypeAlias

import trio

from agentfs.faces.fuse.wire.protocol import IN_HEADER, OUT_HEADER

log = logging.getLogger(__name__)

MAX_WRITE: Final = 1 << 20
_BUFFER: Final = MAX_WRITE + (1 << 12)
_YIELDS: Final = 3
_HEADER: Final = IN_HEADER.size
_OUT_HEADER: Final = OUT_HEADER.size
_LOST: Final = (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.EPIPE)


class GoneError(Exception):
    """The mount is no longer there."""


Message: TypeAlias = tuple[int, int, int, int, memoryview]
"""One request: opcode, unique, node, tid and the body, which is valid until the next one is taken."""


class Device:
    """The descriptor *fd*, which is closed by `close`. One task at a time takes messages, every task may answer."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        os.set_blocking(fd, False)
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._into = [self._buffer]

    def take(self) -> Message | None:
        """The next message if there is one now. EPROTO for bytes that are none; `GoneError`."""
        try:
            size = os.readv(self.fd, self._into)
        except BlockingIOError:
            return None
        except OSError as exc:
            if exc.errno == errno.ENOENT:  # taken back between the wake-up and the read
                return None
            raise GoneError from exc
        if size == 0:
            raise GoneError
        length, opcode, unique, node, _, _, tid, extensions, _ = IN_HEADER.unpack_from(self._buffer)
        end = size - extensions * 8
        if length != size or end < _HEADER:
            raise OSError(errno.EPROTO, f"a message of {size} bytes that says {length}, {extensions} of extensions")
        return opcode, unique, node, tid, self._view[_HEADER:end]

    def take_soon(self) -> Message | None:
        """The next message, letting others run for a moment: whoever was answered often asks again at once."""
        for _ in range(_YIELDS):
            os.sched_yield()
            if message := self.take():
                return message
        return None

    async def wait(self) -> None:
        """Return when there may be a message."""
        await trio.lowlevel.wait_readable(self.fd)

    def answer(self, unique: int, body: bytes, code: int = 0) -> bool:
        """Send an answer, a good one unless *code* says otherwise; whether it was taken.

        It is lost only with the mount: the kernel waits for every request it has given out.
        """
        if self.fd < 0:
            return False
        try:
            os.writev(self.fd, (OUT_HEADER.pack(_OUT_HEADER + len(body), code, unique), body))
        except OSError as exc:
            if exc.errno not in _LOST:
                log.error("answer %d of %d bytes: %s", code, len(body), exc)
            return False
        return True

    def refuse(self, unique: int, code: int) -> None:
        """Answer with the errno *code*."""
        self.answer(unique, b"", -code)

    def notify(self, code: int, body: bytes) -> bool:
        """Tell the kernel something by itself; whether it knows what that is about (yet, or still)."""
        return self.answer(0, body, code)

    def close(self) -> None:
        """Let the kernel know that nobody serves any more. What is sent from now on is lost."""
        fd, self.fd = self.fd, -1
        os.close(fd)
