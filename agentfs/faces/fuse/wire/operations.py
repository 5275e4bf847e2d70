"""What each opcode asks of the `Core`, and the bytes of its answer. It decides nothing and knows no device.

A body is valid until the first await: whatever is needed later is copied out before.
"""

from __future__ import annotations

import errno
import functools
import stat as _stat
from collections.abc import Callable, Coroutine
from struct import Struct
from typing import Any, Final, NamedTuple, TypeAlias

from agentfs.errors import error
from agentfs.faces.fuse.answers import Attr, Opened
from agentfs.faces.fuse.core import Core
from agentfs.faces.fuse.wire import protocol as p
from agentfs.faces.fuse.wire.backing import Backings
from agentfs.faces.fuse.wire.protocol import FOpen, Op, Valid

MAX_READ: Final = 1 << 20
_BLOCK: Final = 4096
_NAME_MAX: Final = 255
_S_IN_NS: Final = 1_000_000_000
_PAD: Final = bytes(8)
_KEPT_S: Final = 3600

Answer: TypeAlias = bytes | None
"""The body of an answer; None: nobody waits for one."""

Call: TypeAlias = Coroutine[Any, Any, Answer]

Handler: TypeAlias = Callable[["Operations", int, int, memoryview], bytes | Call]
"""Answers at once where it can, for most messages are small and many."""


class Row(NamedTuple):
    """One line of the table of operations.

    ``least``: bytes of the body. ``can_stop``: giving it up half-way has no effect, so a signal ends it.
    ``refusal``: the errno that answers it always.
    """

    handler: Handler
    least: int = 0
    can_stop: bool = False
    refusal: int = 0


def _fields(layout: Struct, body: memoryview) -> tuple[int, ...]:
    return layout.unpack_from(body)


def _names(body: memoryview, count: int) -> list[bytes]:
    """*count* names, each ended by NUL, and nothing else. EINVAL."""
    names = bytes(body).split(b"\0")
    if len(names) != count + 1 or names.pop() or not all(names):
        raise error(errno.EINVAL, detail=f"want {count} names in {len(body)} bytes")
    if any(len(name) > _NAME_MAX for name in names):
        raise error(errno.ENAMETOOLONG)
    return names


