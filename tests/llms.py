"""What the tests of models share: a runtime over the fake server, an agent made of a prompt, and its answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path as FsPath
from typing import Any

import msgspec
import trio
from faces import load, put, whole
from fake_openai import FakeOpenAI

from agentfs.providers.compute.openai import OpenAI
from agentfs.service import FileService
from agentfs.types import Mode, Path
from agentfs.views import Below
from conformance.drivers import Driver, Runtime, in_process

PRICES = {"models": {"*": {"input_usd": 1000, "output_usd": 2000}}}


@asynccontextmanager
async def computing(way: str, folder: FsPath, fake: FakeOpenAI) -> AsyncIterator[Driver]:
    """The way *way* (DRIVER-STORE) to a runtime that has *fake* as its provider ``local``, with a price table."""
    name, _, store = way.rpartition("-")
    async with AsyncExitStack() as stack:
        if name == "in-process":
            provider = OpenAI(fake.url, is_local=True)
            stack.push_async_callback(provider.aclose)
            driver = await stack.enter_async_context(in_process(store, folder, {"local": (provider, "")}))
        else:
            places = json.dumps({"local": {"kind": "openai", "url": fake.url}})
            runtime = Runtime(store, folder, fuse=name == "fuse", settings=[f"providers={places}"])
            await trio.to_thread.run_sync(runtime.start)
            stack.callback(runtime.stop)
            driver = await stack.enter_async_context(runtime.fuse() if name == "fuse" else runtime.http())
        await put(driver.tree, json.dumps(PRICES).encode(), "runtime/compute/prices")
        yield driver


async def made(driver: Driver, name: str = "helper", /, **program: Any) -> FileService:
    """A new agent made of a prompt: its directory as the operator sees it."""
    doc = {"kind": "llm", "prompt": "You keep notes.", "model": "script", **program}
    return await driver.agent(name, program=doc, retry={"base_ms": 1, "attempts": 3}, tick_timeout_ms=30_000)


def own(driver: Driver, name: str = "helper") -> FileService:
    """The agent's own namespace."""
    return Below(driver.tree, Path(f"views/{name}"))


async def said(agent: FileService, text: str, ident: str = "m1") -> dict[str, Any]:
    """The envelope that answers *text*."""
    await put(agent, json.dumps({"id": ident, "payload": text}).encode())
    found = await followed(agent, "outbox", lambda reply: reply["metadata"].get("reply_to") == ident)
    return found[-1]


async def buried(agent: FileService, text: str, ident: str = "m1") -> str:
    """Why *text* ended as a dead letter."""
    await put(agent, json.dumps({"id": ident, "payload": text}).encode())
    await followed(agent, "logs/trace", lambda record: bool(record.get("dead_letter")))
    return str((await load(agent, f"deadletter/{ident}.json"))["reason"])


async def ticked(agent: FileService, count: int) -> None:
    """Wait until *count* ticks have ended well."""
    await followed(agent, "logs/trace", lambda record: record.get("outcome") == "ok", count)


async def followed(
    agent: FileService, path: str, is_it: Callable[[dict[str, Any]], bool], count: int = 1
) -> list[dict[str, Any]]:
    """The first *count* records of a stream that are it."""
    found, held = list[dict[str, Any]](), b""
    with trio.fail_after(60):
        async with await agent.open(Path(f"{path}@0"), Mode.READ) as follow:
            while len(found) < count:
                *lines, held = (held + await follow.read(1 << 16, 0)).split(b"\n")
                records = [msgspec.json.decode(line) for line in lines]
                found += [record for record in records if is_it(record)]
    return found


async def traced(agent: FileService, *kinds: str) -> list[dict[str, Any]]:
    """The records of these kinds in the trace."""
    lines = [msgspec.json.decode(line) for line in (await whole(agent, "logs/trace")).splitlines()]
    return [line for line in lines if line["type"] in kinds]


async def mounted(agent: FileService, service: str, *words: str) -> None:
    """Have *service* mounted with *words* instead."""
    lines = (await whole(agent, "ns")).decode().splitlines()
    is_it = [line.split()[:2] == ["mount", service] for line in lines]
    assert any(is_it), lines
    script = [" ".join([*line.split()[:3], *words]) if it else line for line, it in zip(lines, is_it, strict=True)]
    await put(agent, "".join(f"{line}\n" for line in script).encode(), "ns")
