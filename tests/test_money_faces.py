"""Money through every face and over both stores: what a limit lets through, and what a key stands for."""

from __future__ import annotations

import errno
from collections import Counter

import msgspec
import pytest
import trio
from engines import fails
from faces import call, load, put, whole

from agentfs.service import FileService
from agentfs.types import Mode, Path, Want
from agentfs.views import Below
from conformance.drivers import Driver

# httpx leaves the generators of a stream that was cancelled half-way to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


async def capped(driver: Driver, name: str, budget: str) -> tuple[FileService, FileService]:
    """A new agent whose effects have *budget*: as the operator sees it and as it sees itself."""
    agent = await driver.agent(name)
    table = await whole(agent, "ns")
    lines = [line for line in table.splitlines(keepends=True) if b"mount effects" not in line]
    await put(agent, b"".join(lines) + f"mount effects /effects budgeted {budget}\n".encode(), "ns")
    return agent, Below(driver.tree, Path(f"views/{name}"))


def payment(key: str, cost: int, request: object = "pay") -> dict[str, object]:
    return {"provider": "bank", "key": key, "request": request, "max_cost_usd": cost}


async def test_budget_enforcement(driver: Driver) -> None:
    """64 at once against a limit that fits 10: exactly 10 go through, and money is conserved."""
    agent, own = await capped(driver, "capped", "per_day_usd=1000")
    outcomes: Counter[str] = Counter()

    async def submit(number: int) -> None:
        tree = own if number % 2 else agent
        try:
            answer = await call(tree, "effects/new", payment(f"k{number}", 100))
        except OSError as exc:
            outcomes[errno.errorcode[exc.errno or 0]] += 1
        else:
            outcomes["new" if answer["is_new"] else "old"] += 1

    async with trio.open_nursery() as nursery:
        for number in range(64):
            nursery.start_soon(submit, number)
    assert outcomes == {"new": 10, "EDQUOT": 54}
    day = (await load(agent, "effects/usage"))["day"]
    assert (day["reserved_usd"], day["spent_usd"], day["remaining_usd"]) == (1000, 0, 0)
    assert (await load(agent, "status"))["budget"]["effects"]["day"] == day
    ids = [st.name for st in await agent.list(Path("effects")) if st.is_dir]
    assert len(ids) == 10
    await put(agent, b'{"receipt": "paid", "cost_usd": 30}', f"effects/{ids[0]}/result")
    await put(own, b'{"error": "refused"}', f"effects/{ids[1]}/result")
    day = (await load(own, "effects/usage"))["day"]
    assert (day["reserved_usd"], day["spent_usd"], day["remaining_usd"]) == (800, 30, 170)
    assert b'"event":"warning"' in await whole(agent, "logs/trace")
    assert b'"event":"refused"' in await whole(agent, "logs/trace")
    await fails(errno.EDQUOT, call(own, "effects/new", payment("last", 171)))
    assert (await call(own, "effects/new", payment("last", 170)))["is_new"]


async def test_idempotent_effects(driver: Driver) -> None:
    """A key again is the first receipt and costs nothing; another request under it is refused, on every face."""
    agent, own = await capped(driver, "twice", "per_day_usd=1000")
    first = await call(own, "effects/new", payment("k", 100))
    assert first["is_new"] and first["state"] == "open"
    again = await call(agent, "effects/new", payment("k", 100))
    assert not again["is_new"] and again["state"] == "open" and again["id"] == first["id"]
    await fails(errno.EEXIST, call(own, "effects/new", payment("k", 100, "another")))
    await put(own, b'{"receipt": {"no": 7}, "cost_usd": 60}', f"effects/{first['id']}/result")
    for tree in (own, agent):
        done = await call(tree, "effects/new", payment("k", 100))
        assert (done["is_new"], done["state"], done["receipt"], done["spent_usd"]) == (False, "done", {"no": 7}, 60)
    with pytest.raises(FileExistsError):
        await put(own, b'{"receipt": {"no": 8}, "cost_usd": 60}', f"effects/{first['id']}/result")
    await put(own, b'{"receipt": {"no": 7}, "cost_usd": 60}', f"effects/{first['id']}/result")
    day = (await load(agent, "effects/usage"))["day"]
    assert (day["reserved_usd"], day["spent_usd"]) == (0, 60)
    answers: Counter[bool] = Counter()

    async def submit() -> None:
        answers[(await call(own, "effects/new", payment("race", 10)))["is_new"]] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(submit)
    assert answers == {True: 1, False: 7}
    if "version" in driver.expresses:  # a mount has no header: there the key is in the document
        want, request = Want(key="by-header"), {"provider": "bank", "request": 1}
        found = [await call(own, "effects/new", request, want) for _ in range(2)]
        assert [f["is_new"] for f in found] == [True, False] and found[0]["key"] == "by-header"


async def test_a_price_for_each_write(driver: Driver) -> None:
    """A mount with a price takes it for each unit that is stored, and nothing for one that is refused."""
    agent = await driver.agent("priced")
    table = (await whole(agent, "ns")).replace(
        b"mount kv /kv\n", b"mount kv /kv budgeted price_usd=10 per_day_usd=25\n"
    )
    await put(agent, table, "ns")
    own = Below(driver.tree, Path("views/priced"))
    for name in ("a", "b"):
        async with await own.create(Path(f"kv/{name}"), Mode.WRITE) as handle:
            await handle.write(b"x", 0)
            await handle.flush(final=True)
    with pytest.raises(OSError) as caught:
        async with await own.open(Path("kv/a"), Mode.WRITE) as handle:
            await handle.write(b"y", 0)
            await handle.flush(final=True)
    assert caught.value.errno == errno.EDQUOT
    assert await whole(own, "kv/a") == b"x"
    day = (await load(agent, "status"))["budget"]["kv"]["day"]
    assert (day["spent_usd"], day["reserved_usd"]) == (20, 0)


async def test_an_approval_lets_one_write_through(driver: Driver) -> None:
    """Over the threshold EPERM names the request; allowed, the very same write goes through once; denied, never."""
    agent, own = await capped(driver, "asking", "per_day_usd=1000 approval_threshold_usd=50")
    assert (await call(own, "effects/new", payment("small", 50)))["is_new"]
    await fails(errno.EPERM, call(own, "effects/new", payment("large", 60)))
    (request,) = [st.name for st in await own.list(Path("approvals")) if st.is_dir]
    assert msgspec.json.decode(await whole(agent, f"approvals/{request}/request")) == payment("large", 60)
    status = await load(agent, f"approvals/{request}/status")
    assert (status["state"], status["cost_usd"], status["path"]) == ("pending", 60, "effects/new")
    with pytest.raises(PermissionError):
        await put(own, b"allow\n", f"approvals/{request}/ctl")
    await put(agent, b"allow\n", f"approvals/{request}/ctl")
    await fails(errno.EPERM, call(own, "effects/new", payment("other", 61)))
    assert (await call(own, "effects/new", payment("large", 60)))["is_new"]
    assert (await load(agent, f"approvals/{request}/status"))["state"] == "used"
    other = next(st.name for st in await own.list(Path("approvals")) if st.is_dir and st.name != request)
    await put(agent, b"deny\n", f"approvals/{other}/ctl")
    await fails(errno.EPERM, call(own, "effects/new", payment("other", 61)))
    states = [msgspec.json.decode(line)["state"] for line in (await whole(own, "approvals/events")).splitlines()]
    assert states == ["pending", "allowed", "pending", "used", "denied"]
