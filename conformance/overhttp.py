"""A `FileService` whose every operation is a request to an HTTP face: the suites ask it what they ask a tree.

It adds nothing of its own: what HTTP cannot say is in the table of `conformance.drivers`, not worked around here.
"""

from __future__ import annotations

import errno
import stat as _stat
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

import anyio
import httpx

from agentfs.client import nobody
from agentfs.errors import error, from_wire, row_of, told
from agentfs.service import FileHandle, FileService
from agentfs.types import NO_WANT, Kind, Mode, Path, Principal, Qid, Record, Stat, Want, parse_time

_ANSWER_S = 60.0


class Wire:
    """One client with one token; requests that raise the `OSError` the answer names."""

    def __init__(self, url: str, token: str) -> None:
        self.client = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=_ANSWER_S, trust_env=False,
            verify=nobody(),
        )  # fmt: skip

    async def ask(self, method: str, path: str, **rest: Any) -> httpx.Response:
        """The answer to one request; a refused one raises its errno."""
        answer = await self.client.request(method, target(path), **rest)
        if answer.is_error:
            raise failure(answer.status_code, answer.content, path)
        return answer


def target(path: str) -> str:
    """*path* percent-encoded."""
    return "/" + quote(path, safe="/@")


def failure(status: int, body: bytes, path: str) -> OSError:
    """The error an answer names; an answer that names none, or with another's status, is a bug of the face."""
    exc = from_wire(status, body, path)
    if told(body) is None:
        return OSError(errno.EPROTO, f"status {status} without an error body: {body[:80]!r}", path)
    if row_of(exc).status != status:
        return OSError(errno.EPROTO, f"{row_of(exc).name} came with status {status}", path)
    return exc


def entry_stat(doc: dict[str, Any]) -> Stat:
    """A line of a listing, or ``?meta``, as a `Stat`; it has no identity number."""
    kind = Kind(doc["kind"])
    mode = (_stat.S_IFDIR if kind is Kind.DIR else _stat.S_IFREG) | int(doc["mode"], 8)
    mtime = parse_time(doc["mtime"]) if doc["mtime"] else 0
    return Stat(doc["name"], mode, doc["size"], mtime, Qid(0, doc["version"]), kind)


class HttpTree(FileService):
    """The tree behind *wire*. Identity is the token's, so `attach` refuses."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def attach(self, principal: Principal) -> FileService:
        raise error(errno.EOPNOTSUPP, detail="a token is attached already")

    async def stat(self, path: Path) -> Stat:
        return entry_stat((await self._wire.ask("GET", path, params={"meta": "1"})).json())

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        params = {"cursor": after} if after else {}
        answer = await self._wire.ask("GET", f"{path}/" if path else path, params=params)
        return [entry_stat(doc) for doc in answer.json()["entries"]][:limit]

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        name = path.rpartition("/")[2]
        if "@" in name:
            if Mode.WRITE in mode:
                await self._wire.ask("PUT", path, content=b"")
            base, _, cursor = path.rpartition("@")
            return await Watch.start(self._wire, base, None if cursor == "follow" else cursor)
        st = await self.stat(path)
        if st.is_dir:
            raise error(errno.EISDIR, path)
        if st.kind in (Kind.DATA, Kind.FILE) and Mode.WRITE in mode:
            return await Draft.start(self._wire, path, mode, st.kind, want.match)
        if st.kind in (Kind.CALL, Kind.QUEUE, Kind.CTL) and Mode.WRITE in mode:
            return Post(self._wire, path, want)
        return Body(self._wire, path, (await self._wire.ask("GET", path)).content)

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        return Draft(self._wire, path, b"", is_new=want.exclusive, is_document=False)

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> None:
        await self._wire.ask("MKCOL", path)

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> None:
        await self._wire.ask("DELETE", path)

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        headers = {"Destination": target(new)} | ({"Overwrite": "F"} if want.exclusive else {})
        await self._wire.ask("MOVE", old, headers=headers)


class Body(FileHandle):
    """A GET: its answer is the snapshot; a partial read is a Range of a request of its own, which must agree."""

    def __init__(self, wire: Wire, path: str, snapshot: bytes) -> None:
        self._wire, self._path, self._snapshot = wire, path, snapshot

    async def read(self, size: int, offset: int) -> bytes:
        if not size or offset >= len(self._snapshot):
            return b""
        return self._snapshot[offset : offset + size]

    async def ranged(self, size: int, offset: int) -> bytes:
        """The same bytes by a Range request; past the end it is empty (416)."""
        headers = {"Range": f"bytes={offset}-{offset + size - 1}"}
        answer = await self._wire.client.get(target(self._path), headers=headers)
        return b"" if answer.status_code == 416 else answer.content


class Post(FileHandle):
    """A POST a write; reading gives its answer, or before any write what a GET gives."""

    def __init__(self, wire: Wire, path: str, want: Want) -> None:
        self._wire, self._path, self._answer = wire, path, b""
        self._headers = {"Idempotency-Key": want.key} if want.key else {}
        self._is_asked = False

    async def read(self, size: int, offset: int) -> bytes:
        if not self._is_asked:
            self._answer, self._is_asked = (await self._wire.ask("GET", self._path)).content, True
        return self._answer[offset : offset + size]

    async def write(self, data: bytes, offset: int) -> int:
        answer = (await self._wire.ask("POST", self._path, content=data, headers=self._headers)).content
        self._answer = self._answer + answer if self._is_asked else answer
        self._is_asked = True
        return len(data)


class Draft(FileHandle):
    """Bytes kept here until a flush or the close sends them as one PUT; a document's write is a PUT at once."""

    def __init__(self, wire: Wire, path: str, value: bytes, *, is_new: bool, is_document: bool) -> None:
        self._wire, self._path, self._buffer = wire, path, bytearray(value)
        self._headers = {"If-None-Match": "*"} if is_new else {}
        self._is_document, self._is_dirty, self._appends = is_document, not value and not is_document, False

    @classmethod
    async def start(cls, wire: Wire, path: str, mode: Mode, kind: Kind, match: int | None) -> Draft:
        """A draft of an existing file, empty or with its content."""
        is_document = kind is Kind.FILE
        is_empty = Mode.TRUNCATE in mode or is_document
        value = b"" if is_empty else (await wire.ask("GET", path)).content
        draft = cls(wire, path, value, is_new=False, is_document=is_document)
        draft._appends, draft._is_dirty = Mode.APPEND in mode, Mode.TRUNCATE in mode and not is_document
        draft._headers = {"If-Match": f'"{match}"'} if match is not None else {}
        return draft

    async def read(self, size: int, offset: int) -> bytes:
        return bytes(self._buffer[offset : offset + size])

    async def write(self, data: bytes, offset: int) -> int:
        if self._is_document:
            await self._put(data)
            return len(data)
        if self._appends:
            await self._wire.ask("POST", self._path, content=data)
            self._buffer += data
            return len(data)
        if offset > len(self._buffer):
            self._buffer.extend(bytes(offset - len(self._buffer)))
        self._buffer[offset : offset + len(data)] = data
        self._is_dirty = True
        return len(data)

    async def truncate(self, size: int) -> None:
        del self._buffer[size:]
        self._buffer.extend(bytes(size - len(self._buffer)))
        self._is_dirty = True

    async def flush(self, *, final: bool = False) -> None:
        if self._is_dirty:
            self._is_dirty = False
            await self._put(bytes(self._buffer))

    async def _put(self, data: bytes) -> None:
        headers, self._headers = self._headers, {}
        await self._wire.ask("PUT", self._path, content=data, headers=headers)

    async def aclose(self) -> None:
        try:
            await self.flush(final=True)
        except OSError:
            return  # as for every close, nobody is told


