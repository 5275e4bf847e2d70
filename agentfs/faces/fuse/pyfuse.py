"""The binding through pyfuse3: its handlers over `Core`, and every failure as an errno.

One mount a process (pyfuse3's globals). It sees no interrupts: blocked readers are watched for signals instead.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import select
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields

from agentfs.errors import error, row_of
from agentfs.faces.fuse.answers import Attr
from agentfs.faces.fuse.binding import Options, Serving
from agentfs.faces.fuse.core import Core
from agentfs.faces.fuse.place import FSNAME

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
_BLOCK = 4096
_SPARE_TASKS: Final = 256
_serving: set[str] = set()


def answered(operation: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """*operation* with every failure a `FUSEError`: any other exception would end the mount. Cancellation passes."""

    @functools.wraps(operation)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await operation(*args, **kwargs)
        except FUSEError:
            raise
        except Exception as exc:
            code = row_of(exc).errno
            if code == errno.EIO:
                log.exception("%s failed", operation.__name__)
            raise FUSEError(code) from None

    return run


def _patient(loop: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Coroutine[Any, Any, None]]:
    """pyfuse3's worker, for a device that does not block: with no message there it waits anew instead of failing.

    A caller killed between the wake-up and the read takes its message away; a blocking read would then stop the whole
    process until somebody uses the mount again.
    """

    async def work(*args: object) -> None:
        while True:
            try:
                return await loop(*args)
            except BlockingIOError:
                continue

    return work


pyfuse3._session_loop = _patient(pyfuse3._session_loop)  # type: ignore[attr-defined]


def _refusing(code: int) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def refuse(self: Operations, *args: object) -> None:
        raise FUSEError(code)

    return refuse


def _info(fh: int) -> FileInfo:
    return FileInfo(fh=fh, direct_io=True, keep_cache=False)


class Operations(pyfuse3.Operations):
    """Handlers of one mount. What is not here (xattr, access) pyfuse3 answers with ENOSYS, once for the mount."""

    supports_dot_lookup = False

    def __init__(self, core: Core) -> None:
        super().__init__()
        self._core = core
        self.on_ready: Callable[[], None] = lambda: None

    def init(self) -> None:
        self.on_ready()

    def _attributes(self, attr: Attr) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino, entry.st_mode, entry.st_size = attr.ino, attr.mode, attr.size
        entry.st_uid, entry.st_gid = attr.owner
        entry.st_blocks = -(-attr.size // 512)
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = attr.mtime_ns
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(await self._core.lookup(parent_inode, name))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            self._core.forget(ino, count)

    @answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(await self._core.getattr(inode))

    @answered
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        done = await self._core.setattr(
            inode,
            fh,
            size=attr.st_size if fields.update_size else None,
            mode=attr.st_mode if fields.update_mode else None,
            owner=(attr.st_uid if fields.update_uid else None, attr.st_gid if fields.update_gid else None),
        )
        return self._attributes(done)

    @answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return _info((await self._core.open(inode, flags, ctx.pid)).fh)

    @answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        opened, attr = await self._core.create(parent_inode, name, flags, ctx.pid)
        return _info(opened.fh), self._attributes(attr)

    @answered
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(await self._core.mknod(parent_inode, name, mode))

    @answered
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(await self._core.mkdir(parent_inode, name))

    @answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._core.remove(parent_inode, name, ctx.pid)

    @answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._core.remove(parent_inode, name, ctx.pid)

    @answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        await self._core.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    symlink = link = _refusing(errno.EPERM)
    readlink = _refusing(errno.EINVAL)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._core.read(fh, size, off)

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._core.write(fh, buf, off)

    @answered
    async def flush(self, fh: int) -> None:
        await self._core.flush(fh)

    @answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._core.flush(fh)

    @answered
    async def release(self, fh: int) -> None:
        await self._core.release(fh)

    @answered
    async def poll(self, inode: int, fh: int, poll_handle: pyfuse3.PollHandle | None, ctx: RequestContext) -> int:
        return self._core.poll(fh, functools.partial(_notify, poll_handle) if poll_handle is not None else None)

    @answered
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return (await self._core.directories.open(inode, ctx.pid)).fh

    @answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        def emit(name: bytes, attr: Attr, index: int) -> bool:
            return pyfuse3.readdir_reply(token, name, self._attributes(attr), index)

        await self._core.directories.read(fh, start_id, emit)

    @answered
    async def releasedir(self, fh: int) -> None:
        self._core.directories.close(fh)

    @answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        return

    @answered
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        used, total = await self._core.statfs()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = _BLOCK
        data.f_blocks = total // _BLOCK
        data.f_bfree = data.f_bavail = max(0, total - used) // _BLOCK
        data.f_namemax = 255
        return data


def _notify(handle: pyfuse3.PollHandle) -> None:
    try:
        handle.notify()
    except OSError as exc:
        log.debug("poll wake-up: %s", exc)  # the poller has gone


def _devices() -> set[int]:
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            if fd.readlink() == Path("/dev/fuse"):
                found.add(int(fd.name))
        except FileNotFoundError:
            continue
    return found


class Pyfuse:
    """See `Binding`."""

    name = "pyfuse3"
    has_aliases = False

    @asynccontextmanager
    async def connected(self, core: Core, place: str, options: Options) -> AsyncIterator[Serving]:
        """See `Binding`."""
        if _serving:
            raise error(errno.EBUSY, place, f"this process already serves {', '.join(_serving)}")
        operations, before = Operations(core), _devices()
        words = {"default_permissions", f"fsname={FSNAME}", f"subtype={options.subtype}"}
        try:
            pyfuse3.init(operations, place, words | ({"allow_other"} if options.allow_other else set()))
        except RuntimeError as exc:
            raise error(errno.EACCES, place, f"{exc}; is /dev/fuse open to this user?") from exc
        _serving.add(place)
        poller = select.poll()
        for fd in _devices() - before:
            os.set_blocking(fd, False)
            poller.register(fd, 0)

        async def serve(on_ready: Callable[[], None]) -> None:
            operations.on_ready = on_ready
            async with trio.open_nursery() as nursery:
                nursery.start_soon(core.blocked.sweep, lambda: not poller.poll(0))
                await pyfuse3.main(max_tasks=core.blocked.limit + _SPARE_TASKS)
                nursery.cancel_scope.cancel()

        try:
            yield serve
        finally:
            pyfuse3.close(unmount=True)
            _serving.discard(place)
