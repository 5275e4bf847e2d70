"""Streams of a model: tokens a second and the first token's way, through /compute and by the bare client beside it.

python bench/compute.py [TOKENS_A_SECOND]

The server is a fake in a process of its own that sends each stream's tokens at that rate (65 unless given, 0: as fast
as it can). Both sides use the same client code, alternating.
"""

from __future__ import annotations

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
TOKENS = 200
ROUNDS = 3
MESSAGES = [{"role": "user", "content": "go on"}]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
LIST = b'{"data":[{"id":"m"}]}'


async def serve(rate: float) -> None:
    """The fake: prints its port, then answers until its standard input ends."""

    async def answer(stream: trio.SocketStream) -> None:
        try:
            request = await stream.receive_some(65_536)
            if request.startswith(b"GET"):
                head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(LIST)
                await stream.send_all(head + LIST)
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


def through(agent: FileService) -> Stream:
    """One stream as an agent asks for it and follows it."""

    async def stream() -> float:
        request = {"model": "m", "stream": True, "input": {"messages": MESSAGES}}
        async with await agent.open(Path("compute/new"), Mode.READ | Mode.WRITE) as handle:
            await handle.write(msgspec.json.encode(request), 0)
            made = msgspec.json.decode(await handle.read(1 << 16, 0))
        first = 0.0
        async with await agent.open(Path(f"{made['stream_path']}@follow"), Mode.READ) as follow:
            while lines := await follow.read(1 << 16, 0):
                if not first:
                    chunk = msgspec.json.decode(lines.split(b"\n", 1)[0])
                    first = (time.perf_counter() - float(chunk["delta"])) * 1e3
        return first

    return stream


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
        took: dict[str, list[tuple[float, float]]] = {"client": []}
        for _ in range(ROUNDS):
            took["client"].append(await measure(bare(provider)))
            for store in STORES:
                folder = FsPath(tempfile.mkdtemp(dir=top))
                async with in_process(store, folder, {"local": (provider, "")}) as driver:
                    await driver.agent("bench")
                    own = Below(driver.tree, Path("views/bench"))
                    took.setdefault(store, []).append(await measure(through(own)))
        await provider.aclose()
        server.stdin.close()
    found: dict[str, float] = {}
    for name, pairs in took.items():
        found[f"{name}_tokens_per_s"] = round(statistics.median(pair[0] for pair in pairs))
        found[f"{name}_first_token_ms"] = round(statistics.median(pair[1] for pair in pairs), 2)
    for name in STORES:
        found[f"{name}_ratio"] = round(found[f"{name}_tokens_per_s"] / found["client_tokens_per_s"], 3)
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        trio.run(serve, float(sys.argv[2]))
    else:
        trio.run(main, float(sys.argv[1]) if sys.argv[1:] else 65.0)
