"""A child that serves a small tree in ways a test asks for: ``wirechild.py TRICK PLACE...``. Says ``serving``, stays.

``two``: by wire at two places; ``fusermount``: as who may not mount; ``broken``: wire cannot be used; ``old``: nor the
kernel, which is too old for it; ``meet``: a command that waits for others; ``files``: the file that the environment
names, which only the kernel can read.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import stat as _stat
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path as FsPath
from typing import NoReturn

import trio

from agentfs.errors import error
from agentfs.faces.fuse import mount
from agentfs.faces.fuse.binding import Options
from agentfs.faces.fuse.wire import binding as wire
from agentfs.faces.fuse.wire import mounting, protocol
from agentfs.providers.containers.opened import HostHandle
from agentfs.service import FileHandle, FileService
from agentfs.tree import At, Ctl, File, Tree
from agentfs.types import NO_WANT, ROOT, Kind, Mode, Path, Principal, Stat, Want

TOGETHER = 8


class Meeting:
    """A command that ends once `TOGETHER` of it are under way."""

    def __init__(self) -> None:
        self._here, self._all = 0, trio.Event()

    async def meet(self, at: At) -> None:
        """Wait for the others."""
        self._here += 1
        if self._here == TOGETHER:
            self._all.set()
        await self._all.wait()


class Unread(HostHandle):
    """A file that the kernel must read by itself."""

    async def read(self, size: int, offset: int) -> bytes:
        raise error(errno.EIO, detail="the kernel asked for it")


class Host(FileService):
    """One file of this machine, by its absolute path."""

    def __init__(self, real: str) -> None:
        self._real = real

    def attach(self, principal: Principal) -> FileService:
        return self

    async def stat(self, path: Path) -> Stat:
        if path == ROOT:
            return Stat("", _stat.S_IFDIR | 0o555, kind=Kind.DIR)
        return Stat(path, _stat.S_IFREG | 0o600, FsPath(self._real).stat().st_size, kind=Kind.DATA)  # noqa: ASYNC240

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        return [] if after else [await self.stat(Path("file"))]

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        flags = os.O_RDONLY if mode is Mode.READ else os.O_RDWR
        return Unread(os.open(self._real, flags), path, mode, None)


async def text(at: At) -> bytes:
    """What the file holds."""
    return b"here\n"


def tree() -> Tree:
    """A file and a command."""
    return Tree(File(name="file", read=text), Ctl(name="ctl", verbs={"meet": Meeting().meet}))


def forbidden(place: str, options: Options) -> NoReturn:
    """Mounting, as for who may not."""
    raise PermissionError(errno.EPERM, "mount", place)


async def absent(place: str, options: Options) -> NoReturn:
    """Mounting where it cannot be done."""
    raise error(errno.EOPNOTSUPP, place, "no such thing here")


async def main(*words: str) -> None:
    """Serve at every place until SIGTERM."""
    trick, *places = words
    if trick == "fusermount":
        mounting._directly = forbidden
    if trick == "broken":
        vars(wire)["mounted"] = absent
    if trick == "old":
        vars(protocol)["OLDEST_MINOR_VERSION"] = 99
    binding = "auto" if trick in ("broken", "old") else "wire"
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            for place in places:
                served = Host(os.environ["HOST_FILE"]) if trick == "files" else tree()
                await nursery.start(partial(mount.serve, served, place, binding=binding))
            os.write(1, b"serving\n")
            await anext(aiter(signals))
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trio.run(main, *sys.argv[1:])
