"""`Attached`: the two ends of one command over the engine's socket: what is not read stops it.

The raw stream of the engine's API: frames of a byte that names the stream, three of nothing, four of length.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Mapping
from typing import Final

import anyio
import msgspec

from agentfs.containers.port import Output
from agentfs.errors import error

_PIECE: Final = 65_536
_HEAD_MAX: Final = 16_384
_FRAME: Final = 8


class Attached:
    """One connection to the streams of a command. For one task at a time."""

    def __init__(self, path: str, stdin: bytes) -> None:
        """Connect to the engine at *path*. ENOTCONN."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(path)  # never waits: a full queue is EAGAIN
        except OSError as exc:
            self._socket.close()
            raise error(errno.ENOTCONN, detail=f"container engine at {path}: cannot be reached") from exc
        self._events = select.epoll()
        self._events.register(self._socket, select.EPOLLIN)
        self._stdin, self._held = memoryview(stdin), bytearray()
        self._stream, self._left, self._watched = 0, 0, -1
        self.is_over = self.is_ended = False

    async def begin(self, version: str, path: str, asked: Mapping[str, bool]) -> tuple[int, bytes]:
        """Ask for *path* with *asked*: the status of the answer (101: it goes on as a stream) and its body."""
        body = msgspec.json.encode(asked)
        head = (
            f"POST /v{version}/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._socket.send(head.encode() + body)  # the first bytes of a connection: there is room
        while b"\r\n\r\n" not in self._held and len(self._held) < _HEAD_MAX and not self.is_over:
            await self._wait()
            self._receive()
        answer, _, rest = bytes(self._held).partition(b"\r\n\r\n")
        status = answer.split(b" ", 2)[1:2]
        self._held = bytearray(rest)
        if self._stdin:
            self._events.modify(self._socket, select.EPOLLIN | select.EPOLLOUT)
            self._send()
        return (int(status[0]) if status and status[0].isdigit() else 0), rest

    def watch(self, pidfd: int) -> None:
        """Let `next` come back when the process of *pidfd* has ended."""
        self._events.register(pidfd, select.EPOLLIN)
        self._watched = pidfd

    async def next(self) -> Output | None:
        """The next bytes; None when nothing more will come (`is_over`), or once when the watched process `is_ended`."""
        while True:
            if (output := self._frame()) is not None:
                return output
            if self.is_over:
                return None
            ready = await self._wait()
            if any(fd == self._watched for fd, _ in ready):
                self._events.unregister(self._watched)
                self._watched, self.is_ended = -1, True
                return None
            for fd, event in ready:
                if fd == self._socket.fileno():
                    self._serve(event)

    def _serve(self, event: int) -> None:
        if event & select.EPOLLOUT:
            self._send()
        if event & ~select.EPOLLOUT:
            self._receive()

    async def _wait(self) -> list[tuple[int, int]]:
        await anyio.wait_readable(self._events.fileno())
        return self._events.poll(0)

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._held += data
        self.is_over = not data

    def _send(self) -> None:
        try:
            self._stdin = self._stdin[self._socket.send(self._stdin[:_PIECE]) :]
            if not self._stdin:
                self._socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError:  # it reads no more
            self._stdin = self._stdin[:0]
        if not self._stdin:
            self._events.modify(self._socket, select.EPOLLIN)

    def _frame(self) -> Output | None:
        """What is held of the frame at hand; pieces of one frame come as they are."""
        while not self._left and len(self._held) >= _FRAME:
            self._stream, self._left = struct.unpack(">BxxxI", self._held[:_FRAME])
            del self._held[:_FRAME]
        data = bytes(self._held[: self._left])
        if not data:
            return None
        del self._held[: len(data)]
        self._left -= len(data)
        return Output("stderr" if self._stream == 2 else "stdout", data)

    def close(self) -> None:
        """Give back the connection. Idempotent."""
        self._events.close()
        self._socket.close()
