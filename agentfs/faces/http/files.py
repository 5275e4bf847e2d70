"""What each method does to a file: one function a method, each a few operations of the `FileService`."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from agentfs.errors import error
from agentfs.faces.http import answers
from agentfs.faces.http.paths import destination, match
from agentfs.faces.http.pieces import PIECE, large
from agentfs.limits import Limits
from agentfs.record import Pulse
from agentfs.service import FileHandle, FileService
from agentfs.types import Kind, Mode, Path, Stat, Want, join

_PAGE = 1000
_WALK = 10_000


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, authenticated and decoded. ``ending`` fires when the face begins to close.

    ``held`` is its body where that was read to find out who asks.
    """

    request: Request
    tree: FileService
    path: Path
    is_dir: bool
    limits: Limits
    ending: Pulse
    held: bytes | None = None

    def header(self, name: str) -> str | None:
        """A request header."""
        return self.request.headers.get(name)

    def query(self, name: str) -> str | None:
        """A query value."""
        return self.request.query_params.get(name)

    @property
    def want(self) -> Want:
        """What the headers ask of the operation."""
        return Want(
            match=match(self.header("if-match")), key=self.header("idempotency-key"),
            trace=self.header("traceparent"), exclusive=self.header("if-none-match") == "*",
        )  # fmt: skip

    async def body(self) -> bytes:
        """The whole body, so that one cut off half-way has no effect. EFBIG past the limit, ECANCELED when cut off."""
        return await whole_body(self.request, self.limits, self.path) if self.held is None else self.held

    async def gone(self) -> None:
        """Return when the client has gone away; to be asked once the body was read."""
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


async def whole_body(request: Request, limits: Limits, path: str) -> bytes:
    """The body of *request*, which can be read once. EFBIG past the limit, ECANCELED when cut off."""
    limit, length = limits.body_bytes, request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise error(errno.EFBIG, path, f"body over {limit} bytes")
    whole = bytearray()
    try:
        async with aclosing(request.stream()) as pieces:
            async for piece in pieces:
                whole += piece
                if len(whole) > limit:
                    raise error(errno.EFBIG, path, f"body over {limit} bytes")
    except ClientDisconnect as exc:
        raise error(errno.ECANCELED, path, "the client went away") from exc
    return bytes(whole)


# -- reading -----------------------------------------------------------------------------------------------------------


async def get(ask: Ask) -> Response:
    """GET and HEAD of a file or directory."""
    is_head = ask.request.method == "HEAD"
    st = await ask.tree.stat(ask.path)
    if ask.query("meta") is not None:
        return answers.json({**answers.entry(st, st.name), "path": ask.path}, answers.about(st))
    if st.kind is Kind.STREAM and "@" in st.name:  # it would block for records, and never end
        raise error(errno.EOPNOTSUPP, ask.path, "follow a stream with ?watch=1")
    if st.is_dir:
        found = await (_walk(ask) if ask.query("recursive") is not None else _list(ask))
        return Response(b"", 200, {"X-Agentfs-Kind": "dir"}) if is_head else found
    if ask.is_dir:
        raise error(errno.ENOTDIR, ask.path)
    handle = await ask.tree.open(ask.path, Mode.READ, want=ask.want)
    if st.kind is Kind.DATA and (handle.size or 0) > PIECE:
        return await large(handle, ask.path, st, ask.request, is_head=is_head)
    async with handle:
        body = await read_all(handle)
    return answers.content(ask.path, st, body, ask.request.headers, is_head=is_head)


async def read_all(handle: FileHandle) -> bytes:
    """Everything from the first byte to the end."""
    whole = bytearray()
    while piece := await handle.read(PIECE, len(whole)):
        whole += piece
    return bytes(whole)


async def _list(ask: Ask) -> Response:
    found = await ask.tree.list(ask.path, ask.query("cursor") or "", _PAGE)
    cursor = found[-1].name if len(found) == _PAGE else None
    return answers.listing(ask.path, [(st.name, st) for st in found], cursor)


async def _walk(ask: Ask) -> Response:
    """Everything below, depth first, names relative; a page ends after so many entries with a path as its cursor."""
    after = tuple((ask.query("cursor") or "").split("/")) if ask.query("cursor") else ()
    found: list[tuple[str, Stat]] = []
    todo: list[tuple[str, Stat]] = [(st.name, st) for st in reversed(await _all(ask.tree, ask.path))]
    while todo and len(found) < _WALK:
        name, st = todo.pop()
        parts = tuple(name.split("/"))
        if parts > after:
            found.append((name, st))
        if st.is_dir and (parts > after or after[: len(parts)] == parts):
            try:
                below = await _all(ask.tree, join(ask.path, name))
            except (FileNotFoundError, NotADirectoryError):  # removed since it was listed
                continue
            todo += [(f"{name}/{child.name}", child) for child in reversed(below)]
    return answers.listing(ask.path, found, found[-1][0] if todo and found else None)


