"""A small synchronous client of the HTTP face: files by path, raising the errors the services raised.

It knows files only; what an agent is, is the command line's business.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeVar

import httpx
import msgspec

from agentctl import sse, wire
from agentctl.wire import Entry, Page
from agentfs.client import Trust, base, nobody, translated, unreachable
from agentfs.errors import error, from_wire

T = TypeVar("T")
Content = bytes | Iterable[bytes]

CONNECT_S: Final = 5.0
ANSWER_S: Final = 60.0
CALL_S: Final = 900.0  # a call may have to wait for an approver
SILENCE_S: Final = 45.0  # three heartbeats
FIRST_WAIT_S: Final = 0.25
LAST_WAIT_S: Final = 10.0
TRANSIENT: Final = frozenset(
    {errno.ENOTCONN, errno.ETIMEDOUT, errno.EAGAIN, errno.EMFILE, errno.ENOBUFS, errno.EREMOTEIO, errno.EINTR}
)


@dataclass(frozen=True, slots=True)
class Body:
    """An open answer: its kind (``X-Agentfs-Kind``), its version (ETag) and its bytes, to be taken once."""

    kind: str
    version: int | None
    chunks: Iterator[bytes]


class Client:
    """One runtime seen with one token; over https with what *trust* names, and then the token may be empty.

    With *auth* each request is signed instead. *socket*: reach it by this one in the file system, not by an address.

    Use it from one thread at a time; every call may block.

    Any call may also raise EACCES (token), ENOTCONN (no connection, or it broke) and ETIMEDOUT.
    """

    def __init__(
        self, url: str, token: str, *, trust: Trust | None = None, auth: httpx.Auth | None = None,
        socket: str = "", sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.url = base(url)
        self._sleep = sleep
        # The environment's proxies and .netrc must never see a token that is meant for this runtime alone.
        self._http = httpx.Client(
            headers=({"Authorization": f"Bearer {token}"} if token else {})
            | {"Accept-Encoding": "identity", "User-Agent": "agentctl"},
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            auth=auth,
            trust_env=False,
            transport=httpx.HTTPTransport(uds=socket) if socket else None,
            verify=(trust or Trust()).context() if self.url.startswith("https:") else nobody(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connections. Idempotent."""
        self._http.close()

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[Body]:
        """The content of a file as it arrives; an answer that ends early is ENOTCONN, never a short file."""
        with self._stream("GET", path, wire.target(path)) as answer:
            yield Body(answer.headers.get("X-Agentfs-Kind", "file"), _version(answer), answer.iter_bytes())

    def read(self, path: str) -> bytes:
        """The whole content of a file. ENOENT, EACCES; EISDIR for a directory."""
        with self.open(path) as body:
            if body.kind == "dir":
                raise error(errno.EISDIR, wire.tidy(path))
            return b"".join(body.chunks)

    def write(
        self, path: str, data: Content, *, size: int | None = None, match: int | None = None, exclusive: bool = False
    ) -> int | None:
        """Replace a file's content, creating it if absent; its new version.

        *size* is the length of a *data* that comes in pieces, where known. ESTALE when *match* is not the current
        version, EEXIST with *exclusive* when it exists, EFBIG, EACCES, what the service says of the content.
        """
        headers = {} if size is None else {"Content-Length": str(size)}
        headers |= {} if match is None else {"If-Match": f'"{match}"'}
        headers |= {"If-None-Match": "*"} if exclusive else {}
        return _version(self._send("PUT", path, content=data, headers=headers))

    def call(self, path: str, data: Content, *, size: int | None = None, key: str | None = None) -> bytes:
        """POST *data*: call, enqueue, command or append, by the file's kind; the answer, empty where there is none.

        *key* makes it idempotent.
        """
        headers = {} if size is None else {"Content-Length": str(size)}
        headers |= {} if key is None else {"Idempotency-Key": key}
        return self._send("POST", path, content=data, headers=headers).content

    def stat(self, path: str) -> Entry:
        """The entry of one file or directory. ENOENT."""
        return self._decoded(self._send("GET", path, query={"meta": "1"}), path, Entry)

    def ls(self, path: str = "", *, recursive: bool = False) -> Iterator[Entry]:
        """The entries of a directory, page by page; *recursive*: depth first, names relative to *path*.

        ENOENT, ENOTDIR.
        """
        cursor: str | None = None
        while True:
            page = self._page(path, "1" if recursive else None, cursor)
            yield from page.entries
            if page.cursor is None:
                return
            if page.cursor == cursor:
                raise error(errno.EIO, path, "the listing does not advance")
            cursor = page.cursor

    def mkdir(self, path: str) -> None:
        """Make a directory. EEXIST, EACCES."""
        self._send("MKCOL", path)

    def remove(self, path: str) -> None:
        """Remove a file or an empty directory. ENOENT, ENOTEMPTY, EBUSY, EACCES."""
        self._send("DELETE", path)

    def rename(self, old: str, new: str, *, exclusive: bool = False) -> None:
        """Rename, replacing *new*; EEXIST instead with *exclusive*. ENOENT, EXDEV, EACCES."""
        headers = {"Destination": wire.target(new)} | ({"Overwrite": "F"} if exclusive else {})
        self._send("MOVE", old, headers=headers)

    def watch(
        self,
        path: str,
        since: str | None = None,
        *,
        resume: str | None = None,
        deadline: float | None = None,
        opened: Callable[[], None] | None = None,
        lost: Callable[[OSError], None] | None = None,
    ) -> Iterator[tuple[str, bytes]]:
        """Cursor and line of each record after the cursor *since* (None: from now on; ``0``: all held), as they come.

        Ends when the stream has ended. A lost connection is resumed behind the last record, with growing pauses,
        after *lost* was told; *resume* is the cursor to use if it was lost before there was one. *opened* is called
        once, when the runtime watches. *deadline* (`time.monotonic`) ends with ETIMEDOUT.
        """
        cursor, wait, is_open = since, FIRST_WAIT_S, False
        while True:
            try:
                with self._events(path, cursor, deadline) as events:
                    if opened is not None and not is_open:
                        opened()
                    is_open = True
                    for event in events:
                        if event.type == "end":
                            return
                        cursor, wait = event.id or cursor, FIRST_WAIT_S
                        if event.type in ("record", "message"):
                            yield event.id, event.data
                failed = unreachable(path, "the stream was closed")
            except OSError as exc:
                failed = exc
            _late(deadline, path)
            if not is_open or failed.errno not in TRANSIENT:
                raise failed
            cursor = cursor or resume
            if lost is not None:
                lost(failed)
            self._sleep(wait if deadline is None else max(0.0, min(wait, deadline - time.monotonic())))
            wait = min(wait * 2, LAST_WAIT_S)

    @contextlib.contextmanager
    def _events(self, path: str, cursor: str | None, deadline: float | None) -> Iterator[Iterator[sse.Event]]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        since = cursor
        if cursor is not None and cursor.isascii() and cursor.isprintable() and cursor != "0":
            headers["Last-Event-ID"], since = cursor, None
        url = wire.target(path, watch="1", since=since)
        timeout = httpx.Timeout(CONNECT_S, read=_left(deadline))
        with self._stream("GET", path, url, headers=headers, timeout=timeout) as answer:
            if not answer.headers.get("Content-Type", "").startswith("text/event-stream"):
                raise error(errno.EOPNOTSUPP, wire.tidy(path), "the answer is not an event stream")
            with _alarm(answer, deadline):
                yield sse.events(answer.iter_bytes())

    def _page(self, path: str, recursive: str | None, cursor: str | None) -> Page:
        url = wire.target(path, recursive=recursive, cursor=cursor)
        with self._stream("GET", path, url) as answer:
            if answer.headers.get("X-Agentfs-Kind", "dir") != "dir":
                raise error(errno.ENOTDIR, wire.tidy(path))
            answer.read()
            return self._decoded(answer, path, Page)

    def _send(
        self,
        method: str,
        path: str,
        *,
        content: Content | None = None,
        headers: dict[str, str] | None = None,
        query: dict[str, str] | None = None,
    ) -> httpx.Response:
        url, timeout = wire.target(path, **(query or {})), httpx.Timeout(CALL_S, connect=CONNECT_S)
        patience = timeout if method == "POST" else None
        with self._stream(method, path, url, content=content, headers=headers, timeout=patience) as answer:
            answer.read()
        return answer

    @contextlib.contextmanager
    def _stream(
        self,
        method: str,
        path: str,
        url: str,
        *,
        content: Content | None = None,
        headers: dict[str, str] | None = None,
        timeout: httpx.Timeout | None = None,
    ) -> Iterator[httpx.Response]:
        """An accepted answer, not read yet; a refused one raises its error."""
        with translated(self.url, wire.tidy(path)):
            request = self._http.build_request(
                method, self.url + url, content=content, headers=headers, timeout=timeout or httpx.USE_CLIENT_DEFAULT
            )
            answer = self._http.send(request, stream=True)
            try:
                if not answer.is_success:
                    answer.read()
                    raise from_wire(answer.status_code, answer.content, wire.tidy(path))
                yield answer
            finally:
                answer.close()

    def _decoded(self, answer: httpx.Response, path: str, shape: type[T]) -> T:
        try:
            return msgspec.json.decode(answer.content, type=shape)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise error(errno.EIO, wire.tidy(path), f"an answer of another shape: {exc}") from exc


def _version(answer: httpx.Response) -> int | None:
    tag = str(answer.headers.get("ETag", "")).strip('"')
    return int(tag) if tag.isascii() and tag.isdecimal() else None


def _left(deadline: float | None) -> float:
    return SILENCE_S if deadline is None else min(SILENCE_S, max(0.01, deadline - time.monotonic()))


def _late(deadline: float | None, path: str) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise error(errno.ETIMEDOUT, wire.tidy(path), "nothing came in time")


@contextlib.contextmanager
def _alarm(answer: httpx.Response, deadline: float | None) -> Iterator[None]:
    """Shut the connection down at *deadline*: heartbeats would keep a read with a timeout alive for ever."""
    stream = answer.extensions.get("network_stream")
    raw = stream.get_extra_info("socket") if stream is not None else None
    if deadline is None or raw is None:
        yield
        return
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), _shutdown, (raw,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _shutdown(raw: socket.socket) -> None:
    with contextlib.suppress(OSError):
        raw.shutdown(socket.SHUT_RDWR)
