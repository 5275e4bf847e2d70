"""The ASGI application: who asks, for what, and which function answers; every error becomes a row of the table."""

from __future__ import annotations

import errno
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import Any, Final, TypeAlias

import anyio
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send

from agentfs.engine.requests import Requests
from agentfs.errors import BY_ERRNO, detail_of, error, row_of
from agentfs.faces.http import answers, files, openapi, paths, verbs
from agentfs.faces.http.files import Ask
from agentfs.faces.http.signed import Note, Signed
from agentfs.faces.http.watch import Watch, Watchers
from agentfs.limits import Limits
from agentfs.service import FileService
from agentfs.types import Kind, Principal

log = logging.getLogger(__name__)

Authenticate: TypeAlias = Callable[[str], Principal | None]
Certified: TypeAlias = Callable[[], Principal | None]
"""Whom the client's certificate of the connection that asks names; None for nobody, or no longer."""

_QUERY: Final = frozenset({"watch", "recursive", "since", "cursor", "meta"})
_LOCAL: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_HELD: Final = 1024
_LINGER_S: Final = 2.0  # for a client to notice an answer that it gets in the middle of its request
_LINGER_BYTES: Final = 16 << 20
_METHODS: Final[dict[str, Callable[[Ask], Awaitable[Response]]]] = {
    "GET": files.get, "HEAD": files.get, "PUT": files.put, "POST": files.post, "DELETE": files.delete,
    "MKCOL": files.mkcol, "MOVE": files.move,
}  # fmt: skip


