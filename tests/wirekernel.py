"""The kernel's end of a device, played by a socket: sends what a kernel would and would not, takes answers."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from fusescratch import Scratch
from msgspec.structs import replace

from agentfs.faces.fuse.core import Core
from agentfs.faces.fuse.wire import protocol as p
from agentfs.faces.fuse.wire.device import Device
from agentfs.faces.fuse.wire.protocol import Op
from agentfs.faces.fuse.wire.session import Session
from agentfs.service import FileService
from agentfs.tree import At
from agentfs.types import Facet, Path, Stat
from agentfs.views import View

PATIENCE_S = 60
FACET: Facet = ("", "agents")
NEWEST = (7, 45)
FOLLOW = b"log@follow\0"


class Kernel:
    """The kernel's end: sends messages, takes answers. One at a time."""

    def __init__(self, end: socket.socket) -> None:
        self._end = trio.socket.from_stdlib_socket(end)
        self._unique = self._taken = 0

    async def send(self, op: int, body: bytes = b"", *, node: int = 1, length: int | None = None) -> int:
        """Send one message; its number."""
        await trio.lowlevel.wait_writable(self._end.fileno())
        return self.put(op, body, node=node, length=length)

    def put(self, op: int, body: bytes = b"", *, node: int = 1, length: int | None = None) -> int:
        """Send one message at once, letting nobody else have a turn; its number."""
        self._unique += 2
        size = p.IN_HEADER.size + len(body) if length is None else length
        header = p.IN_HEADER.pack(size, op, self._unique, node, 0, 0, os.getpid(), 0, 0)
        os.write(self._end.fileno(), header + body)
        return self._unique

    async def answer(self) -> tuple[int, int, bytes]:
        """The next answer: number, errno and body."""
        with trio.fail_after(PATIENCE_S):
            text = await self._end.recv(1 << 21)
        size, code, unique = p.OUT_HEADER.unpack_from(text)
        assert size == len(text)
        assert -512 < code <= 0 or unique == 0
        return unique, -code, text[p.OUT_HEADER.size :]

    def waiting(self) -> int:
        """How many answers wait; they are taken."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._end.fileno(), 1 << 16):
                self._taken += 1
        return self._taken

    async def ask(self, op: int, body: bytes = b"", *, node: int = 1) -> tuple[int, bytes]:
        """Errno and body of the answer to one message."""
        number = await self.send(op, body, node=node)
        unique, code, text = await self.answer()
        assert unique == number
        return code, text

    async def is_well(self) -> bool:
        """Whether the root is still what it was."""
        code, text = await self.ask(Op.GETATTR, bytes(p.GETATTR_IN.size))
        return code == 0 and len(text) == p.ATTR_OUT.size

    async def opened(self, name: bytes, flags: int = os.O_RDONLY) -> tuple[int, int]:
        """Node and handle of a file of the root."""
        code, entry = await self.ask(Op.LOOKUP, name)
        assert code == 0
        node = p.ENTRY_OUT.unpack(entry)[0]
        code, text = await self.ask(Op.OPEN, p.OPEN_IN.pack(flags, 0), node=node)
        assert code == 0
        return node, p.OPEN_OUT.unpack(text)[0]


def hello(version: tuple[int, int] = NEWEST, flags: int = 0xFFFFFFFF) -> bytes:
    return p.INIT_IN.pack(*version, 1 << 17, flags) + p.INIT_IN_EXT.pack(0xFFFFFFFF) + bytes(44)


@asynccontextmanager
async def pair(service: FileService | None = None) -> AsyncIterator[tuple[Kernel, Session, Core]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    device = Device(theirs.detach())
    core = Core(service or Scratch(), aliases=True, keeps=True)
    with ours:
        yield Kernel(ours), Session(core, device), core
    device.close()


@asynccontextmanager
async def serving(service: FileService | None = None) -> AsyncIterator[tuple[Kernel, Core]]:
    async with pair(service) as (kernel, session, core), trio.open_nursery() as nursery:
        core.start(nursery)
        await kernel.send(Op.INIT, hello(), node=0)
        await session.greet()
        await kernel.answer()
        nursery.start_soon(session.run)
        yield kernel, core
        nursery.cancel_scope.cancel()


def read_in(fh: int, size: int = 4096) -> bytes:
    return p.READ_IN.pack(fh, 0, size, 0, 0, 0, 0)


async def fixed(at: At) -> bytes:
    return b"fixed"


class Promised(View):
    """What is known to stay does so until a facet changes."""

    async def stat(self, path: Path) -> Stat:
        st = await super().stat(path)
        until, named = (None if promise is None else (FACET,) for promise in (st.until, st.named))
        return replace(st, until=until, named=named)
