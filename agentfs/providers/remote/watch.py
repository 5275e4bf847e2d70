"""Following a stream of another runtime: `Watch`, a place in it that outlives its connections, and its handle.

What a record is, and where there is a gap, the other runtime says.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Final, TypeAlias

import anyio

from agentfs.errors import error
from agentfs.providers.remote.events import Event, Events
from agentfs.providers.remote.wire import Wire, stat_of
from agentfs.record import OLDEST
from agentfs.tree.handles import FollowHandle, Opening
from agentfs.types import Path, Record

Pause: TypeAlias = Callable[[float], Awaitable[None]]
FIRST_PAUSE_S: Final = 0.25
LAST_PAUSE_S: Final = 10.0
_CLOSE_S: Final = 2.0
_TRANSIENT: Final = frozenset(
    {errno.ENOTCONN, errno.ETIMEDOUT, errno.EAGAIN, errno.EMFILE, errno.ENOBUFS, errno.EREMOTEIO, errno.EINTR}
)


class _Connection:
    """One answer to ``?watch``: its bytes and what they were cut into so far."""

    def __init__(self, stack: AsyncExitStack, chunks: AsyncIterator[bytes]) -> None:
        self._stack, self.chunks, self.events = stack, chunks, Events()

    async def close(self) -> None:
        """Drop it, also when this task is being cancelled; nobody waits for a peer that says nothing."""
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _CLOSE_S):
            await self._stack.aclose()


class Watch:
    """Every record behind a cursor, in order, once, whatever becomes of the connection.

    A lost one is made anew behind the last record, with growing pauses; a cancelled wait drops it and loses nothing.
    Before the first record there is no cursor to go on from: then the log is read from its oldest record, and what is
    numbered below *since* (what was there at the opening) is left out.
    """

    def __init__(self, wire: Wire, path: Path, cursor: str | None, since: int, pause: Pause) -> None:
        self._wire, self._path, self._cursor, self._since, self._pause = wire, path, cursor, since, pause
        self._connection: _Connection | None = None
        self._ready: deque[Record] = deque()
        self._is_over = self._is_skipping = False
        self._turn = anyio.Lock()
        self._wait = FIRST_PAUSE_S

    @classmethod
    async def start(cls, wire: Wire, path: Path, cursor: str | None, since: int, pause: Pause = anyio.sleep) -> Watch:
        """A watch of the stream *path* behind *cursor* (None: from now on, its next record having number *since*).

        It has been accepted. ENOENT, EOPNOTSUPP, EINVAL for a malformed cursor, EMFILE, ENOTCONN.
        """
        watch = cls(wire, path, cursor, since, pause)
        await watch._connect({} if cursor is None else {"since": cursor})
        return watch

    def is_ready(self) -> bool:
        """True when `next` will not block."""
        return bool(self._ready) or self._is_over

    async def next(self) -> Record | None:
        """The next record, waiting for it; None at the end of a finished stream. EACCES, ENOENT: it is gone."""
        while not self._ready:
            if self._is_over:
                return None
            await self.wait()
        return self._ready.popleft()

    def next_nowait(self) -> Record | None:
        """The next record if it is here, else None."""
        return self._ready.popleft() if self._ready else None

    async def wait(self) -> None:
        """Return when `next` will not block."""
        async with self._turn:
            while not self.is_ready():
                try:
                    await self._take()
                except OSError as exc:
                    if exc.errno not in _TRANSIENT:
                        raise
                    await self._pause(self._wait)
                    self._wait = min(self._wait * 2, LAST_PAUSE_S)

    async def aclose(self) -> None:
        """Drop the connection; whoever waits has been cancelled. Idempotent, never fails."""
        self._is_over = True
        await self._drop()

    async def _take(self) -> None:
        try:
            connection = self._connection or await self._resume()
            with self._wire.translated(self._path):
                chunk = await anext(connection.chunks, b"")
            if not chunk:
                raise error(errno.ENOTCONN, self._path, "the stream was closed")
            for event in connection.events.feed(chunk):
                self._see(event)
        except BaseException:
            await self._drop()
            raise

    def _see(self, event: Event) -> None:
        if event.kind == "end":
            self._is_over = True
        elif event.kind == "closing":
            raise error(errno.ENOTCONN, self._path)
        elif event.id:
            self._wait, self._cursor = FIRST_PAUSE_S, event.id
            number = event.id.rpartition("-")[2]
            if not (self._is_skipping and number.isdecimal() and int(number) < self._since):
                self._is_skipping = False
                self._ready.append(Record(event.id, event.data + b"\n"))

    async def _resume(self) -> _Connection:
        if self._cursor is None:
            found = stat_of((await self._wire.ask("GET", self._path, params={"meta": "1"})).content, self._path)
            self._is_skipping = found.qid.version >= self._since  # a log that began anew has numbers of its own
        return await self._connect({"since": self._cursor or OLDEST})

    async def _connect(self, params: dict[str, str]) -> _Connection:
        async with AsyncExitStack() as stack:
            answer = await stack.enter_async_context(self._wire.stream(self._path, {"watch": "1", **params}))
            if not answer.headers.get("Content-Type", "").startswith("text/event-stream"):
                raise error(errno.EOPNOTSUPP, self._path, "the answer is not an event stream")
            if self._is_over:  # closed meanwhile
                raise error(errno.EBADF, self._path)
            self._connection = _Connection(stack.pop_all(), answer.aiter_raw())
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


class WatchHandle(FollowHandle):
    """An open ``X@follow`` or ``X@<cursor>``; its reads outlast the other runtime's going and coming back."""

    def __init__(self, watch: Watch, opening: Opening) -> None:
        super().__init__(watch, opening)
        self._watch = watch

    async def aclose(self) -> None:
        await super().aclose()
        await self._watch.aclose()
