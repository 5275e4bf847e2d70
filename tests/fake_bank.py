"""A fake payment provider on a real socket: it charges once for an idempotency key, and can be asked about it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class FakeBank:
    """``POST /charges`` with an Idempotency-Key, ``GET /charges/<key>``; ``requests`` counts every POST by its key."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.charges: dict[str, int] = {}
        self.requests: list[str] = []


@contextmanager
def serving() -> Iterator[FakeBank]:
    """A bank on a loopback port of its own."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            key = self.headers["Idempotency-Key"]
            bank.requests.append(key)
            bank.charges.setdefault(key, body["amount_usd"])
            self._say(200, {"charged_usd": bank.charges[key]})

        def do_GET(self) -> None:
            key = unquote(self.path.removeprefix("/charges/"))
            if key in bank.charges:
                self._say(200, {"charged_usd": bank.charges[key]})
            else:
                self._say(404, {})

        def _say(self, status: int, doc: object) -> None:
            body = json.dumps(doc).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    bank = FakeBank(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield bank
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
