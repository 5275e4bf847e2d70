"""A small tree with every kind of file behind the HTTP face, in this process or as a process of its own on a socket."""

from __future__ import annotations

import errno
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import httpx
import msgspec
import trio

from agentfs.checked import Checked
from agentfs.errors import BY_NAME, error, row_of
from agentfs.faces.http import Face, app, serve
from agentfs.limits import Limits
from agentfs.providers.clock import SystemClock
from agentfs.record import Log, RingLog
from agentfs.service import FileHandle
from agentfs.tree import At, Call, Ctl, Data, Dir, Entry, File, Info, Queue, Stream, Tree
from agentfs.types import NO_WANT, OPERATOR, Mode, Path, Principal, Want

TOKENS = {"op": OPERATOR, "a1": Principal("agent", "a1"), "a2": Principal("agent", "a2")}
LIMITS = Limits(document_bytes=1 << 20, body_bytes=2 << 20, watchers=3, blocked_readers=8, handles=16, ring_bytes=4096)


@dataclass
class World:
    """What the tree serves and what was done to it."""

    documents: dict[str, bytes] = field(default_factory=lambda: {"config": b'{"a":1}\n', "note": b"some text\n"})
    versions: dict[str, int] = field(default_factory=dict)
    values: dict[str, bytes] = field(default_factory=dict)
    queued: list[bytes] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    wants: list[Want] = field(default_factory=list)
    events: RingLog = field(default_factory=lambda: RingLog(SystemClock(), LIMITS.ring_bytes))
    ended: RingLog = field(default_factory=lambda: RingLog(SystemClock(), 1 << 20))
    bulk: RingLog = field(default_factory=lambda: RingLog(SystemClock(), 64 << 20))
    go_on: trio.Event = field(default_factory=trio.Event)
    asked: trio.Event = field(default_factory=trio.Event)


class _Receipts:
    def __init__(self, queued: list[bytes]) -> None:
        self._queued = queued

    async def put(self, doc: bytes, *, is_json: bool) -> bytes:
        self._queued.append(doc)
        return b'{"id":%d}\n' % len(self._queued)

    def close(self) -> None:
        """Nothing is reserved."""


class Opened(Checked):
    """`Checked` that keeps every open handle, so that a test sees what a face forgot to close."""

    held: list[FileHandle]

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        handle = await super().open(path, mode, want=want)
        self.held.append(handle)
        return handle

    @property
    def still_open(self) -> int:
        """How many of them nobody has closed."""
        return sum(not handle._closed for handle in self.held)  # type: ignore[attr-defined]


def _document(world: World, name: str, **more: Any) -> File:
    async def read(at: At) -> bytes:
        return world.documents[name]

    async def write(at: At, doc: bytes) -> None:
        world.wants.append(at.want)
        if at.want.match is not None and at.want.match != world.versions.get(name, 1):
            raise error(errno.ESTALE, at.path)
        world.documents[name] = doc
        world.versions[name] = world.versions.get(name, 1) + 1

    async def info(at: At) -> Info:
        return Info(world.versions.get(name, 1), len(world.documents[name]), 1_769_850_000_000_000_000)

    return File(name=name, read=read, write=write, info=info, **more)


def _values(world: World) -> Dir:
    async def read(at: At) -> bytes:
        return world.values[at["key"]]

    async def write(at: At, value: bytes) -> None:
        world.values[at["key"]] = value

    async def has(at: At, key: str) -> bool:
        return key in world.values

    async def keys(at: At, after: str, limit: int) -> Sequence[Entry]:
        return [Entry(key) for key in sorted(world.values) if key > after][:limit]

    async def create(at: At) -> None:
        world.values[at["key"]] = b""

    async def remove(at: At) -> None:
        del world.values[at["key"]]

    async def rename(old: At, new: At) -> None:
        world.values[new["key"]] = world.values.pop(old["key"])

    each = Data(name="{key}", read=read, write=write, remove=remove)
    return Dir(name="kv", each=each, has=has, keys=keys, create=create, rename=rename)


