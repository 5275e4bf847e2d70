"""The HTTP face on a socket: clients that die half-way, never read, never end, watch, and a server that drains."""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from httpfs import LIMITS, Answers, Running, running, settled
from hypercorn.config import Config

from agentfs.errors import BY_NAME
from agentfs.faces.http import serve


async def drop(answers: Answers, *, reset: bool = False) -> None:
    """End a connection, politely or not."""
    if reset:
        answers.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await answers.stream.aclose()


async def is_alive(it: Running) -> None:
    """The face still answers."""
    answers = await it.send("GET", "/healthz")
    await answers.until(b"ok\n")
    await answers.stream.aclose()


# -- bodies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize(
    ("target", "method", "half"),
    [
        ("/note", "PUT", b"half a docum"), ("/note", "PUT", b"whole lines\nhalf"), ("/note", "POST", b"x"),
        ("/inbox", "POST", b"one message\n"), ("/inbox", "POST", b'{"payload":1}'), ("/ctl", "POST", b"terminate\n"),
        ("/echo", "POST", b"x"), ("/kv/new", "PUT", b"x"), ("/agents/a1/terminate", "POST", b"now"),
    ],
)  # fmt: skip
async def test_a_body_cut_off_has_no_effect(method: str, target: str, half: bytes, framing: str, reset: bool) -> None:
    async with running() as it:
        before = dict(it.world.documents)
        body = half if "Length" in framing else b"%x\r\n%s\r\n" % (len(half), half)
        answers = await it.send(method, target, body, framing)
        await is_alive(it)  # by then the half has been read
        await drop(answers, reset=reset)
        await is_alive(it)
        it.stop.set()
        await it.stopped.wait()
        world = it.world
        assert (world.documents, world.values, world.queued, world.done) == (before, {}, [], [])
        assert it.tree.still_open == 0


async def test_a_body_too_long_is_refused_before_it_is_read() -> None:
    async with running() as it:
        answers = await it.send("PUT", "/note", b"x", "Content-Length: 99999999999")
        assert await answers.error() == (413, {"errno": "EFBIG", "path": "note", "detail": (
            f"too large: body over {LIMITS.body_bytes} bytes")})  # fmt: skip
        await answers.end()
        answers = await it.send("PUT", "/note", b"", "Transfer-Encoding: chunked")
        piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        with pytest.raises(trio.BrokenResourceError):
            for _ in range(1000):
                await answers.stream.send_all(piece)
        await is_alive(it)


@pytest.mark.parametrize("token", ["op", "nobody"])
async def test_who_sends_it_all_before_it_reads_gets_the_answer_all_the_same(token: str) -> None:
    """The connection is not closed with bytes in it that nobody read: the reset would take the answer along."""
    size = LIMITS.body_bytes + (8 << 20)
    async with running() as it:
        answers = await it.send("PUT", "/note", b"", f"Content-Length: {size}", token=token)
        for _ in range(size >> 16):
            await answers.stream.send_all(b"x" * (1 << 16))
        assert (await answers.error())[0] == (413 if token == "op" else 401)
        await is_alive(it)


@pytest.mark.parametrize(("method", "target", "token", "status"), [
    ("POST", "/note", "nobody", 401), ("GET", "/note", "op", 200), ("DELETE", "/nosuch", "op", 404),
    ("PUT", "/note?x", "op", 400),
])  # fmt: skip
async def test_a_body_nobody_reads_holds_no_connection(method: str, target: str, token: str, status: int) -> None:
    async with running() as it:
        chunks = b"1\r\nx\r\n" * 500
        answers = await it.send(method, target, chunks, "Transfer-Encoding: chunked", token=token)
        text = await answers.end()  # the body has no end: the server closes
        assert text.startswith(b"HTTP/1.1 %d" % status), text


async def test_requests_share_a_connection() -> None:
    async with running() as it:
        answers = await it.send("PUT", "/kv/a", b"first")
        await answers.until(b"\r\n\r\n")
        head = f"GET /kv/a HTTP/1.1\r\nHost: {it.address}\r\nAuthorization: Bearer op\r\n\r\n".encode()
        await answers.stream.send_all(head + head)  # pipelined
        await settled_text(answers, b"first", 2)


async def settled_text(answers: Answers, mark: bytes, count: int) -> None:
    with trio.fail_after(60):
        while answers.text.count(mark) < count:
            answers.text += await answers.stream.receive_some(1 << 16)


