"""Handles on the files of another runtime: those of the tree's kit, with requests where a tree has functions.

A unit is a request, sent inside the write that completes it. No names are looked up here.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Final

from agentfs.errors import error
from agentfs.limits import Limits
from agentfs.providers.remote.wire import Wire, wishes
from agentfs.service import FileHandle
from agentfs.tree.documents import CtlHandle
from agentfs.tree.handles import Errors, Opening, TreeHandle
from agentfs.tree.nodes import At, Call, Ctl, Data, File, Queue
from agentfs.tree.opening import open_leaf
from agentfs.types import Kind, Mode, Path, Want, split

_PLAIN: Final = Limits()
# How large a document, a line or a value may be the other runtime says; here is only what one request can hold.
_LIMITS: Final = replace(_PLAIN, document_bytes=_PLAIN.body_bytes, ctl_line_bytes=_PLAIN.body_bytes)


class Remote:
    """The functions behind one open file. ``demand``: the headers that say what its PUT may replace."""

    def __init__(self, wire: Wire, path: Path, demand: dict[str, str]) -> None:
        self._wire, self._path, self._demand = wire, path, demand

    async def read(self, at: At) -> bytes:
        """GET."""
        return await self._wire.get(self._path)

    async def write(self, at: At, value: bytes) -> None:
        """PUT. ESTALE when the file is gone, or not the one that was wanted."""
        headers = {**wishes(at.want), **self._demand}
        await self._wire.ask("PUT", self._path, content=value, headers=headers)

    async def answer(self, at: At, request: bytes) -> bytes:
        """POST, for its answer."""
        return (await self._wire.ask("POST", self._path, content=request, headers=wishes(at.want))).content

    async def sink(self, at: At) -> Sender:
        """What a queue's handle writes to."""
        return Sender(self, at)


class Sender:
    """Messages of one handle to a queue; the place of each is taken when it is sent, none is held before."""

    def __init__(self, remote: Remote, at: At) -> None:
        self._remote, self._at = remote, at

    async def put(self, doc: bytes, *, is_json: bool) -> bytes:
        """Send one document; its receipt."""
        return await self._remote.answer(self._at, doc)

    def close(self) -> None:
        """Nothing is held."""


class LineHandle(CtlHandle):
    """A ctl file: each complete line is a POST; which verbs there are only the other runtime knows."""

    def __init__(self, remote: Remote, text: bytes, opening: Opening) -> None:
        super().__init__(Ctl(name=split(opening.at.path)[1], verbs={}), opening)
        self._remote, self._snapshot = remote, text

    async def _run(self, line: bytes) -> None:
        if line.strip():
            await self._remote.answer(self._at, line + b"\n")


class GrowingHandle(TreeHandle):
    """A stream as far as it goes when it is read: what was read stays, a read at the end asks whether there is more."""

    def __init__(self, wire: Wire, opening: Opening) -> None:
        super().__init__(opening)
        self._wire, self._held = wire, b""

    async def _read(self, size: int, offset: int) -> bytes:
        if offset >= len(self._held):
            await self._more()
        return self._held[offset : offset + size]

    async def _more(self) -> None:
        """Fetch what came behind the last line, together with that line: another one there means a rotated log."""
        path, begin = self._at.path, self._held.rfind(b"\n", 0, -1) + 1
        if not self._held:
            self._held = await self._wire.get(path)
            return
        try:
            answer = await self._wire.ask("GET", path, headers={"Range": f"bytes={begin}-"})
        except OSError as exc:
            if exc.errno != errno.EINVAL:  # 416: the file that has the name now is shorter
                raise
            return
        if answer.status_code == 206 and answer.content.startswith(self._held[begin:]):
            self._held = self._held[:begin] + answer.content


async def open_file(wire: Wire, path: Path, kind: Kind, mode: Mode, want: Want, *, is_new: bool) -> FileHandle:
    """A handle on the file *path* of *kind*, which is there unless it *is_new* and appears with its document.

    Opening a queue cannot reserve a place in it: a full one refuses the write (EAGAIN), not the open.
    """
    opening = Opening(At(path, {}, want=want), mode, Errors(), _LIMITS)
    name, is_read = split(path)[1], Mode.READ in mode
    existing = {} if want.match is not None else {"If-Match": "*"}
    remote = Remote(wire, path, ({"If-None-Match": "*"} if want.exclusive else {}) if is_new else existing)
    match kind:
        case Kind.STREAM:
            return GrowingHandle(wire, opening)
        case Kind.CTL:
            return LineHandle(remote, await wire.get(path) if is_read else b"", opening)
        case Kind.CALL:
            usage = (await wire.get(path)).decode(errors="replace") if is_read else ""
            return await open_leaf(Call(name=name, answer=remote.answer, usage=usage), opening, is_new=False)
        case Kind.QUEUE:
            return await open_leaf(Queue(name=name, read=remote.read, sink=remote.sink), opening, is_new=False)
        case Kind.DATA:
            data = Data(name=name, read=remote.read, write=remote.write, limit=_LIMITS.body_bytes)
            return await open_leaf(data, opening, is_new=is_new)
        case Kind.FILE:
            return await open_leaf(File(name=name, read=remote.read, write=remote.write), opening, is_new=is_new)
        case Kind.DIR:
            raise error(errno.EISDIR, path)