def _rooms(world: World) -> Dir:
    """Directories that can be made and removed, deep enough to walk."""
    made: dict[str, list[str]] = {}

    async def has(at: At, key: str) -> bool:
        return key in made

    async def keys(at: At, after: str, limit: int) -> Sequence[Entry]:
        return [Entry(key) for key in sorted(made) if key > after][:limit]

    async def mkdir(at: At) -> None:
        made[at["room"]] = []

    async def remove(at: At) -> None:
        del made[at["room"]]

    room = Dir(name="{room}", entries=(_document(world, "note"),), remove=remove)
    return Dir(name="rooms", each=room, has=has, keys=keys, mkdir=mkdir)


def _agent(world: World) -> Sequence[Any]:
    async def pause(at: At, why: str = "") -> None:
        world.done.append(f"{at.principal.source} pause {why}".rstrip())

    async def terminate(at: At) -> None:
        world.done.append("terminate")

    async def sink(at: At) -> _Receipts:
        world.wants.append(at.want)
        return _Receipts(world.queued)

    async def pending(at: At) -> bytes:
        return b"".join(doc + b"\n" for doc in world.queued)

    async def echo(at: At, request: bytes) -> bytes:
        if request == b"break":
            raise RuntimeError("secret 4711")
        if request == b"wait":
            world.asked.set()
            await world.go_on.wait()
        return b"you said " + request

    async def create(at: At, request: bytes) -> bytes:
        return b'{"id":"made"}\n'

    async def log(at: At) -> Log:
        return {"events": world.events, "ended": world.ended, "bulk": world.bulk}[at.path.rpartition("/")[2]]

    return [
        _document(world, "config"), _document(world, "note"), _document(world, "policy", operator=True),
        Ctl(name="ctl", verbs={"pause": pause, "terminate": terminate}), Queue(name="inbox", read=pending, sink=sink),
        Call(name="echo", answer=echo, usage="say something\n"), Call(name="new", answer=create, usage="{}\n"),
        Stream(name="events", log=log), Stream(name="ended", log=log), Stream(name="bulk", log=log),
        _values(world), _rooms(world),
    ]  # fmt: skip


def tree(world: World, limits: Limits = LIMITS) -> Opened:
    """``/agents/a1`` holds one file of each kind; the same files are at the root for an agent's paths."""
    world.documents.setdefault("policy", b"{}\n")
    here = _agent(world)
    new = next(node for node in here if node.name == "new")
    agents = Dir(name="agents", entries=(Dir(name="a1", entries=here), new))
    opened = Opened(Tree(agents, *here, limits=limits), limits)
    opened.held = []
    return opened


def face(world: World, *, missing: str | None = None, limits: Limits = LIMITS) -> Face:
    """The face over `tree`."""
    return app(
        tree(world, limits), TOKENS.get, limits, hosts=["agentfs.test"], ready=lambda: missing, note=lambda *_: None
    )


def client(asgi: Face, token: str = "op") -> httpx.AsyncClient:
    """A client of *asgi* in this process; watches that do not end need a socket instead."""
    transport = httpx.ASGITransport(asgi)
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers)


def refused(answer: httpx.Response, name: str, *, status: int | None = None) -> str:
    """Check that *answer* is the error *name*; its detail."""
    doc = answer.json()
    assert set(doc) == {"errno", "path", "detail"}
    assert (doc["errno"], answer.status_code) == (name, status or BY_NAME[name].status), doc
    rebuilt = error(BY_NAME[doc["errno"]].errno, doc["path"], doc["detail"])
    assert row_of(rebuilt).name == name
    return str(doc["detail"])


