"""`Pieces`: an answer that is read from a large file while it is sent, so that no face holds the whole of one.

Which part of the file that is, is decided in `answers`.
"""

from __future__ import annotations

import logging
from typing import Final

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agentfs.faces.http import answers
from agentfs.service import FileHandle
from agentfs.types import Path, Stat

log = logging.getLogger(__name__)

PIECE: Final = 1 << 20


async def large(handle: FileHandle, path: Path, st: Stat, request: Request, *, is_head: bool) -> Response:
    """The answer to GET or HEAD of the open file *handle*, which is closed however that ends."""
    size = handle.size or 0
    part = answers.part_of(path, st, size, answers.media_type(st.kind, b""), request.headers, is_head=is_head)
    if isinstance(part, answers.Part) and not is_head:
        return Pieces(handle, part)
    await handle.aclose()
    return Response(b"", part.status, part.headers) if isinstance(part, answers.Part) else part


class Pieces(Response):
    """One part of an open file. A file that ends early, or fails, ends the connection: that is all HTTP has for it."""

    def __init__(self, handle: FileHandle, part: answers.Part) -> None:
        super().__init__(b"", part.status, part.headers)
        self._handle, self._begin, self._end = handle, part.begin, part.end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_whole = False
        async with self._handle:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with anyio.create_task_group() as group:
                group.start_soon(_gone, receive, group.cancel_scope)
                is_whole = await self._send(send)
                group.cancel_scope.cancel()
            if is_whole:
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send) -> bool:
        at = self._begin
        try:
            while at < self._end and (piece := await self._handle.read(min(PIECE, self._end - at), at)):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                at += len(piece)
        except OSError as exc:
            log.warning("an answer was cut off: %s", exc)
        return at == self._end


async def _gone(receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel *scope* when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