async def test_no_web_socket() -> None:
    upgrade = (
        "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )  # fmt: skip
    async with running() as it:
        assert (await (await it.send("GET", "/events", b"", *upgrade)).end()).startswith(b"HTTP/1.1 403")


# -- watching ----------------------------------------------------------------------------------------------------------


async def test_watch_gives_every_record_once() -> None:
    async with running() as it:
        it.world.events.append(b'{"n":0}')
        answers = await it.send("GET", "/events?watch=1")
        await answers.until(b"\r\n\r\n")
        await settled(lambda: it.tree.still_open == 1)
        for n in range(1, 20):
            it.world.events.append(b'{"n":%d}' % n)
        it.world.events.finish()
        text = (await answers.until(b"event: end")).decode()
        assert re.findall(r'data: \{"seq":\d+,"n":(\d+)\}', text) == [str(n) for n in range(1, 20)]
        last = re.findall(r"id: (\S+)", text)[8]
        again = await it.send("GET", "/events?watch=1", b"", f"Last-Event-ID: {last}")
        text = (await again.until(b"event: end")).decode()
        assert re.findall(r'"n":(\d+)\}', text) == [str(n) for n in range(10, 20)]
        await settled(lambda: it.tree.still_open == 0)


async def test_a_connection_lives_on_behind_a_finished_watch() -> None:
    async with running() as it:
        it.world.ended.finish()
        answers = await it.send("GET", "/ended?watch=1")
        await answers.until(b"0\r\n\r\n")
        await answers.stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await answers.until(b"ok\n")


@pytest.mark.parametrize("reset", [False, True])
async def test_a_watcher_that_goes_is_forgotten_at_once(reset: bool) -> None:
    async with running() as it:
        for _ in range(3 * LIMITS.watchers):
            answers = await it.send("GET", "/events?watch=1")
            await answers.until(b"\r\n\r\n")
            await drop(answers, reset=reset)
            await settled(lambda: it.tree.still_open == 0)
        for _ in range(20):  # gone before the answer began
            await drop(await it.send("GET", "/events?watch=1"), reset=reset)
        await is_alive(it)
        await settled(lambda: it.tree.still_open == 0)
        await (await it.send("GET", "/events?watch=1")).until(b"200")


async def test_watchers_are_counted_per_principal() -> None:
    async with running() as it:
        open_now = []
        async with trio.open_nursery() as nursery:  # all at once: a count taken too late lets one more in

            async def watch() -> None:
                answers = await it.send("GET", "/events?watch=1")
                await answers.until(b"\r\n\r\n")
                open_now.append(answers)

            for _ in range(LIMITS.watchers + 2):
                nursery.start_soon(watch)
        refused = [answers for answers in open_now if not answers.text.startswith(b"HTTP/1.1 200")]
        assert len(refused) == 2
        status, doc = await refused[0].error()
        assert (status, doc["errno"]) == (429, "EMFILE") and b"retry-after: 1" in refused[0].text.lower()
        await (await it.send("GET", "/events?watch=1", token="a2")).until(b"HTTP/1.1 200")


async def test_a_slow_watcher_gets_a_gap() -> None:
    async with running() as it:
        first = it.world.events.append(b'{"n":0}').cursor
        answers = await it.send("GET", f"/events?watch=1&since={first}")
        await answers.until(b"\r\n\r\n")
        await settled(lambda: it.tree.still_open == 1)
        for n in range(400):  # rotates the log several times before the watcher's turn comes
            it.world.events.append(b'{"n":%d,"text":"%s"}' % (n, b"x" * 100))
        it.world.events.finish()
        text = (await answers.until(b"event: end")).decode()
        assert '"reason":"lagged"' in text and '"n":399' in text


async def test_a_heartbeat_is_a_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentfs.faces.http.watch.HEARTBEAT_SECONDS", 0.05)
    async with running() as it:
        answers = await it.send("GET", "/events?watch=1")
        await answers.until(b": heartbeat\n\n")


# -- draining ----------------------------------------------------------------------------------------------------------


async def test_drain_closes_watches_and_finishes_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["agentfs.faces.http.serve"], "GRACE_SECONDS", 1000.0)
    monkeypatch.setattr(Config, "keep_alive_timeout", 1000.0)
    async with running() as it:
        watching = await it.send("GET", "/events?watch=1")
        await watching.until(b"\r\n\r\n")
        asking = await it.send("POST", "/echo", b"wait")
        idle = await it.send("GET", "/note")
        await idle.until(b"some text")
        with trio.fail_after(60):  # the watch and the idle connection hold nothing up
            await it.world.asked.wait()
            it.stop.set()
            assert b"event: closing" in await watching.end()
            await idle.end()
        with pytest.raises(OSError, match="connect"):
            await it.connect()
        assert not it.stopped.is_set()
        it.world.go_on.set()
        await asking.until(b"you said wait")
        with trio.fail_after(60):
            await asking.end()
            await it.stopped.wait()
        assert it.tree.still_open == 0