class Watch(FileHandle):
    """``?watch=1``; a cancelled read drops the connection and the next one resumes behind the last record."""

    def __init__(self, wire: Wire, path: str, cursor: str | None) -> None:
        self._wire, self._path, self._cursor = wire, path, cursor
        self._events: AsyncGenerator[tuple[str, str, bytes], None] | None = None
        self._rest, self._is_over = b"", False

    @classmethod
    async def start(cls, wire: Wire, path: str, cursor: str | None) -> Watch:
        """A watch whose request has been accepted."""
        watch = cls(wire, path, cursor)
        await watch._connect()
        return watch

    async def _connect(self) -> None:
        events = _events(self._wire, self._path, self._cursor)
        first = await _taken(events)
        assert first[0] == "open", first
        self._events = events

    async def next(self) -> Record | None:
        while not self._is_over:
            if self._events is None:
                await self._connect()
            assert self._events is not None
            events, self._events = self._events, None
            kind, cursor, data = await _taken(events)
            if kind == "closing":  # whoever asks again gets the records, or the error with its status
                await events.aclose()
                continue
            self._events = events
            if kind != "end":
                self._cursor = cursor
                return Record(cursor, data + b"\n")
            self._is_over = True
        return None

    async def read(self, size: int, offset: int) -> bytes:
        if not self._rest:
            record = await self.next()
            self._rest = record.line if record else b""
        out, self._rest = self._rest[:size], self._rest[size:]
        return out

    async def aclose(self) -> None:
        self._is_over = True
        events, self._events = self._events, None
        if events is not None:
            with anyio.CancelScope(shield=True):
                await events.aclose()


async def _taken(events: AsyncGenerator[tuple[str, str, bytes], None]) -> tuple[str, str, bytes]:
    """The next of *events*, which are over and closed when that fails or is cancelled."""
    try:
        return await anext(events)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await events.aclose()
        raise


async def _events(wire: Wire, path: str, cursor: str | None) -> AsyncGenerator[tuple[str, str, bytes], None]:
    """``open``, then (event, id, data) as they come; by turns with ``?since`` and ``Last-Event-ID``."""
    params, headers = {"watch": "1"}, {}
    if cursor is not None and len(cursor) % 2:
        params["since"] = cursor
    elif cursor is not None:
        headers["Last-Event-ID"] = cursor
    timeout = httpx.Timeout(_ANSWER_S, read=None)
    async with wire.client.stream("GET", target(path), params=params, headers=headers, timeout=timeout) as answer:
        if answer.is_error:
            raise failure(answer.status_code, await answer.aread(), path)
        yield "open", "", b""
        kind, number, data = "", "", b""
        async with aclosing(answer.aiter_lines()) as lines:  # type: ignore[type-var]
            async for line in lines:
                name, _, value = line.partition(": ")
                if not line and kind:
                    yield kind, number, data
                    kind, data = "", b""
                elif name == "event":
                    kind = value
                elif name == "id":
                    number = value
                elif name == "data":
                    data = value.encode()