async def _all(tree: FileService, path: Path) -> Sequence[Stat]:
    found: list[Stat] = []
    while page := await tree.list(path, found[-1].name if found else "", _PAGE):
        found += page
        if len(page) < _PAGE:
            break
    return found


# -- writing -----------------------------------------------------------------------------------------------------------


async def put(ask: Ask) -> Response:
    """PUT: the whole content, creating the file where that can be."""
    if ask.is_dir:
        raise error(errno.EISDIR, ask.path)
    return await _replace(ask, await ask.body())


async def _replace(ask: Ask, body: bytes) -> Response:
    handle, is_new = await _for_writing(ask, Mode.WRITE | Mode.TRUNCATE)
    await _fill(handle, body)
    try:
        headers = answers.about(await ask.tree.stat(ask.path))
    except FileNotFoundError:  # committed, then removed by another
        headers = {}
    return Response(b"", 201 if is_new else 204, headers)


async def post(ask: Ask) -> Response:
    """POST: a call or message with its answer, verbs, bytes appended; a path with a trailing slash: mkdir."""
    if ask.is_dir:
        return await mkcol(ask)
    body = await ask.body()
    try:
        kind = (await ask.tree.stat(ask.path)).kind
    except FileNotFoundError:
        kind = Kind.DATA
    return await write_as(ask, kind, body)


async def write_as(ask: Ask, kind: Kind, body: bytes) -> Response:
    """Write *body* to a file of *kind* and give its answer."""
    match kind:
        case Kind.CALL | Kind.QUEUE:
            mode = Mode.READ | Mode.WRITE
            handle = await ask.tree.open(ask.path, mode, want=ask.want)
            answer = await _fill(handle, body, partial(_answer, ask))
            return Response(answer, 200, media_type=answers.media_type(kind, answer))
        case Kind.CTL:
            await _fill(await ask.tree.open(ask.path, Mode.WRITE, want=ask.want), body)
            return Response(b"", 204)
        case Kind.DATA:
            handle, is_new = await _for_writing(ask, Mode.WRITE | Mode.APPEND)
            await _fill(handle, body)
            return Response(b"", 201 if is_new else 204)
        case Kind.FILE:
            return await _replace(ask, body)
        case Kind.DIR:
            raise error(errno.EISDIR, ask.path)
        case Kind.STREAM:
            raise error(errno.EOPNOTSUPP, ask.path, "a stream is read-only")


async def _for_writing(ask: Ask, mode: Mode) -> tuple[FileHandle, bool]:
    """The file opened, or created where there is none; whether it was."""
    if not ask.want.exclusive:
        try:
            return await ask.tree.open(ask.path, mode, want=ask.want), False
        except FileNotFoundError:
            if ask.header("if-match") is not None:
                raise error(errno.ESTALE, ask.path, "no such file to match") from None
    return await ask.tree.create(ask.path, mode, want=ask.want), True


async def _fill(
    handle: FileHandle, body: bytes, answer: Callable[[FileHandle], Awaitable[bytes]] | None = None
) -> bytes:
    """Write all of *body* as one document, take its answer and close; after an error nothing more is committed."""
    async with handle:
        try:
            done = 0
            while done < len(body):
                taken = await handle.write(body[done : done + PIECE], done)
                if not taken:
                    raise error(errno.EIO, detail="a write took nothing")
                done += taken
            await handle.flush(final=True)
        except BaseException:
            handle.discard()
            raise
        return await answer(handle) if answer else b""


async def _answer(ask: Ask, handle: FileHandle) -> bytes:
    """What *handle* answers; one that waits does so for as long as the client and this face. ECANCELED, ENOTCONN."""
    if not handle.is_ready():
        why: list[OSError] = []
        async with anyio.create_task_group() as group:

            async def end(wait: Callable[[], Awaitable[None]], exc: OSError) -> None:
                await wait()
                why.append(exc)
                group.cancel_scope.cancel()

            group.start_soon(end, ask.gone, error(errno.ECANCELED, ask.path, "the client went away"))
            group.start_soon(end, partial(ask.ending.wait, 0), error(errno.ENOTCONN, ask.path))
            with suppress(OSError):  # the read that follows raises it
                await handle.wait_ready()
            group.cancel_scope.cancel()
        if why:
            raise why[0]
    return await read_all(handle)


async def delete(ask: Ask) -> Response:
    """DELETE a file or an empty directory."""
    await ask.tree.remove(ask.path, want=ask.want)
    return Response(b"", 204)


async def mkcol(ask: Ask) -> Response:
    """MKCOL: make a directory."""
    await ask.tree.mkdir(ask.path, want=ask.want)
    return Response(b"", 201)


async def move(ask: Ask) -> Response:
    """MOVE to ``Destination``; ``Overwrite: F`` refuses to replace."""
    exclusive = (ask.header("overwrite") or "T").upper() == "F"
    target = destination(ask.header("destination"), ask.header("host") or "")
    await ask.tree.rename(ask.path, target, want=replace(ask.want, exclusive=exclusive))
    return Response(b"", 204)
