"""Requests signed by an agent of one runtime, for another that lets its key in: ``--as AGENT``.

The key stays with the runtime, which signs each request through the file ``identity/authorize``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from typing import Final

import httpx
import msgspec

from agentfs.types import agent_id

# The headers that change what a request does: they are signed along with it.
ACTING: Final = ("destination", "idempotency-key", "if-match", "if-none-match", "overwrite")


class Signing(httpx.Auth):
    """Signs each request as *agent* does; *call* writes a request to a file of its runtime and gives the answer."""

    requires_request_body = True

    def __init__(self, call: Callable[[str, bytes], bytes], agent: str) -> None:
        self._call, self._file = call, f"agents/{agent_id(agent)}/identity/authorize"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the header, made for this very request."""
        wish = {
            "method": request.method,
            "url": f"{request.url.scheme}://{request.headers['Host']}{request.url.raw_path.decode('ascii')}",
            "sha256": hashlib.sha256(request.content).hexdigest(),
            "headers": {name: request.headers[name] for name in ACTING if name in request.headers},
        }
        request.headers["Authorization"] = self._call(self._file, msgspec.json.encode(wish)).decode().strip()
        yield request
