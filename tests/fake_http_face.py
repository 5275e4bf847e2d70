"""A fake of the HTTP face: a real server on a real socket, with a dictionary of files and scripted streams.

It speaks the part of the wire that the command line uses, and records every request.
"""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from agentfs.errors import BY_ERRNO

TOKEN = "t0ken"


@dataclass
class Seen:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


@dataclass
class Face:
    """What the fake serves: *files* by path, *answers* to POST, *fail* by path, and *streams*: one script a connect.

    A script is a list of SSE chunks; a connection ends (dropped, no final chunk) behind its script; ``None`` in it
    waits for `more`.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    answers: dict[str, bytes] = field(default_factory=dict)
    fail: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    streams: dict[str, list[list[bytes | None]]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    more: threading.Event = field(default_factory=threading.Event)
    page: int = 1000
    url: str = ""

    def did(self, method: str, path: str) -> list[Seen]:
        """The requests of one kind so far."""
        return [one for one in self.seen if (one.method, one.path) == (method, path)]


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    face: Face

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer_any(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path).strip("/")
        query = parse_qs(parts.query, keep_blank_values=True)
        seen = Seen(self.command, path, query, dict(self.headers.items()), self._body())
        self.face.seen.append(seen)
        scripted = self.face.fail.get(path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse("EACCES", "", "permission denied: want a bearer token", 401)
        elif scripted:
            self._refuse(scripted[0][0], path, scripted.pop(0)[1])
        elif self.command == "GET":
            self._get(path, query)
        elif self.command == "POST":
            self._reply(200, self.face.answers.get(path, b"")) if self.face.answers.get(path) else self._reply(204)
        elif self.command == "PUT":
            self.face.files[path] = seen.body
            self._reply(204, headers={"ETag": '"7"'})
        else:
            self._reply(204)

    do_GET = do_PUT = do_POST = do_DELETE = do_MKCOL = do_MOVE = answer_any  # noqa: N815

    def _get(self, path: str, query: dict[str, list[str]]) -> None:
        if "watch" in query:
            self._stream(path)
        elif path in self.face.files and "meta" in query:
            self._reply(200, json.dumps(self._entry(path.rpartition("/")[2], path)).encode())
        elif path in self.face.files:
            kind = self.face.kinds.get(path, "file")
            self._reply(200, self.face.files[path], {"X-Agentfs-Kind": kind, "ETag": '"3"'})
        else:
            self._list(path, query)

    def _list(self, path: str, query: dict[str, list[str]]) -> None:
        top = f"{path}/" if path else ""
        below = sorted(file.removeprefix(top) for file in self.face.files if file.startswith(top))
        names = below if "recursive" in query else sorted({name.partition("/")[0] for name in below})
        if not names:
            return self._refuse("ENOENT", path, "file does not exist")
        after = query.get("cursor", [""])[0]
        rest = [name for name in names if name > after]
        shown = rest[: self.face.page]
        page = {
            "path": path,
            "entries": [self._entry(name, top + name) for name in shown],
            "cursor": shown[-1] if len(rest) > len(shown) else None,
        }
        return self._reply(200, json.dumps(page).encode(), {"X-Agentfs-Kind": "dir"})

    def _entry(self, name: str, path: str) -> dict[str, object]:
        kind = self.face.kinds.get(path, "file") if path in self.face.files else "dir"
        size = len(self.face.files.get(path, b""))
        return {"name": name, "kind": kind, "mode": "0644", "size": size, "mtime": "2026-01-31T09:00:00Z", "version": 3}

    def _stream(self, path: str) -> None:
        scripts = self.face.streams.get(path)
        if not scripts:
            return self._refuse("EOPNOTSUPP", path, "this file cannot do that: not a stream")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in scripts.pop(0):
            if chunk is None:
                self.face.more.wait(60)
                continue
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        self.close_connection = True
        return None

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _refuse(self, name: str, path: str, detail: str, status: int = 0) -> None:
        body = json.dumps({"errno": name, "path": path, "detail": detail}).encode()
        self._reply(status or BY_ERRNO[getattr(errno, name)].status, body)

    def _reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is what several tests do."""


@contextmanager
def serving(face: Face) -> Iterator[Face]:
    """*face* on a port of its own."""
    server = _Server(("127.0.0.1", 0), type("Answers", (_Answers,), {"face": face}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    face.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield face
    finally:
        face.more.set()
        server.shutdown()
        server.server_close()
        thread.join()


def sse(cursor: str, line: str, kind: str = "record") -> bytes:
    """One event as the face writes it."""
    return f"id: {cursor}\nevent: {kind}\ndata: {line}\n\n".encode()


END = b"event: end\ndata:\n\n"
BEAT = b": heartbeat\n\n"