class Incoming:
    """One request's body as it comes; it knows whether all of it was read."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._scope, self._receive = scope, receive
        names = {name.lower() for name, _ in scope["headers"]}
        self._is_one = scope.get("http_version") in ("1.0", "1.1")
        self._is_over = self._is_one and not names & {b"content-length", b"transfer-encoding"}

    async def receive(self) -> Message:
        """The next piece."""
        message = await self._receive()
        self._is_over = self._is_over or not message.get("more_body", False)
        return message

    async def answer(self, response: Response, send: Send) -> None:
        """Send *response*, meanwhile dropping what still comes of a body that nobody asked for.

        Unread, it would fill the server's queue, and the end of the answer would wait behind it for ever. A connection
        of HTTP/1 is closed behind it, for which the end is held back: closed with unread bytes, it would take the
        answer along that the client has not read yet.
        """
        if self._is_over or isinstance(response, Watch):
            await response(self._scope, self.receive, send)
            return
        dropped = anyio.Event()

        async def linger(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False) and self._is_one:
                await send({**message, "more_body": True})
                with anyio.move_on_after(_LINGER_S):
                    await dropped.wait()
                message = {**message, "body": b""}
            await send(message)

        async with anyio.create_task_group() as group:
            group.start_soon(self._drop, dropped)
            await response(self._scope, self.receive, linger)
            group.cancel_scope.cancel()

    async def _drop(self, dropped: anyio.Event) -> None:
        """Take what comes until it is cancelled; *dropped* when that was all, or as much as is waited for."""
        size, message = 0, dict[str, Any]()
        while message.get("type") != "http.disconnect":
            message = dict(await self._receive())
            size += len(message.get("body", b""))
            if not message.get("more_body", False) or size > _LINGER_BYTES:
                dropped.set()


class Face:
    """An ASGI application over *service*; see `app`."""

    def __init__(
        self, service: FileService, authenticate: Authenticate, limits: Limits, hosts: Collection[str],
        ready: Callable[[], str | None], note: Note, certified: Certified | None, requests: Requests | None,
    ) -> None:  # fmt: skip
        self._service, self._authenticate, self._limits, self._ready = service, authenticate, limits, ready
        self._note, self._certified = note, certified
        named = {host.lower() for host in hosts}
        self._signed = Signed(requests, limits, note, named - _LOCAL) if requests and not certified else None
        self._hosts = _LOCAL | {_host(name) if "[" in name or name.count(":") == 1 else name for name in named}
        self._trees: OrderedDict[Principal, FileService] = OrderedDict()
        self._watchers = Watchers(limits.watchers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            incoming = Incoming(scope, receive)
            response = await self._answer(Request(scope, incoming.receive))
            await incoming.answer(response, send)
        else:
            await send({"type": "websocket.close"})

    async def close(self) -> None:
        """Refuse what comes from now on and end every watch."""
        await self._watchers.close()

    async def _answer(self, request: Request) -> Response:
        shown = request.scope["path"].lstrip("/")
        try:
            return self._public(request) or await self._private(request)
        except OSError as exc:
            if row_of(exc).errno == errno.EIO:
                log.exception("%s %s", request.method, shown)
            return answers.failure(exc, shown)
        except Exception as exc:  # a bug answers 500 and says nothing of itself
            log.exception("%s %s", request.method, shown)
            return answers.failure(exc, shown)

    def _public(self, request: Request) -> Response | None:
        """What needs no token, and who may not ask at all."""
        path = request.scope["path"]
        if path == "/healthz":
            return PlainTextResponse("ok\n")
        if _host(request.headers.get("host", "")) not in self._hosts:
            return answers.refusal(BY_ERRNO[errno.EACCES], "", "Host: not a name of this runtime", 421)
        if path == "/readyz":
            missing = "stopping" if self._watchers.is_closing else self._ready()
            return PlainTextResponse(f"{missing or 'ready'}\n", 503 if missing else 200)
        return answers.json(openapi.document()) if path == "/openapi.json" else None

    async def _private(self, request: Request) -> Response:
        try:
            principal, body = await self._who(request)
        except PermissionError as exc:
            path = request.scope["path"].lstrip("/")
            return answers.refusal(BY_ERRNO[errno.EACCES], path, detail_of(exc), 401)
        if self._watchers.is_closing:
            raise error(errno.ENOTCONN)
        method = _METHODS.get(request.method)
        if method is None:
            raise error(errno.EOPNOTSUPP, detail=f"method {request.method[:20]}")
        raw = request.scope.get("raw_path") or request.scope["path"].encode()
        try:
            path, is_dir = paths.decode(raw.partition(b"?")[0])
        except OSError as exc:
            self._note(principal, request.method, request.scope["path"].lstrip("/")[:200], exc)
            raise
        ask = Ask(request, self._tree(principal), path, is_dir, self._limits, self._watchers.ending, body)
        self._check_query(ask)
        if request.method == "GET" and ask.query("watch") is not None:
            return await self._watchers.watch(ask, principal)
        return await (self._verb(ask) if principal.is_operator and not is_dir else method(ask))

    async def _who(self, request: Request) -> tuple[Principal, bytes | None]:
        """Who asks; and the body, where that had to be read to know. EACCES for nobody known."""
        said = request.headers.getlist("authorization")
        if len(said) > 1:
            raise error(errno.EACCES, detail="more than one Authorization header")
        if said and self._signed and Requests.is_signed(said[0]):
            return await self._signed.enter(request, said[0])
        principal = self._principal(said[0] if said else None)
        if principal is None:
            raise PermissionError(errno.EACCES, answers.WANTED[self._certified is not None])
        return principal, None

    def _principal(self, said: str | None) -> Principal | None:
        """Who asks: the certificate's principal where one is required, which a token can only narrow."""
        kind, _, token = (said or "").partition(" ")
        bearer = self._authenticate(token.strip()) if kind.lower() == "bearer" and token else None
        if self._certified is None:
            return bearer
        owner = self._certified()
        if owner is None or said is None:
            return owner
        is_same = bearer is not None and (bearer.role, bearer.name) == (owner.role, owner.name)
        return bearer if is_same else None

    async def _verb(self, ask: Ask) -> Response:
        path, line = verbs.resolve(ask.request.method, ask.path)
        ask = replace(ask, path=path)
        if line:
            words = (await ask.body()).strip()
            if b"\n" in words:
                raise error(errno.EINVAL, ask.path, f"body: want the arguments of {line} on one line")
            return await files.write_as(ask, Kind.CTL, f"{line} ".encode() + words + b"\n")
        return await _METHODS[ask.request.method](ask)

    def _tree(self, principal: Principal) -> FileService:
        tree = self._trees.get(principal)
        if tree is None:
            tree = self._trees[principal] = self._service.attach(principal)
            if len(self._trees) > _HELD:
                self._trees.popitem(last=False)
        self._trees.move_to_end(principal)
        return tree

    @staticmethod
    def _check_query(ask: Ask) -> None:
        for key in ask.request.query_params:
            if key not in _QUERY:
                raise error(errno.EINVAL, ask.path, f"query: {key[:40]!r}: want {' '.join(sorted(_QUERY))}")


def app(
    service: FileService, authenticate: Authenticate, limits: Limits, *, hosts: Collection[str],
    ready: Callable[[], str | None], note: Note, certified: Certified | None = None, requests: Requests | None = None,
) -> Face:  # fmt: skip
    """The HTTP face over *service*: a token selects a principal by *authenticate*, and the tree is attached to it.

    *hosts*, each with or without a port, are accepted in a Host header beside loopback names; *ready* gives None, or
    what is missing; *note* is told of requests refused before a tree is asked. With *certified* the client's
    certificate selects the principal, and a token is one of that principal's or refused, as is a signed request; else
    *requests* lets in peers who sign theirs.
    """
    return Face(service, authenticate, limits, hosts, ready, note, certified, requests)


def _host(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
