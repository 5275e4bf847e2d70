"""Attacks on budgets, tokens, approvals and the journal: each test is a rule that was broken once."""

from __future__ import annotations

import pytest
from faces import put, whole
from test_tokens import issued, opened, world

from agentfs.house import House
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.service import FileService
from agentfs.types import OPERATOR, Mode, Path

READ, WRITE = Mode.READ, Mode.WRITE
PAYMENT = {"provider": "bank", "key": "k", "request": 1, "max_cost_usd": 10}


async def table(house: House, *lines: str) -> None:
    """Replace the line of each service named in *lines* in the mount table of "a"."""
    top = house.attach(OPERATOR)
    names = {line.split()[1] for line in lines}
    kept = [old for old in (await whole(top, "agents/a/ns")).decode().splitlines() if old.split()[1] not in names]
    await put(top, "".join(f"{line}\n" for line in [*kept, *lines]).encode(), "agents/a/ns")


async def make(tree: FileService, path: str, data: bytes = b"secret") -> None:
    async with await tree.create(Path(path), WRITE) as handle:
        await handle.write(data, 0)


@pytest.mark.parametrize("part", [b"\n", b" ", b"half a mess", b'{"payl'])
async def test_who_may_only_write_reads_no_messages(store: Store, clock: ManualClock, part: bytes) -> None:
    """Half a document is no request, and the only thing to be read behind one is its own receipt."""
    async with world(store, clock) as (engine, house):
        await put(house.attach(OPERATOR), b"pause\n", "agents/a/ctl")
        await put(house.attach(OPERATOR), b"a secret\n", "agents/a/inbox")
        tree = opened(engine, house, (await issued(house, allow=["/agents/a/inbox:write"]))["token"])
        async with await tree.open(Path("agents/a/inbox"), READ | WRITE) as handle:
            await handle.write(part, 0)
            assert b"secret" not in await handle.read(1 << 20, 0)
            handle.discard()


async def test_who_may_only_write_reads_no_value_by_creating_it(store: Store, clock: ManualClock) -> None:
    async with world(store, clock) as (engine, house):
        await make(house.attach(OPERATOR), "agents/a/kv/x")
        tree = opened(engine, house, (await issued(house, allow=["/agents/a/kv:write"]))["token"])
        with pytest.raises(PermissionError):
            async with await tree.create(Path("agents/a/kv/x"), READ | WRITE) as handle:
                await handle.write(b"S", 0)
                assert b"ecret" not in await handle.read(100, 0)
        await make(tree, "agents/a/kv/y")
