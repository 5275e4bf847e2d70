"""A remote tree whose other end is scripted: lost connections, answers that make no sense, logs that rotate."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable

import anyio
import httpx
import pytest

from agentfs.errors import ROWS, Row, error, from_wire, told
from agentfs.faces.http import answers
from agentfs.providers.remote import RemoteService
from agentfs.providers.remote.events import LINE_MAX, Event, Events
from agentfs.service import FileHandle
from agentfs.types import OPERATOR, ROOT, Mode, Path, Want

# httpx leaves the generators of a stream that was dropped half-way to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
URL = "http://other:1/top"
FOLLOW = Path("log@follow")


class Body(httpx.AsyncByteStream):
    """Chunks, then the end or an error."""

    def __init__(self, *chunks: str | Exception) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk.encode()


Answer = Callable[[httpx.Request], httpx.Response] | httpx.Response | Exception


class Script(httpx.AsyncBaseTransport):
    """Gives prepared answers in order and keeps what was asked."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []
        self.pauses: list[float] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(
            f"{request.method} {request.url.raw_path.decode()} {request.headers.get('range', '')}".rstrip()
        )
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await anyio.lowlevel.checkpoint()

    def service(self) -> RemoteService:
        return RemoteService(URL, "t", pause=self.pause, transport=self)


def meta(version: int = 0, kind: str = "stream", mode: str = "0444") -> httpx.Response:
    entry = {"name": "log", "kind": kind, "mode": mode, "size": 0, "mtime": "", "version": version, "path": "log"}
    return httpx.Response(200, json=entry)


def events(*chunks: str | Exception) -> httpx.Response:
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=Body(*chunks))


def record(seq: int, epoch: str = "ab") -> str:
    return f'event: record\nid: {epoch}-{seq}\ndata: {{"seq":{seq}}}\n\n'


async def seen(handle: FileHandle, count: int) -> list[str]:
    records = [await handle.next() for _ in range(count)]
    return [r.cursor if r else "end" for r in records]


END, LOST = "event: end\ndata: \n\n", httpx.ReadError("broken")


async def test_a_follower_resumes_without_a_gap_before_it_had_a_cursor() -> None:
    script = Script(
        meta(5), events(": heartbeat\n\n", LOST),
        meta(7), events(record(3) + record(4), record(5), record(6), "event: closing\ndata: \n\n"),
        httpx.ConnectError("refused"), httpx.ConnectError("refused"), events(record(7) + END),
    )  # fmt: skip
    async with script.service() as service, await service.open(FOLLOW, Mode.READ) as handle:
        assert not handle.is_ready()
        assert await seen(handle, 4) == ["ab-5", "ab-6", "ab-7", "end"]
        assert handle.is_ready()
        assert await handle.read(10, 0) == b""
    assert script.pauses == [0.25, 0.25, 0.5, 1.0]
    watches = [asked.rpartition("?")[2] for asked in script.asked if "watch" in asked]
    assert watches == ["watch=1", "watch=1&since=0", *["watch=1&since=ab-6"] * 3]


async def test_a_log_that_began_anew_is_read_from_its_start() -> None:
    script = Script(meta(50), events(LOST), meta(2), events(record(1, "cd"), END))
    async with script.service() as service, await service.open(FOLLOW, Mode.READ) as handle:
        assert await seen(handle, 2) == ["cd-1", "end"]


async def test_pauses_grow_to_their_limit_and_a_removed_stream_ends_the_wait() -> None:
    gone = httpx.Response(404, json={"errno": "ENOENT", "path": "log", "detail": "file does not exist"})
    script = Script(meta(1), events(), *[httpx.ReadTimeout("")] * 8, gone)
    async with script.service() as service, await service.open(Path("log@ab-1"), Mode.READ) as handle:
        with pytest.raises(FileNotFoundError):
            await handle.read(1, 0)
    assert script.pauses == [0.25, 0.5, 1, 2, 4, 8, 10, 10, 10]


async def test_closing_ends_a_blocked_read() -> None:
    class Silent(Body):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            await anyio.sleep_forever()
            yield b""

    answer = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=Silent())
    async with Script(meta(1), answer).service() as service:
        handle = await service.open(FOLLOW, Mode.READ)
        caught: list[int | None] = []

        async def read() -> None:
            try:
                await handle.read(1, 0)
            except OSError as exc:
                caught.append(exc.errno)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(read)
                await anyio.wait_all_tasks_blocked()
                await handle.aclose()
        assert caught == [errno.EBADF]


