"""What the tests of /containers share: a runtime that runs code by a real bubblewrap, and its sessions to their end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path as FsPath
from typing import Any

import msgspec
import trio
from boxes import OWNER
from faces import call, load

from agentfs.containers.port import ContainerProvider, Offer
from agentfs.engine.housing import Housing
from agentfs.providers.containers.bubblewrap import Bubblewrap
from agentfs.service import FileService
from agentfs.types import Mode, Path, Want
from agentfs.views import Below
from conformance.drivers import Driver, Runtime, in_process

NAME = "bubblewrap"
ENDS_S = 60


@asynccontextmanager
async def housed(way: str, folder: FsPath, *, usd_per_hour: int = 0) -> AsyncIterator[Driver]:
    """The way *way* (DRIVER-STORE) to a runtime that has bubblewrap; it must leave no sandbox that runs."""
    name, _, store = way.rpartition("-")
    async with AsyncExitStack() as stack:
        if name == "in-process":
            box = Bubblewrap(folder / "containers", OWNER, folder / "images")
            stack.push_async_callback(box.aclose)
            housing = Housing({NAME: Offer(box, usd_per_hour)})
            yield await stack.enter_async_context(in_process(store, folder, housing=housing))
            return
        places = json.dumps({NAME: {"kind": "bubblewrap", "usd_per_hour": usd_per_hour}})
        runtime = Runtime(store, folder, fuse=name == "fuse", settings=[f"sandboxes={places}"])
        await trio.to_thread.run_sync(runtime.start)
        stack.callback(runtime.stop)
        yield await stack.enter_async_context(runtime.fuse() if name == "fuse" else runtime.http())
        assert '"level":"error"' not in runtime.log.read_text(), runtime.log.read_text()[-4000:]


async def pair(driver: Driver, name: str = "coder") -> tuple[FileService, FileService]:
    """A new agent as the operator sees it, and as it sees itself."""
    return await driver.agent(name), Below(driver.tree, Path(f"views/{name}"))


def script(*commands: str, **more: Any) -> dict[str, Any]:
    """A request that runs *commands*."""
    return {"commands": list(commands), **more}


async def new(own: FileService, *commands: str, want: Want | None = None, **more: Any) -> dict[str, Any]:
    """Submit `script`: what it answers."""
    found = call(own, "containers/new", script(*commands, **more), *([want] if want else []))
    return dict(await found)


async def records(own: FileService, path: str) -> list[dict[str, Any]]:
    """What came out, followed to its end."""
    held = b""
    with trio.fail_after(ENDS_S):
        async with await own.open(Path(f"{path}@follow"), Mode.READ) as follow:
            while piece := await follow.read(1 << 16, 0):
                held += piece
    found = [msgspec.json.decode(line) for line in held.splitlines()]
    assert [bool(record.get("done")) for record in found] == [False] * (len(found) - 1) + [True], found
    return found


async def until(own: FileService, path: str, text: str) -> None:
    """Wait until *text* came out."""
    held = b""
    with trio.fail_after(ENDS_S):
        async with await own.open(Path(f"{path}@follow"), Mode.READ) as follow:
            while text.encode() not in held:
                piece = await follow.read(1 << 16, 0)
                assert piece, held
                held += piece


async def ran(own: FileService, *commands: str, **more: Any) -> dict[str, Any]:
    """The result of a session of *commands*."""
    made = await new(own, *commands, **more)
    await records(own, made["output_path"])
    return dict(await load(own, made["result_path"]))


async def running(own: FileService, **more: Any) -> str:
    """A new interactive session, once it runs: its path."""
    made = await new(own, "echo up", kind="interactive", **more)
    await until(own, made["output_path"], "up")
    return f"containers/sessions/{made['session_id']}"


async def exec_in(own: FileService, session: str, command: Any, **more: Any) -> dict[str, Any]:
    """The result of *command* run in a session."""
    made = await call(own, f"{session}/exec/new", {"command": command, **more})
    await records(own, made["output_path"])
    return dict(await load(own, made["result_path"]))


async def stopped(own: FileService, session: str) -> dict[str, Any]:
    """The status of a session that is stopped."""
    async with await own.open(Path(f"{session}/ctl"), Mode.WRITE) as handle:
        await handle.write(b"stop\n", 0)
    await records(own, f"{session}/output")
    return dict(await load(own, f"{session}/status"))


def text(found: list[dict[str, Any]], stream: str = "stdout") -> str:
    """All that came out of one of the two."""
    return "".join(record.get("data", "") for record in found if record["stream"] == stream)


def offered(**providers: ContainerProvider) -> Housing:
    """*providers*, free of charge."""
    return Housing({name: Offer(provider) for name, provider in providers.items()})
