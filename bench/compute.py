"""Models: tokens a second, the first token's way, and short jobs a second, through /compute and by the bare client.

python bench/compute.py [TOKENS_A_SECOND]

The server is a fake in a process of its own that sends each stream's tokens at that rate (65 unless given, 0: as fast
as it can). Both sides use the same client code, alternating.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path as FsPath

import msgspec
import trio

from agentfs.compute.port import Task
from agentfs.providers.compute.openai import OpenAI
from agentfs.service import FileService
from agentfs.types import Mode, Path
from agentfs.views import Below
from conformance.drivers import STORES, in_process

STREAMS = 32
JOBS = 256
TOKENS = 200
ROUNDS = 3
MESSAGES = [{"role": "user", "content": "go on"}]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
SHORT = b'{"choices":[{"message":{"role":"assistant","content":"yes"},"finish_reason":"stop"}]}'
WHOLE = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(SHORT), SHORT)
LIST = b'{"data":[{"id":"m"}]}'


async def _received(stream: trio.SocketStream) -> bytes:
    """One request with its body."""
    held = bytearray()
    while piece := await stream.receive_some(65_536):
        held += piece
        head, end, body = held.partition(b"\r\n\r\n")
        found = re.search(rb"(?i)content-length: (\d+)", head)
        if end and len(body) >= int(found[1] if found else 0):
            break
    return bytes(held)


async def serve(rate: float) -> None:
    """The fake: prints its port, then answers until its standard input ends."""

    async def answer(stream: trio.SocketStream) -> None:
        try:
            request = await _received(stream)
            if request.startswith(b"GET"):
                head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(LIST)
                await stream.send_all(head + LIST)
                return
            if b'"stream":true' not in request:
                await stream.send_all(WHOLE)
                return
            await stream.send_all(HEAD)
            begun = trio.current_time()
            for number in range(TOKENS):
                delta = {"choices": [{"index": 0, "delta": {"content": f"{time.perf_counter()} "}}]}
                await stream.send_all(b"data: " + msgspec.json.encode(delta) + b"\n\n")
                if rate:
                    await trio.sleep_until(begun + (number + 1) / rate)
            usage = {"prompt_tokens": 2, "completion_tokens": TOKENS}
            last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage}
            await stream.send_all(b"data: " + msgspec.json.encode(last) + b"\n\ndata: [DONE]\n\n")
        except trio.BrokenResourceError:
            pass
        finally:
            await stream.aclose()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        sys.stdout.write(f"{listeners[0].socket.getsockname()[1]}\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


Stream = Callable[[], Awaitable[float]]


def bare_job(provider: OpenAI) -> Stream:
    """One short answer by the client alone."""

    async def job() -> float:
        async with aclosing(provider.run(Task("m", "chat", {"messages": MESSAGES}, False))) as parts:
            async for _ in parts:
                pass
        return 0.0

    return job


def job_through(agent: FileService) -> Stream:
    """One short answer as an agent asks for it, and follows the job until it has ended."""
    stream = through(agent, is_stream=False)

    async def job() -> float:
        await stream()
        return 0.0

    return job


def bare(provider: OpenAI) -> Stream:
    """One stream by the client alone; ms from the server's sending of the first token to its being here."""

    async def stream() -> float:
        first = 0.0
        async with aclosing(provider.run(Task("m", "chat", {"messages": MESSAGES}, True))) as parts:
            async for part in parts:
                if part.text and not first:
                    first = (time.perf_counter() - float(part.text)) * 1e3
        return first

    return stream


def through(agent: FileService, *, is_stream: bool = True) -> Stream:
    """One stream as an agent asks for it and follows it."""

    async def stream() -> float:
        request = {"model": "m", "stream": is_stream, "input": {"messages": MESSAGES}}
        async with await agent.open(Path("compute/new"), Mode.READ | Mode.WRITE) as handle:
            await handle.write(msgspec.json.encode(request), 0)
            made = msgspec.json.decode(await handle.read(1 << 16, 0))
        first = 0.0
        async with await agent.open(Path(f"{made['stream_path']}@follow"), Mode.READ) as follow:
            while lines := await follow.read(1 << 16, 0):
                if is_stream and not first:
                    chunk = msgspec.json.decode(lines.split(b"\n", 1)[0])
                    first = (time.perf_counter() - float(chunk["delta"])) * 1e3
        return first

    return stream


async def jobs_per_s(job: Stream) -> float:
    """Short answers a second, `STREAMS` callers at a time."""

    async def caller() -> None:
        for _ in range(JOBS // STREAMS):
            await job()

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(STREAMS):
            nursery.start_soon(caller)
    return JOBS / (time.perf_counter() - begun)


async def measure(stream: Stream) -> tuple[float, float]:
    """Tokens a second over all streams at once, and the median way of the first token, ms."""
    firsts: list[float] = []

    async def one() -> None:
        firsts.append(await stream())

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(STREAMS):
            nursery.start_soon(one)
    return STREAMS * TOKENS / (time.perf_counter() - begun), statistics.median(firsts)


async def main(rate: float) -> None:
    """Measure the client and each store, alternating, and print one JSON object: medians and ratios."""
    argv = [sys.executable, __file__, "--serve", str(rate)]
    with (
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server,  # noqa: ASYNC220
        tempfile.TemporaryDirectory() as top,
    ):
        assert server.stdout is not None and server.stdin is not None
        provider = OpenAI(f"http://127.0.0.1:{int(server.stdout.readline())}", is_local=True)
        took: dict[str, list[tuple[float, float, float]]] = {"client": []}
        for _ in range(ROUNDS):
            took["client"].append((*await measure(bare(provider)), await jobs_per_s(bare_job(provider))))
            for store in STORES:
                folder = FsPath(tempfile.mkdtemp(dir=top))
                async with in_process(store, folder, {"local": (provider, "")}) as driver:
                    await driver.agent("bench")
                    own = Below(driver.tree, Path("views/bench"))
                    figures = (*await measure(through(own)), await jobs_per_s(job_through(own)))
                    took.setdefault(store, []).append(figures)
        await provider.aclose()
        server.stdin.close()
    found: dict[str, float] = {}
    for name, pairs in took.items():
        found[f"{name}_tokens_per_s"] = round(statistics.median(pair[0] for pair in pairs))
        found[f"{name}_first_token_ms"] = round(statistics.median(pair[1] for pair in pairs), 2)
        found[f"{name}_jobs_per_s"] = round(statistics.median(pair[2] for pair in pairs))
    for name in STORES:
        found[f"{name}_ratio"] = round(found[f"{name}_tokens_per_s"] / found["client_tokens_per_s"], 3)
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        trio.run(serve, float(sys.argv[2]))
    else:
        trio.run(main, float(sys.argv[1]) if sys.argv[1:] else 65.0)