@pytest.mark.parametrize("query", ["", "?watch=1&since=0"])
async def test_drain_does_not_wait_for_a_client_that_never_reads(monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    monkeypatch.setattr(sys.modules["agentfs.faces.http.serve"], "GRACE_SECONDS", 1.0)
    async with running() as it:
        it.world.bulk.append(b'{"x":"%s"}' % (b"y" * (20 << 20)))  # more than the sockets' buffers hold
        answers = await it.send("GET", f"/bulk{query}")
        await answers.until(b'"seq":1')
        it.stop.set()
        with trio.fail_after(60):
            await it.stopped.wait()
        assert it.tree.still_open == 0


async def test_an_address_in_use_is_named() -> None:
    async with running() as it:
        with pytest.raises(OSError, match=re.escape(it.address.rpartition(":")[2])) as caught:
            await serve(it.face, it.address, shutdown=trio.sleep_forever)
        assert caught.value.errno == BY_NAME["EBUSY"].errno


async def test_every_descriptor_is_closed() -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async with running(replace(LIMITS, watchers=1)):
        pass
    before = count()
    for _ in range(3):
        async with running() as it:
            await is_alive(it)
    assert count() == before


# -- another process, and curl -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("httpfs.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            yield f"http://{child.stdout.readline().strip()}"
            child.stdin.close()
            assert child.wait(60) == 0
        finally:
            child.kill()


def curl(*words: str, **more: str) -> tuple[int, str]:
    """Status and body."""
    command = ["curl", "-sS", "-m", "60", "-w", "\n%{http_code}", "-H", "Authorization: Bearer op", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, input=more.get("stdin"), check=False)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def test_curl(url: str, tmp_path: Path) -> None:
    assert curl("-X", "PUT", "--data-binary", "by curl", f"{url}/note") == (204, "")
    assert curl(f"{url}/note") == (200, "by curl")
    assert curl("-r", "3-6", f"{url}/note") == (206, "curl")
    assert curl("-T", "-", f"{url}/kv/piped", stdin="from a pipe") == (201, "")
    assert curl(f"{url}/kv/piped") == (200, "from a pipe")
    assert json.loads(curl(f"{url}/agents/")[1])["entries"][0]["name"] == "a1"
    for words in (["--path-as-is", f"{url}/agents/a1/../x"], [f"{url}/agents/%2e%2e/x"], [f"{url}/agents%2Fa1"]):
        status, body = curl(*words)
        assert (status, json.loads(body)["errno"]) == (400, "EINVAL")
    big = tmp_path / "big"
    big.write_bytes(b"x" * (LIMITS.body_bytes + 1))
    for words in (
        ["-T", str(big)],
        ["-H", "Transfer-Encoding: chunked", "-T", str(big)],
        ["-H", "Expect:", "-T", str(big)],
    ):
        status, body = curl(*words, f"{url}/kv/big")
        assert (status, json.loads(body)["errno"]) == (413, "EFBIG")
    for _ in range(10):
        status, body = curl("-T", "-", f"{url}/kv/big", stdin="x" * (LIMITS.body_bytes + (4 << 20)))
        assert (status, json.loads(body)["errno"]) == (413, "EFBIG")
    assert curl("--http2-prior-knowledge", f"{url}/note") == (200, "by curl")


def test_curl_watches(url: str) -> None:
    command = ["curl", "-sSN", "-m", "60", "-H", "Authorization: Bearer op", f"{url}/events?watch=1&since=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(4)]
        child.kill()
    assert lines[0].startswith("id: ") and lines[1:] == ["event: record\n", 'data: {"seq":1,"type":"first"}\n', "\n"]
