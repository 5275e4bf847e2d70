"""What every open file of a tree shares: closing, one writer at a time, and where errors are kept.

Also the handles with bytes at offsets: `DataHandle`, `LogHandle`, `FollowHandle`. No units are cut here.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import anyio

from agentfs.errors import detail_of, error, row_of
from agentfs.limits import Limits
from agentfs.record import Log
from agentfs.service import FileHandle
from agentfs.tree.nodes import At, Data
from agentfs.types import Mode, Path, Record


class Errors:
    """The last error of a group of trees, readable in their ``ctl``; each is passed on to *report* as well."""

    def __init__(self, report: Callable[[Path, OSError], None] | None = None) -> None:
        self.last = ""
        self._report = report

    def add(self, path: Path, exc: OSError) -> None:
        """Remember what a mount could only say as a number."""
        self.last = f"{row_of(exc).name} {path}: {detail_of(exc)}"
        if self._report is not None:
            self._report(path, exc)


@dataclass(frozen=True, slots=True)
class Opening:
    """What every handle is opened with; ``on_close`` runs once, at the close. ``pays``: see `nodes.Leaf`."""

    at: At
    mode: Mode
    errors: Errors
    limits: Limits
    on_close: Callable[[], None] | None = None
    pays: bool = False


class TreeHandle(FileHandle):
    """Runs `_read _write _flush` of its subclasses one at a time, remembers their errors, refuses after closing.

    One whose reads and writes never wait needs no ``_turn`` for them.
    """

    def __init__(self, opening: Opening) -> None:
        self._at, self._mode, self._errors = opening.at, opening.mode, opening.errors
        self._limits, self._on_close = opening.limits, opening.on_close
        self._purse = None if opening.pays else opening.at.want.purse
        self._turn: AbstractAsyncContextManager[None]
        self._turn = self._lock = anyio.Lock(fast_acquire=True)
        self._closed = self._is_discarded = False

    def discard(self) -> None:
        self._is_discarded = True

    def _paying(self, doc: bytes) -> AbstractAsyncContextManager[None]:
        """Around applying *doc*: has it paid for where the mount it came through asks a price. EDQUOT, EPERM."""
        return self._purse.paying(self._at.path, doc) if self._purse is not None else nullcontext()

    def _check(self, need: Mode) -> None:
        if self._closed:
            raise error(errno.EBADF, self._at.path)
        if need not in self._mode:
            raise error(errno.EBADF, self._at.path, "not opened for this")

    async def read(self, size: int, offset: int) -> bytes:
        self._check(Mode.READ)
        try:
            async with self._turn:
                return await self._read(size, offset)
        except OSError as exc:
            self._errors.add(self._at.path, exc)
            raise

    async def write(self, data: bytes, offset: int) -> int:
        self._check(Mode.WRITE)
        try:
            async with self._turn:
                return await self._write(data, offset)
        except OSError as exc:
            self._errors.add(self._at.path, exc)
            raise

    async def flush(self, *, final: bool = False) -> None:
        if self._closed or self._is_discarded or Mode.WRITE not in self._mode:
            return
        try:
            async with self._lock:
                await self._flush(final)
        except OSError as exc:
            self._errors.add(self._at.path, exc)
            raise

    async def aclose(self) -> None:
        if self._closed:
            return
        try:
            await self.flush(final=True)
        except OSError:
            return  # kept in self._errors: a close has nobody to tell
        finally:
            self._close()

    def _close(self) -> None:
        was_closed, self._closed = self._closed, True
        if self._on_close is not None and not was_closed:
            self._on_close()

    async def _read(self, size: int, offset: int) -> bytes:
        raise error(errno.EBADF, self._at.path)

    async def _write(self, data: bytes, offset: int) -> int:
        raise error(errno.EBADF, self._at.path)

    async def _flush(self, final: bool) -> None:
        """Nothing to commit."""


class DataHandle(TreeHandle):
    """A private copy of a `Data` value with random access; the copy is stored whole."""

    def __init__(self, node: Data, value: bytes, opening: Opening) -> None:
        super().__init__(opening)
        self._turn = nullcontext()
        is_cut = Mode.TRUNCATE in opening.mode
        self._node, self._buffer = node, bytearray(b"" if is_cut else value)
        self._is_dirty, self._is_cut, self._is_broken = False, is_cut and bool(value), False

    @property
    def size(self) -> int:
        return len(self._buffer)

    @property
    def content(self) -> bytes | None:
        return bytes(self._buffer) if self._mode is Mode.READ else None

    async def _read(self, size: int, offset: int) -> bytes:
        return bytes(self._buffer[offset : offset + size])

    async def _write(self, data: bytes, offset: int) -> int:
        begin = len(self._buffer) if Mode.APPEND in self._mode else offset
        self._fit(begin + len(data))
        if begin > len(self._buffer):
            self._buffer.extend(bytes(begin - len(self._buffer)))
        self._put(data, begin)
        return len(data)

    def write_nowait(self, data: bytes, offset: int) -> bool:
        begin = len(self._buffer) if Mode.APPEND in self._mode else offset
        if self._closed or Mode.WRITE not in self._mode or begin > len(self._buffer):
            return False
        if is_taken := self._fits(begin + len(data)):
            self._put(data, begin)
        return is_taken

    def _put(self, data: bytes, begin: int) -> None:
        self._buffer[begin : begin + len(data)] = data
        self._is_dirty = True

    async def truncate(self, size: int) -> None:
        self._check(Mode.WRITE)
        self._fit(size)
        del self._buffer[size:]
        self._buffer.extend(bytes(size - len(self._buffer)))
        self._is_dirty = True

    def _fits(self, size: int) -> bool:
        return not self._is_broken and size <= self._node.limit

    def _fit(self, size: int) -> None:
        if not self._fits(size):
            self._is_broken = True  # part of a value is no value: nothing of it is stored
            raise error(errno.EFBIG, self._at.path, f"value over {self._node.limit} bytes")

    async def _flush(self, final: bool) -> None:
        # a shell flushes between `>` and the first write: an emptied value is stored only when nothing follows
        if self._is_broken:
            raise error(errno.EFBIG, self._at.path, f"value over {self._node.limit} bytes")
        if not self._is_dirty and not (final and self._is_cut):
            return
        value, was_dirty, was_cut = bytes(self._buffer), self._is_dirty, self._is_cut
        self._is_dirty = self._is_cut = False  # what is written meanwhile is of the next commit
        try:
            async with self._paying(value):
                await self._node.write(self._at, value)
        except BaseException:
            self._is_dirty, self._is_cut = self._is_dirty or was_dirty, self._is_cut or was_cut
            raise


class LogHandle(TreeHandle):
    """One generation of a log, as far as it goes now; it only grows."""

    def __init__(self, log: Log, generation: int, opening: Opening) -> None:
        super().__init__(opening)
        self._log, self._generation = log, generation

    async def _read(self, size: int, offset: int) -> bytes:
        return await self._log.read(self._generation, size, offset)


class Following(Protocol):
    """A watcher's place in a log, as `agentfs.record.Follow` has it for a log of this process."""

    def is_ready(self) -> bool:
        """True when `next` will not block."""
        ...

    async def next(self) -> Record | None:
        """The next record, waiting for it; None at the end. Cancelled, it has lost nothing."""
        ...

    def next_nowait(self) -> Record | None:
        """The next record if it is at hand, else None."""
        ...

    async def wait(self) -> None:
        """Return when `is_ready` may have become true."""
        ...


