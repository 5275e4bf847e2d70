"""``GET ?watch=1``: a stream as server-sent events, each with its cursor as id, resumable, ended on drain."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from agentfs.errors import error
from agentfs.faces.http.files import Ask
from agentfs.service import FileHandle
from agentfs.types import Kind, Mode, Path, Principal

HEARTBEAT_SECONDS = 15


class Watchers:
    """Every open watch, counted per principal; `close` ends them all."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[FileHandle, Principal] = {}
        self._count: Counter[Principal] = Counter()
        self.is_closing = False

    async def watch(self, ask: Ask, principal: Principal) -> Response:
        """Answer with the records behind the cursor asked for. EOPNOTSUPP for no stream, EINVAL, EMFILE."""
        if (await ask.tree.stat(ask.path)).kind is not Kind.STREAM:
            raise error(errno.EOPNOTSUPP, ask.path, "only a stream can be watched")
        since = ask.query("since") or ask.header("last-event-id")
        if since is not None and ("/" in since or since in ("", "follow")):
            raise error(errno.EINVAL, ask.path, f"since: {since[:60]!r}: want a cursor")
        if self._count[principal] >= self._limit:
            raise error(errno.EMFILE, ask.path, f"{self._limit} watchers")
        handle = await ask.tree.open(Path(f"{ask.path}@{since or 'follow'}"), Mode.READ)
        self._open[handle] = principal
        self._count[principal] += 1
        return EventSourceResponse(self._events(handle), ping=HEARTBEAT_SECONDS, sep="\n")

    async def _events(self, handle: FileHandle) -> AsyncIterator[ServerSentEvent]:
        try:
            while (record := await handle.next()) is not None:
                line = record.line.decode(errors="replace").rstrip("\n")
                yield ServerSentEvent(line, event="record", id=record.cursor)
            yield ServerSentEvent("", event="end")
        except OSError:
            yield ServerSentEvent("", event="closing" if self.is_closing else "end")
        finally:
            principal = self._open.pop(handle, None)
            if principal is not None:
                self._count[principal] -= 1
            await handle.aclose()

    async def close(self) -> None:
        """End every watch with ``closing``."""
        self.is_closing = True
        for handle in list(self._open):
            await handle.aclose()
