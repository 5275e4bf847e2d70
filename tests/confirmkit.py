"""The operator's desk in a test: it sees requests come, as a follower of the events does, and decides on them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from faces import load, put, whole

from agentfs.service import FileHandle, FileService
from agentfs.types import Mode, Path

BOTH = Mode.READ | Mode.WRITE


async def mount(agent: FileService, words: str, service: str = "identity") -> None:
    """Mount a service with *words* behind it instead of what the table has."""
    kept = [line for line in (await whole(agent, "ns")).decode().splitlines() if line.split()[1] != service]
    await put(agent, "".join(f"{line}\n" for line in [*kept, f"mount {service} /{service} {words}"]).encode(), "ns")


async def ask(tree: FileService, data: bytes, path: str = "identity/sign") -> bytes:
    """What comes back for *data* on one handle."""
    async with await tree.open(Path(path), BOTH) as handle:
        await handle.write(data, 0)
        return await handle.read(1 << 17, 0)


class Desk:
    """The approvals of one agent, with the events from its opening on."""

    def __init__(self, agent: FileService, events: FileHandle) -> None:
        self._agent, self._events = agent, events

    async def next(self, state: str) -> dict[str, Any]:
        """The next event of *state*."""
        while (record := await self._events.next()) is not None:
            event: dict[str, Any] = msgspec.json.decode(record.line)
            if event["state"] == state:
                return event
        raise AssertionError("the events have ended")

    async def pending(self) -> str:
        """The id of the next request."""
        id: str = (await self.next("pending"))["id"]
        return id

    async def decide(self, id: str, verb: str, tree: FileService | None = None) -> None:
        """``allow`` or ``deny``."""
        await put(tree or self._agent, f"{verb}\n".encode(), f"approvals/{id}/ctl")

    async def status(self, id: str) -> dict[str, Any]:
        """The state of one."""
        found: dict[str, Any] = await load(self._agent, f"approvals/{id}/status")
        return found

    async def request(self, id: str) -> bytes:
        """What is asked for."""
        return await whole(self._agent, f"approvals/{id}/request")

    async def states(self) -> list[str]:
        """All that happened, in order."""
        return [
            msgspec.json.decode(line)["state"] for line in (await whole(self._agent, "approvals/events")).splitlines()
        ]


@asynccontextmanager
async def desk(agent: FileService) -> AsyncIterator[Desk]:
    """The desk of *agent*, as the operator sees that."""
    async with await agent.open(Path("approvals/events@follow"), Mode.READ) as events:
        yield Desk(agent, events)
