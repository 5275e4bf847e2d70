"""Values of the kit: what is written while another write is being stored."""

from __future__ import annotations

import errno
from contextlib import nullcontext

import pytest
import trio

from agentfs.errors import error
from agentfs.tree import At, Data, Tree
from agentfs.types import Mode, Path


@pytest.mark.parametrize("fails", [False, True])
async def test_what_is_written_during_a_commit_is_of_the_next_one(fails: bool) -> None:
    stored, reached, go = list[bytes](), trio.Event(), trio.Event()

    async def read(at: At) -> bytes:
        return b""

    async def write(at: At, value: bytes) -> None:
        reached.set()
        await go.wait()
        if fails and not stored:
            stored.append(b"failed")
            raise error(errno.ENOSPC)
        stored.append(value)

    handle = await Tree(Data(name="v", read=read, write=write)).open(Path("v"), Mode.WRITE | Mode.TRUNCATE)

    async def commit() -> None:
        with pytest.raises(OSError) if fails else nullcontext():
            await handle.flush()

    await handle.write(b"one", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(commit)
        await reached.wait()
        await handle.write(b"two", 3)
        go.set()
    await handle.flush()
    await handle.aclose()
    assert stored == [b"failed" if fails else b"one", b"onetwo"]
