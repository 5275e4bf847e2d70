"""Whole files through any face, as a test reads and writes them."""

from __future__ import annotations

from typing import Any

import msgspec

from agentfs.service import FileService
from agentfs.types import NO_WANT, Mode, Path, Want


async def whole(agent: FileService, path: str) -> bytes:
    async with await agent.open(Path(path), Mode.READ) as handle:
        return await handle.read(1 << 20, 0)


async def put(agent: FileService, data: bytes, path: str = "inbox") -> None:
    async with await agent.open(Path(path), Mode.WRITE) as handle:
        await handle.write(data, 0)
        await handle.flush(final=True)


async def call(agent: FileService, path: str, request: Any, want: Want = NO_WANT) -> Any:
    """Write one JSON request, read its JSON answer on the same handle."""
    async with await agent.open(Path(path), Mode.READ | Mode.WRITE, want=want) as handle:
        await handle.write(msgspec.json.encode(request), 0)
        return msgspec.json.decode(await handle.read(1 << 20, 0))


async def load(agent: FileService, path: str) -> Any:
    """A JSON document."""
    return msgspec.json.decode(await whole(agent, path))