async def ask(
    asgi: Face,
    method: str,
    raw: bytes,
    query: bytes = b"",
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: bytes = b"",
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one request with exactly these bytes as its path: no client tidies them."""
    sent: list[Any] = []
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return pending.pop(0) if pending else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    names = {name for name, _ in headers}
    known = [(b"host", b"127.0.0.1"), (b"authorization", b"Bearer op"), (b"content-length", b"%d" % len(body))]
    scope = {
        "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": unquote(raw.decode("ascii")),
        "raw_path": raw, "query_string": query, "root_path": "", "server": ("127.0.0.1", 80),
        "headers": [*headers, *(pair for pair in known if pair[0] not in names)],
    }  # fmt: skip
    await asgi(scope, receive, send)
    named = {name.decode().lower(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return sent[0]["status"], named, b"".join(message["body"] for message in sent[1:])


@dataclass
class Running:
    """A face that listens."""

    world: World
    tree: Opened
    face: Face
    address: str
    stop: trio.Event = field(default_factory=trio.Event)
    stopped: trio.Event = field(default_factory=trio.Event)
    connections: list[trio.SocketStream] = field(default_factory=list)

    async def connect(self) -> trio.SocketStream:
        """A raw connection, closed when the test has ended."""
        host, _, port = self.address.rpartition(":")
        self.connections.append(await trio.open_tcp_stream(host, int(port)))
        return self.connections[-1]

    async def send(self, method: str, target: str, body: bytes = b"", *headers: str, token: str = "op") -> Answers:
        """A connection on which one request was sent."""
        stream = await self.connect()
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.address}", f"Authorization: Bearer {token}", *headers]
        if body and not any(line.lower().startswith(("content-length", "transfer")) for line in headers):
            lines.append(f"Content-Length: {len(body)}")
        await stream.send_all("\r\n".join([*lines, "", ""]).encode() + body)
        return Answers(stream)


class Answers:
    """What comes back on a connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream, self.text = stream, b""

    async def until(self, mark: bytes) -> bytes:
        """Everything so far once *mark* has come; fails at the end of the connection."""
        with trio.fail_after(60):
            while mark not in self.text:
                piece = await self.stream.receive_some(1 << 16)
                assert piece, (mark, self.text)
                self.text += piece
        return self.text

    async def end(self) -> bytes:
        """Everything until the server closes."""
        with trio.fail_after(60):
            while piece := await self.stream.receive_some(1 << 16):
                self.text += piece
        return self.text

    async def error(self) -> tuple[int, dict[str, str]]:
        """Status and error body of an answer whose body is an error."""
        text = await self.until(b'"}\n')
        head, _, body = text.rpartition(b"\r\n\r\n")
        return int(head.split()[1]), msgspec.json.decode(body, type=dict[str, str])


async def settled(condition: Any) -> None:
    """Return when *condition* holds; other tasks and the kernel get their turn meanwhile."""
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110  # sockets fire no event
            await trio.sleep(0.01)


@asynccontextmanager
async def running(limits: Limits = LIMITS) -> AsyncIterator[Running]:
    """A face served on a free port of this loop."""
    world = World()
    served = tree(world, limits)
    asgi = app(served, TOKENS.get, limits, hosts=[], ready=lambda: None, note=lambda *_: None)
    async with trio.open_nursery() as nursery:
        it = Running(world, served, asgi, "")

        async def run(task_status: trio.TaskStatus[str]) -> None:
            await serve(asgi, "127.0.0.1:0", shutdown=it.stop.wait, task_status=task_status)
            it.stopped.set()

        it.address = await nursery.start(run)
        try:
            yield it
        finally:
            it.stop.set()
            world.go_on.set()
            with trio.move_on_after(20, shield=True) as waited:
                for stream in it.connections:
                    await stream.aclose()
                await it.stopped.wait()
            nursery.cancel_scope.cancel()
            assert not waited.cancelled_caught, "serve did not return"


async def _main() -> None:
    world = World()
    stop = trio.Event()
    world.events.append(b'{"type":"first"}')
    async with trio.open_nursery() as nursery:
        address = await nursery.start(lambda task_status: serve(
            face(world), "127.0.0.1:0", shutdown=stop.wait, task_status=task_status
        ))  # fmt: skip
        sys.stdout.write(f"{address}\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.read)
        stop.set()


if __name__ == "__main__":
    trio.run(_main)