async def test_reads_of_a_stream_go_on_until_it_is_rotated() -> None:
    short = httpx.Response(416, json={"errno": "EINVAL", "path": "", "detail": ""})
    script = Script(
        meta(), httpx.Response(200, content=b"one\ntwo\n"), httpx.Response(206, content=b"two\nthree\n"),
        httpx.Response(206, content=b"other\n"), short,
    )  # fmt: skip
    async with script.service() as service, await service.open(Path("log"), Mode.READ) as handle:
        found = [await handle.read(100, offset) for offset in (0, 8, 14, 14)]
    assert found == [b"one\ntwo\n", b"three\n", b"", b""]
    assert script.asked[1:] == [
        "GET /top/log", "GET /top/log bytes=4-", "GET /top/log bytes=8-", "GET /top/log bytes=8-",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (httpx.ConnectError("refused"), errno.ENOTCONN),
        (httpx.ConnectTimeout(""), errno.ENOTCONN),
        (httpx.ReadTimeout(""), errno.ETIMEDOUT),
        (httpx.RemoteProtocolError("nonsense"), errno.ENOTCONN),
        (httpx.DecodingError("nonsense"), errno.EIO),
        (httpx.Response(200, text="<html>"), errno.EIO),
        (httpx.Response(200, content=b'"\xff"'), errno.EIO),
        (httpx.Response(200, json={"name": "x", "kind": "nosuch", "mode": "0444"}), errno.EIO),
        (httpx.Response(200, json={"name": "x", "kind": "file", "mode": "9"}), errno.EIO),
        (httpx.Response(200, json={"name": "x", "kind": "file", "mode": "0444", "mtime": "now"}), errno.EIO),
        (httpx.Response(302, headers={"Location": "http://elsewhere/"}), errno.EIO),
        (httpx.Response(401, text="no"), errno.EACCES),
        (httpx.Response(503, text="later"), errno.ENOTCONN),
    ],
)
async def test_what_goes_wrong_is_an_errno(answer: Answer, code: int) -> None:
    script = Script(answer)
    async with script.service() as service:
        with pytest.raises(OSError) as caught:
            await service.stat(Path("x"))
    assert caught.value.errno == code
    assert len(script.asked) == 1


async def test_what_is_asked_is_in_the_request() -> None:
    requests: list[httpx.Request] = []

    def keep(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(204)

    want = Want(match=7, key="k", trace="00-t", exclusive=True)
    async with Script(keep, keep).service() as service:
        await service.rename(Path("a b"), Path("c#?é"), want=want)
        await service.remove(ROOT, want=want)
        with pytest.raises(OSError, match="identity"):
            service.attach(OPERATOR)
    first = requests[0]
    assert (first.method, first.url.raw_path) == ("MOVE", b"/top/a%20b")
    said = {name: first.headers[name] for name in ("If-Match", "Idempotency-Key", "traceparent", "Overwrite")}
    assert list(said.values()) == ['"7"', "k", "00-t", "F"]
    assert first.headers["Destination"] == "/c%23%3F%C3%A9"
    assert first.headers["Authorization"] == "Bearer t"
    assert requests[1].url.raw_path == b"/top/"


@pytest.mark.parametrize(
    ("url", "token", "code"),
    [
        ("http://x", "", errno.EACCES), ("http://x", "a b", errno.EACCES), ("http://x", "a\n", errno.EACCES),
        ("http://x", "é", errno.EACCES), ("http://x", "a" * 5000, errno.EACCES), ("x", "t", errno.EINVAL),
        ("http://user:secret@x", "t", errno.EINVAL), ("http://x:y", "t", errno.EINVAL),
        ("http://x?q", "t", errno.EINVAL),
    ],
)  # fmt: skip
def test_a_bad_url_or_token_is_refused_before_it_is_sent(url: str, token: str, code: int) -> None:
    with pytest.raises(OSError) as caught:
        RemoteService(url, token)
    assert caught.value.errno == code
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_are_the_same_however_they_are_cut(size: int) -> None:
    raw = b": hi\r\n\r\nevent: record\r\nid: e-1\ndata: a\xe2\x80\xa8b\ndata:c\n\n"
    raw += b"id: e-2\ndata: d\n\nevent: end\n\nevent: cut"
    cutter = Events()
    found = [event for at in range(0, len(raw), size) for event in cutter.feed(raw[at : at + size])]
    first = Event("record", "e-1", "a\u2028b\nc".encode())
    assert found == [first, Event("message", "e-2", b"d"), Event("end", "e-2", b"")]


def test_an_endless_event_is_refused() -> None:
    cutter = Events()
    with pytest.raises(OSError, match="event line"):
        list(cutter.feed(b"x" * (LINE_MAX + 1)))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_error_comes_back_as_it_was(row: Row) -> None:
    for detail in ("", "the reason"):
        sent = error(row.errno, "a/b", detail)
        answer = answers.failure(sent, "a/b")
        back = from_wire(answer.status_code, bytes(answer.body), "other")
        told_of = "" if row.errno == errno.EIO else detail  # what is not in the table is nobody's business
        assert (back.errno, back.filename, back.strerror) == (row.errno, "a/b", error(row.errno, "", told_of).strerror)
    assert told(b'{"errno": "ENOSUCH"}') is None
