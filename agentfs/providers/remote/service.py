"""`RemoteService`: the tree that one token opens on another runtime, each operation a request to its HTTP face.

It keeps no copy of anything: what a file is and may do is asked anew each time.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

import anyio
import httpx

from agentfs.client import Trust
from agentfs.errors import error
from agentfs.limits import Limits
from agentfs.providers.remote.files import open_file
from agentfs.providers.remote.watch import Pause, Watch, WatchHandle
from agentfs.providers.remote.wire import Wire, stat_of, stats_of, target, wishes
from agentfs.service import FileHandle, FileService
from agentfs.tree.handles import Errors, Opening
from agentfs.tree.nodes import At
from agentfs.types import NO_WANT, Kind, Mode, Path, Principal, Stat, Want, join, split


class RemoteService(FileService):
    """The tree at *url* as the owner of *token* sees it. Close it, or use it as a context.

    Beside what the files say every operation may raise EACCES (the token), ENOTCONN (no connection, or it broke; the
    next operation tries anew) and ETIMEDOUT. *trust* is for an https URL. *pause* sleeps between attempts to resume a
    lost stream.
    """

    def __init__(
        self, url: str, token: str, *, pause: Pause = anyio.sleep, transport: httpx.AsyncBaseTransport | None = None,
        trust: Trust | None = None,
    ) -> None:  # fmt: skip
        self._wire, self._pause = Wire(url, token, transport=transport, trust=trust), pause

    async def aclose(self) -> None:
        """Drop the connections. Idempotent."""
        await self._wire.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def attach(self, principal: Principal) -> FileService:
        """EOPNOTSUPP: who asks is in the token."""
        raise error(errno.EOPNOTSUPP, detail="the token is the identity")

    async def stat(self, path: Path) -> Stat:
        return stat_of((await self._wire.ask("GET", path, params={"meta": "1"})).content, path)

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        params = {"cursor": after} if after else {}
        return stats_of((await self._wire.ask("GET", path, is_dir=True, params=params)).content, path)[:limit]

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        top, name = split(path)
        base, mark, cursor = name.partition("@")
        if mark and base and cursor:
            return await self._follow(path, join(top, base), cursor, mode)
        found = await self.stat(path)
        _permit(found, path, mode)
        return await open_file(self._wire, path, found.kind, mode, want, is_new=False)

    async def _follow(self, path: Path, base: Path, cursor: str, mode: Mode) -> FileHandle:
        found = await self.stat(base)
        if found.kind is not Kind.STREAM:
            raise error(errno.ENOENT, path)
        _permit(found, path, mode)
        behind = None if cursor == "follow" else cursor
        watch = await Watch.start(self._wire, base, behind, found.qid.version, self._pause)
        return WatchHandle(watch, Opening(At(path), mode, Errors(), Limits()))

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        """As the service; a file that is made at once is made here, one that needs a document with its document."""
        try:
            await self._wire.ask("PUT", path, content=b"", headers={**wishes(want), "If-None-Match": "*"})
        except FileExistsError:
            if want.exclusive:
                raise
            return await self.open(path, mode, want=want)
        try:
            return await self.open(path, mode, want=replace(want, exclusive=False))
        except FileNotFoundError:
            return await open_file(self._wire, path, Kind.FILE, mode, want, is_new=True)

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> None:
        await self._wire.ask("MKCOL", path, headers=wishes(want))

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> None:
        await self._wire.ask("DELETE", path, headers=wishes(want))

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        headers = {"Destination": target(new), **wishes(want), **({"Overwrite": "F"} if want.exclusive else {})}
        await self._wire.ask("MOVE", old, headers=headers)


def _permit(found: Stat, path: Path, mode: Mode) -> None:
    if found.is_dir:
        raise error(errno.EISDIR, path)
    if Mode.READ in mode and not found.mode & 0o400:
        raise error(errno.EACCES, path, "write-only")
    if Mode.WRITE in mode and not found.mode & 0o200:
        raise error(errno.EACCES, path, "read-only")
