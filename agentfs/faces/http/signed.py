"""Who asks by a signed request: what is signed, as it came, and its body, read once the signature is found sound.

Whether it is genuine and new is decided by `agentfs.engine.requests`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection
from typing import Final, TypeAlias

from starlette.requests import Request

from agentfs.engine.claims import ACTING, Sent
from agentfs.engine.requests import Requests
from agentfs.errors import error
from agentfs.faces.http.files import whole_body
from agentfs.limits import Limits
from agentfs.types import Principal

Note: TypeAlias = Callable[[Principal, str, str, OSError], None]
"""Told of a request that is refused before a tree is asked: who, what, where, why."""

_PORTS: Final = {"http": "80", "https": "443"}


def sent(request: Request) -> Sent:
    """What the signature has to be of; nothing of it is decoded or put in order."""
    scope, headers = request.scope, request.headers
    raw: bytes = (scope.get("raw_path") or scope["path"].encode()).partition(b"?")[0]
    query: bytes = scope["query_string"]
    target = (raw + b"?" + query if query else raw).decode("latin-1")
    acting = [(name, value.strip(" \t")) for name in ACTING for value in headers.getlist(name)]
    return Sent(request.method, f"{scope['scheme']}://{headers.get('host', '')}{target}", tuple(acting))


class Signed:
    """The gate for signed requests of one face; *note* is told whom it refuses, once it is known who that is.

    A Host header that is none of *named* has to name the port of this connection: whoever serves another one of this
    host, and was asked there, could else hand the request on to here.
    """

    def __init__(self, requests: Requests, limits: Limits, note: Note, named: Collection[str]) -> None:
        self._requests, self._limits, self._note, self._named = requests, limits, note, named

    def _is_here(self, request: Request) -> bool:
        host, (_, port) = request.headers.get("host", "").lower(), request.scope["server"]
        said = host.rpartition("]")[2].partition(":")[2] or _PORTS[request.scope["scheme"]]
        return host in self._named or said == str(port)

    async def enter(self, request: Request, header: str) -> tuple[Principal, bytes]:
        """The peer who signed *request*, and its body. EACCES saying why not, EFBIG, ECANCELED, ENOBUFS."""
        if not self._is_here(request):
            raise error(errno.EACCES, detail="Host: want the port that is served here, or one of the option hosts")
        asked = sent(request)
        claim = self._requests.recognise(header, asked)
        peer, path = Principal("peer", claim.pubkey), request.scope["path"].lstrip("/")[:200]
        try:
            self._requests.judge(claim, asked)
            body = await whole_body(request, self._limits, path)
            await self._requests.admit(claim, body)
        except OSError as exc:
            self._note(peer, request.method, path, exc)
            raise
        return peer, body
