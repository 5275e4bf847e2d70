"""``GET ?watch=1``: a stream as server-sent events, each with its cursor as id, resumable, ended on drain.

What a record is, and when there is a gap, is the stream's own matter.
"""

from __future__ import annotations

import errno
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from agentfs.errors import error
from agentfs.faces.http.files import Ask
from agentfs.record import Pulse
from agentfs.service import FileHandle
from agentfs.types import Kind, Mode, Path, Principal

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15
_CURSOR: Final = re.compile(r"0|[0-9A-Za-z]{1,64}-[0-9]{1,18}")


class Watchers:
    """Every open watch, counted per principal; `close` ends them all. ``ending`` fires when it begins."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[FileHandle] = set()
        self._count: Counter[Principal] = Counter()
        self.is_closing, self.ending = False, Pulse()

    async def watch(self, ask: Ask, principal: Principal) -> Response:
        """Answer with the records behind the cursor asked for. EOPNOTSUPP for no stream, EINVAL, EMFILE, ENOTCONN."""
        since, principal = _since(ask), principal.bearer
        if (await ask.tree.stat(ask.path)).kind is not Kind.STREAM:
            raise error(errno.EOPNOTSUPP, ask.path, "only a stream can be watched")
        if self._count[principal] >= self._limit:
            raise error(errno.EMFILE, ask.path, f"{self._limit} watchers")
        self._count[principal] += 1
        try:
            handle = await ask.tree.open(Path(f"{ask.path}@{since}"), Mode.READ)
        except BaseException:
            self._leave(principal)
            raise
        self._open.add(handle)
        if self.is_closing:  # it began while this one was being opened
            await handle.aclose()
        return Watch(self, handle, principal)

    async def release(self, handle: FileHandle, principal: Principal) -> None:
        """Close one watch and give its place back."""
        self._open.discard(handle)
        self._leave(principal)
        await handle.aclose()

    async def close(self) -> None:
        """End every watch with ``closing``."""
        self.is_closing = True
        self.ending.fire()
        for handle in list(self._open):
            await handle.aclose()

    def _leave(self, principal: Principal) -> None:
        self._count[principal] -= 1
        if not self._count[principal]:
            del self._count[principal]


class Watch(EventSourceResponse):
    """The answer to one watch; its handle is closed however it ends, even before its first event."""

    def __init__(self, watchers: Watchers, handle: FileHandle, principal: Principal) -> None:
        super().__init__(self._events(), ping=HEARTBEAT_SECONDS, ping_message_factory=_heartbeat)
        self._watchers, self._handle, self._principal = watchers, handle, principal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_ended = False

        async def sending(message: Message) -> None:
            nonlocal is_ended
            is_ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        async def receiving() -> Message:
            message = await receive()
            if is_ended and message["type"] == "http.disconnect":
                # the server's word for an answered request: acted on, it would cut off the end that is being sent
                await anyio.sleep_forever()
            return message

        try:
            await super().__call__(scope, receiving, sending)
        finally:
            await self._watchers.release(self._handle, self._principal)

    async def _events(self) -> AsyncIterator[ServerSentEvent]:
        try:
            while (record := await self._handle.next()) is not None:
                line = record.line.decode(errors="replace").rstrip("\n")
                yield ServerSentEvent(line, event="record", id=record.cursor, sep="\n")
            yield ServerSentEvent("", event="end", sep="\n")
        except OSError as exc:  # not ``end``: whoever asks again gets the records, or the error with its status
            if not self._watchers.is_closing:
                log.warning("watch ended: %s", exc)
            yield ServerSentEvent("", event="closing", sep="\n")


def _since(ask: Ask) -> str:
    """The cursor to begin behind; a reconnecting browser repeats its URL, so its header counts more. EINVAL."""
    since = ask.header("last-event-id") or ask.query("since")
    if since and not _CURSOR.fullmatch(since):
        raise error(errno.EINVAL, ask.path, f"since: {since[:60]!r}: want 0 or a cursor <epoch>-<seq>")
    return since or "follow"


def _heartbeat() -> ServerSentEvent:
    return ServerSentEvent(comment="heartbeat", sep="\n")