def _attributes(attr: Attr) -> tuple[int, ...]:
    seconds, rest = divmod(attr.mtime_ns, _S_IN_NS)
    uid, gid = attr.owner
    return (
        attr.ino, attr.size, -(-attr.size // 512), seconds, seconds, seconds, rest, rest, rest,
        attr.mode, 1, uid, gid, 0, _BLOCK, 0,
    )  # fmt: skip


def _entry(attr: Attr) -> bytes:
    name_s, attr_s = _KEPT_S if attr.keeps_name else 0, _KEPT_S if attr.keeps else 0
    return p.ENTRY_OUT.pack(attr.node, 0, name_s, attr_s, 0, 0, *_attributes(attr))


def _attr(attr: Attr) -> bytes:
    return p.ATTR_OUT.pack(_KEPT_S if attr.keeps else 0, 0, 0, *_attributes(attr))


class Operations:
    """The operations of one mount.

    *wake* tells the kernel that a poll has something to see; *interrupt* ends the request of that number.
    ``keeps_names``: the kernel can be told to forget names that it keeps.
    """

    keeps_names = False

    def __init__(
        self, core: Core, backings: Backings, wake: Callable[[int], None], interrupt: Callable[[int], None]
    ) -> None:
        self._core, self._backings, self._wake, self._interrupt = core, backings, wake, interrupt

    async def lookup(self, node: int, tid: int, body: memoryview) -> bytes:
        (name,) = _names(body, 1)
        attr = await self._core.lookup(node, name)
        return _entry(attr if self.keeps_names else attr._replace(keeps_name=False))

    async def forget(self, node: int, tid: int, body: memoryview) -> None:
        self._core.forget(node, *_fields(p.FORGET_IN, body))

    async def batch_forget(self, node: int, tid: int, body: memoryview) -> None:
        count, _ = _fields(p.BATCH_FORGET_IN, body)
        pairs = body[p.BATCH_FORGET_IN.size :]
        if len(pairs) != count * p.FORGET_ONE.size:
            raise error(errno.EINVAL, detail=f"{count} of BATCH_FORGET in {len(pairs)} bytes")
        for ino, lookups in p.FORGET_ONE.iter_unpack(pairs):
            self._core.forget(ino, lookups)

    async def interrupt(self, node: int, tid: int, body: memoryview) -> None:
        self._interrupt(*_fields(p.INTERRUPT_IN, body))

    async def getattr(self, node: int, tid: int, body: memoryview) -> bytes:
        return _attr(await self._core.getattr(node))

    async def setattr(self, node: int, tid: int, body: memoryview) -> bytes:
        fields = _fields(p.SETATTR_IN, body)
        valid, fh, size, mode, uid, gid = (fields[i] for i in (0, 2, 3, 11, 13, 14))
        done = await self._core.setattr(
            node, fh if valid & Valid.FH else None,
            size=size if valid & Valid.SIZE else None,
            mode=mode if valid & Valid.MODE else None,
            owner=(uid if valid & Valid.UID else None, gid if valid & Valid.GID else None),
        )  # fmt: skip
        return _attr(done)

    async def mknod(self, node: int, tid: int, body: memoryview) -> bytes:
        mode = _fields(p.MKNOD_IN, body)[0]
        (name,) = _names(body[p.MKNOD_IN.size :], 1)
        return _entry(await self._core.mknod(node, name, mode))

    async def mkdir(self, node: int, tid: int, body: memoryview) -> bytes:
        (name,) = _names(body[p.MKDIR_IN.size :], 1)
        return _entry(await self._core.mkdir(node, name))

    async def remove(self, node: int, tid: int, body: memoryview) -> bytes:
        (name,) = _names(body, 1)
        await self._core.remove(node, name, tid)
        return b""

    async def rename(self, node: int, tid: int, body: memoryview) -> bytes:
        (into,) = _fields(p.RENAME_IN, body)
        old, new = _names(body[p.RENAME_IN.size :], 2)
        await self._core.rename(node, old, into, new, 0)
        return b""

    async def rename2(self, node: int, tid: int, body: memoryview) -> bytes:
        into, flags, _ = _fields(p.RENAME2_IN, body)
        old, new = _names(body[p.RENAME2_IN.size :], 2)
        await self._core.rename(node, old, into, new, flags)
        return b""

    async def open(self, node: int, tid: int, body: memoryview) -> bytes:
        flags = _fields(p.OPEN_IN, body)[0]
        return self._opened(await self._core.open(node, flags, tid), node)

    def _opened(self, opened: Opened, node: int) -> bytes:
        number = self._backings.hold(opened.fh, node, opened.descriptor)
        flags = FOpen.PARALLEL_DIRECT_WRITES if opened.commits else FOpen.NOFLUSH
        if not number or opened.descriptor is None:
            flags |= FOpen.DIRECT_IO  # it comes to us, in spite of a backing
        return p.OPEN_OUT.pack(opened.fh, flags | FOpen.PASSTHROUGH if number else flags, number)

    async def create(self, node: int, tid: int, body: memoryview) -> bytes:
        flags = _fields(p.CREATE_IN, body)[0]
        (name,) = _names(body[p.CREATE_IN.size :], 1)
        opened, attr = await self._core.create(node, name, flags, tid)
        return _entry(attr) + self._opened(opened, attr.node)

    def read(self, node: int, tid: int, body: memoryview) -> bytes | Call:
        fh, offset, size, *_ = p.READ_IN.unpack_from(body)
        if size > MAX_READ:
            raise error(errno.EINVAL, detail=f"a read of {size} bytes")
        known = self._core.known(fh, size, offset)
        return self._core.read(fh, size, offset) if known is None else known

    def write(self, node: int, tid: int, body: memoryview) -> bytes | Call:
        fh, offset, size, *_ = p.WRITE_IN.unpack_from(body)
        data = bytes(body[p.WRITE_IN.size :])
        if size != len(data):
            raise error(errno.EINVAL, detail=f"a write of {size} bytes with {len(data)}")
        return p.WRITE_OUT.pack(size, 0) if self._core.takes(fh, data, offset) else self._write(fh, data, offset)

    async def _write(self, fh: int, data: bytes, offset: int) -> bytes:
        return p.WRITE_OUT.pack(await self._core.write(fh, data, offset), 0)

    async def flush(self, node: int, tid: int, body: memoryview) -> bytes:
        await self._core.flush(_fields(p.FLUSH_IN, body)[0])
        return b""

    async def fsync(self, node: int, tid: int, body: memoryview) -> bytes:
        await self._core.flush(_fields(p.FSYNC_IN, body)[0])
        return b""

    async def release(self, node: int, tid: int, body: memoryview) -> bytes:
        fh = _fields(p.RELEASE_IN, body)[0]
        self._backings.drop(fh)
        await self._core.release(fh)
        return b""

    async def poll(self, node: int, tid: int, body: memoryview) -> bytes:
        fh, key, flags, _ = _fields(p.POLL_IN, body)
        wake = functools.partial(self._wake, key) if flags & p.POLL_SCHEDULE_NOTIFY else None
        return p.POLL_OUT.pack(self._core.poll(fh, wake), 0)

    async def opendir(self, node: int, tid: int, body: memoryview) -> bytes:
        fh, keeps = await self._core.directories.open(node, tid)
        return p.OPEN_OUT.pack(fh, FOpen.CACHE_DIR | FOpen.KEEP_CACHE if keeps else 0, 0)

    async def readdir(self, node: int, tid: int, body: memoryview) -> bytes:
        return await self._list(body, is_plus=False)

    async def readdirplus(self, node: int, tid: int, body: memoryview) -> bytes:
        return await self._list(body, is_plus=True)

    async def _list(self, body: memoryview, *, is_plus: bool) -> bytes:
        fh, index, size, *_ = _fields(p.READ_IN, body)
        if size > MAX_READ:
            raise error(errno.EINVAL, detail=f"a listing of {size} bytes")
        entries: list[bytes] = []
        room = size

        def emit(name: bytes, attr: Attr, following: int) -> bool:
            nonlocal room
            dirent = p.DIRENT.pack(attr.ino, following, len(name), _stat.S_IFMT(attr.mode) >> 12)
            entry = (_entry(attr) if is_plus else b"") + dirent + name + _PAD[: -len(name) % 8]
            if len(entry) > room:
                return False
            room -= len(entry)
            entries.append(entry)
            return True

        await self._core.directories.read(fh, index, emit, is_lookup=is_plus)
        return b"".join(entries)

    async def releasedir(self, node: int, tid: int, body: memoryview) -> bytes:
        self._core.directories.close(_fields(p.RELEASE_IN, body)[0])
        return b""

    async def nothing(self, node: int, tid: int, body: memoryview) -> bytes:
        return b""

    async def statfs(self, node: int, tid: int, body: memoryview) -> bytes:
        used, total = await self._core.statfs()
        free = max(0, total - used) // _BLOCK
        return p.STATFS_OUT.pack(total // _BLOCK, free, free, 0, 0, _BLOCK, _NAME_MAX, _BLOCK, 0)


def _refused(code: int) -> Row:
    return Row(Operations.nothing, refusal=code)


UNKNOWN: Final = _refused(errno.EOPNOTSUPP)
_ABSENT: Final = _refused(errno.ENOSYS)  # the kernel never asks again
_ABSENT_OPS: Final = (
    Op.SETXATTR, Op.GETXATTR, Op.LISTXATTR, Op.REMOVEXATTR, Op.ACCESS, Op.IOCTL, Op.LSEEK, Op.COPY_FILE_RANGE,
    Op.COPY_FILE_RANGE_64, Op.FALLOCATE, Op.STATX,
)  # fmt: skip

SILENT: Final = frozenset({Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT})
"""Nobody waits for their answers, not even for a refusal."""

TABLE: Final[dict[int, Row]] = {
    Op.LOOKUP: Row(Operations.lookup, 2, can_stop=True),
    Op.FORGET: Row(Operations.forget, p.FORGET_IN.size),
    Op.BATCH_FORGET: Row(Operations.batch_forget, p.BATCH_FORGET_IN.size),
    Op.INTERRUPT: Row(Operations.interrupt, p.INTERRUPT_IN.size),
    Op.GETATTR: Row(Operations.getattr, p.GETATTR_IN.size, can_stop=True),
    Op.SETATTR: Row(Operations.setattr, p.SETATTR_IN.size),
    Op.READLINK: _refused(errno.EINVAL),
    Op.SYMLINK: _refused(errno.EPERM),
    Op.LINK: _refused(errno.EPERM),
    Op.MKNOD: Row(Operations.mknod, p.MKNOD_IN.size),
    Op.MKDIR: Row(Operations.mkdir, p.MKDIR_IN.size),
    Op.UNLINK: Row(Operations.remove),
    Op.RMDIR: Row(Operations.remove),
    Op.RENAME: Row(Operations.rename, p.RENAME_IN.size),
    Op.RENAME2: Row(Operations.rename2, p.RENAME2_IN.size),
    Op.OPEN: Row(Operations.open, p.OPEN_IN.size),
    Op.CREATE: Row(Operations.create, p.CREATE_IN.size),
    Op.READ: Row(Operations.read, p.READ_IN.size, can_stop=True),
    Op.WRITE: Row(Operations.write, p.WRITE_IN.size),
    Op.FLUSH: Row(Operations.flush, p.FLUSH_IN.size),
    Op.FSYNC: Row(Operations.fsync, p.FSYNC_IN.size),
    Op.RELEASE: Row(Operations.release, p.RELEASE_IN.size),
    Op.POLL: Row(Operations.poll, p.POLL_IN.size),
    Op.OPENDIR: Row(Operations.opendir, p.OPEN_IN.size),
    Op.READDIR: Row(Operations.readdir, p.READ_IN.size, can_stop=True),
    Op.READDIRPLUS: Row(Operations.readdirplus, p.READ_IN.size, can_stop=True),
    Op.RELEASEDIR: Row(Operations.releasedir, p.RELEASE_IN.size),
    Op.FSYNCDIR: Row(Operations.nothing),
    Op.STATFS: Row(Operations.statfs, can_stop=True),
    Op.DESTROY: Row(Operations.nothing),
    **dict.fromkeys(_ABSENT_OPS, _ABSENT),
}