class FollowHandle(TreeHandle):
    """The blocking twin of a log: bytes or records from its place on."""

    def __init__(self, follow: Following, opening: Opening) -> None:
        super().__init__(opening)
        self._follow, self._rest = follow, b""
        self._blocked: deque[anyio.CancelScope] = deque()

    def is_ready(self) -> bool:
        return bool(self._rest) or self._closed or self._follow.is_ready()

    async def wait_ready(self) -> None:
        if not self.is_ready():
            with self._until_closed():
                await self._follow.wait()

    async def _read(self, size: int, offset: int) -> bytes:
        if not self._rest:
            record = await self._next()
            self._rest = record.line if record else b""
        while len(self._rest) < size and (more := self._follow.next_nowait()) is not None:
            self._rest += more.line
        out, self._rest = self._rest[:size], self._rest[size:]
        return out

    async def next(self) -> Record | None:
        self._check(Mode.READ)
        return await self._next()

    async def _next(self) -> Record | None:
        with self._until_closed():
            return await self._follow.next()
        raise error(errno.EBADF, self._at.path)

    @contextmanager
    def _until_closed(self) -> Iterator[None]:
        """The body is left when the handle is closed."""
        with anyio.CancelScope() as scope:
            self._blocked.append(scope)
            try:
                yield
            finally:
                self._blocked.remove(scope)

    async def aclose(self) -> None:
        for scope in self._blocked:
            scope.cancel()
        self._close()
