"""Signing: one after another and 64 at once, by the bare library, by the keeper in both its places, and on every face.

python bench/identity.py [--fuse]
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path as FsPath

import msgspec
import trio
from coincurve import PrivateKey

from agentfs.ports import Key
from agentfs.providers.clock import SystemClock
from agentfs.providers.keys.keeper import Keeper
from agentfs.providers.keys.kept import keeping
from agentfs.providers.keys.wire import Source
from agentfs.types import Mode, Path
from conformance.drivers import Driver, Runtime, in_process

SIGNATURES = 2000
AT_ONCE = 64
ROUNDS = 3
FILE = "agents/bench/identity/sign"

Sign = Callable[[bytes], Awaitable[object]]


async def latency_us(sign: Sign) -> float:
    """The median of signing one after another, microseconds."""
    took = []
    for number in range(SIGNATURES // 4):
        text = number.to_bytes(32, "big")
        start = time.perf_counter()
        await sign(text)
        took.append(time.perf_counter() - start)
    return statistics.median(took) * 1e6


async def rate(sign: Sign) -> float:
    """Signatures a second, `AT_ONCE` callers at a time."""

    async def caller(first: int) -> None:
        for number in range(first, SIGNATURES, AT_ONCE):
            await sign(number.to_bytes(32, "big"))

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for first in range(AT_ONCE):
            nursery.start_soon(caller, first)
    return SIGNATURES / (time.perf_counter() - start)


def inside(driver: Driver) -> Sign:
    """Signing as a caller in the same process does it: write, then read on the same handle."""

    async def sign(text: bytes) -> bytes:
        async with await driver.tree.open(Path(FILE), Mode.READ | Mode.WRITE) as handle:
            await handle.write(text.hex().encode(), 0)
            return await handle.read(1 << 16, 0)

    return sign


def over_http(driver: Driver) -> Sign:
    """Signing with one POST on a kept connection."""
    assert driver.wire is not None
    client = driver.wire.client

    async def sign(text: bytes) -> bytes:
        answer = await client.post(f"/{FILE}", content=text.hex())
        assert answer.status_code == 200, answer.text
        return answer.content

    return sign


def on_mount(driver: Driver) -> Sign:
    """Signing with four system calls, in a worker thread."""
    assert driver.place is not None
    place = driver.place / FILE

    def asked(text: bytes) -> bytes:
        descriptor = os.open(place, os.O_RDWR)
        try:
            os.write(descriptor, text.hex().encode())
            return os.read(descriptor, 1 << 16)
        finally:
            os.close(descriptor)

    async def sign(text: bytes) -> bytes:
        return await trio.to_thread.run_sync(asked, text)

    return sign


async def main() -> None:
    """Measure all ways, alternating, and print one JSON object: medians, and ratios to the bare library."""
    bare, keeper, key = PrivateKey(), Keeper.fresh(), Key(0)

    async def library(text: bytes) -> bytes:
        return bare.sign_schnorr(text, os.urandom(32))

    ways: dict[str, Sign] = {"library": library, "keeper": lambda text: keeper.sign(key, text)}
    with tempfile.TemporaryDirectory() as top:
        async with AsyncExitStack() as stack:
            here = await stack.enter_async_context(in_process("memory", FsPath(top)))
            runtime = Runtime("memory", FsPath(top), fuse="--fuse" in sys.argv)
            runtime.start()
            stack.callback(runtime.stop)
            there = await stack.enter_async_context(runtime.http())
            await here.agent("bench")
            await there.agent("bench")
            kept = await stack.enter_async_context(keeping(Source("memory"), SystemClock()))
            ways["keeper_process"] = lambda text: kept.sign(key, text)
            ways |= {"in_process": inside(here), "http": over_http(there)}
            if "--fuse" in sys.argv:
                ways["fuse"] = on_mount(await stack.enter_async_context(runtime.fuse()))
            took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for _ in range(ROUNDS):
                for name, sign in ways.items():
                    took[name].append((await latency_us(sign), await rate(sign)))
    found: dict[str, float] = {}
    for name, pairs in took.items():
        found[f"{name}_latency_us"] = round(statistics.median(pair[0] for pair in pairs), 1)
        found[f"{name}_per_s"] = round(statistics.median(pair[1] for pair in pairs))
    for name in list(ways)[1:]:
        found[f"{name}_latency_ratio"] = round(found[f"{name}_latency_us"] / found["library_latency_us"], 2)
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


if __name__ == "__main__":
    trio.run(main)
