"""Attacks on jobs: keys that go astray, money for nothing, answers without end, a queue that nobody can leave."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, cast

import msgspec
import pytest
import trio
from engines import Script, dead, fails, running, send, settle
from test_compute_engine import Server, asked, books, opened, served, submitted, unserved

from agentfs.compute.documents import DEPTH_MAX, Request, Usage, parse
from agentfs.compute.port import Part, Task
from agentfs.compute.prices import estimate
from agentfs.compute.routing import Offer
from agentfs.engine.engine import Engine
from agentfs.engine.models import PRICES
from agentfs.engine.money import COMPUTE
from agentfs.engine.orders import Order
from agentfs.limits import Limits
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.rows import HoldRow, JobRow
from agentfs.services import Scope, Table
from agentfs.services.compute import compute
from agentfs.tree import Errors
from agentfs.types import OPERATOR, Path, Principal

OWN = "sk-own-0000000001"
CHEAP, DEAR = {"input_usd": 1, "output_usd": 1}, {"input_usd": 100_000, "output_usd": 100_000}


class Says(Server):
    """It answers with the parts it is given; `taken` counts how many were."""

    def __init__(self, *parts: Part) -> None:
        super().__init__()
        self.parts, self.taken = parts, 0
        self.before: Callable[[], None] | None = None

    async def run(self, task: Task) -> AsyncGenerator[Part]:
        self.tasks.append(task)
        for part in self.parts:
            self.taken += 1
            yield part
        if self.before is not None:
            self.before()
        if self.failures:
            raise self.failures.pop(0)


async def keyed(engine: Engine, key: str, principal: Principal = OPERATOR) -> tuple[JobRow, bool]:
    """A job under one key, and whether it is new."""
    doc = {"model": "m", "input": {"messages": [{"role": "user", "content": "hi"}]}, "max_cost_usd": 50}
    account = engine.money.account(await engine.row("a"), COMPUTE, principal, Path(COMPUTE))
    return await engine.jobs.submit(Order("a", parse(msgspec.json.encode(doc)), account, key, Path("compute/new")))


# -- keys --------------------------------------------------------------------------------------------------------------


async def test_a_callers_own_key_goes_to_nobody_but_whom_it_is_for(store: Store, clock: ManualClock) -> None:
    one, two = Server(*[unserved("denied")] * 2), Server()
    async with running(store, clock, providers=served(a=one, b=two)) as engine:
        await opened(engine)
        refusal = await fails(errno.EINVAL, submitted(engine, api_key=OWN))
        assert "PROVIDER/MODEL" in str(refusal) and one.tasks == two.tasks == []
        row = await asked(engine, clock, "a/m", api_key=OWN)
        assert row.state == "failed" and [task.key for task in one.tasks] == [OWN] and two.tasks == []


@pytest.mark.parametrize("key", [f"{OWN}\nx", f"{OWN} x", "sk-schlüssel", f"\t{OWN}"])
async def test_what_no_header_can_carry_is_no_key(store: Store, clock: ManualClock, key: str) -> None:
    """A library that refuses it would say so in words that hold the key."""
    server = Server(key="x")
    server.key = key
    async with running(store, clock, providers=served(a=server)) as engine:
        await opened(engine)
        refusal = await fails(errno.EINVAL, submitted(engine, model="a/m", api_key=key))
        assert OWN not in str(refusal)
        await engine.secrets.put("", "k", key.encode())
        refusal = await fails(errno.ENOENT, submitted(engine, model="a/m"))
        assert OWN not in str(refusal) and "the key of a is not printable ASCII" in str(refusal)


async def test_a_key_that_is_gone_costs_nothing(store: Store, clock: ManualClock) -> None:
    server = Server(key="sk-runtime-0001")
    async with running(store, clock, providers=served(a=server)) as engine:
        await opened(engine)
        await engine.secrets.put("", "k", b"sk-runtime-0001")
        await asked(engine, clock)
        await engine.secrets.remove("", "k")  # the list of models is known yet
        row = await asked(engine, clock, max_cost_usd=500)
        assert (row.state, row.cost_usd, len(server.tasks)) == ("failed", 0, 1) and "no such secret" in row.reason
        assert await books(store) == (0, 5)


async def test_who_is_out_of_room_with_a_key_of_its_own_shuts_nobody_out(store: Store, clock: ManualClock) -> None:
    server = Server(*[unserved("busy")] * 8)
    async with running(store, clock, providers=served(a=server)) as engine:
        await opened(engine)
        for _ in range(4):
            await asked(engine, clock, "a/m", api_key=OWN)
        assert server.failures == [] and (await asked(engine, clock)).state == "complete"


# -- money -------------------------------------------------------------------------------------------------------------


async def test_what_is_reserved_pays_for_either_place(store: Store, clock: ManualClock) -> None:
    """The second choice is another provider's, not the next model of the one that failed."""
    first, second = Server(unserved("away"), models=("m", "n")), Server()
    async with running(store, clock, providers=served(a=first, b=second)) as engine:
        await opened(engine, {"models": {"a/*": CHEAP, "b/*": DEAR}}, prefer="cost")
        row = await asked(engine, clock, "", input={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5})
        assert (row.provider, row.cost_usd) == ("b", 500)
        request = msgspec.json.decode(row.request, type=Request)
        (dear,) = [o for o in await engine.jobs.models.offers() if o.provider == "b"]
        assert dear.price is not None and row.reserved_usd == estimate(dear.price, request)


async def test_a_price_that_rose_meanwhile_is_not_paid(store: Store, clock: ManualClock) -> None:
    server = Server()
    server.is_stuck = True
    async with running(store, clock, Limits(jobs_running=1), providers=served(a=server)) as engine:
        await opened(engine, {"models": {"m": CHEAP}})
        first, row = await submitted(engine), await submitted(engine, max_cost_usd=None)
        await settle(engine)
        await engine.jobs.models.documents.put("", PRICES, msgspec.json.encode({"models": {"m": DEAR}}), None)
        await engine.jobs.cancel("a", first.id)
        await settle(engine)
        row = await engine.jobs.row("a", row.id)
        assert (row.state, row.error, row.cost_usd, len(server.tasks)) == ("failed", "EDQUOT", 0, 1)


async def test_usage_of_nothing_is_no_report(store: Store, clock: ManualClock) -> None:
    server = Says(Part(text="yes", finish_reason="stop", usage=Usage()))
    async with running(store, clock, providers=served(a=server)) as engine:
        await opened(engine)
        assert (await asked(engine, clock, max_cost_usd=500)).cost_usd == 500
        assert await books(store) == (0, 500)


# -- time, room and order ----------------------------------------------------------------------------------------------


async def test_who_waits_for_a_place_can_leave(store: Store, clock: ManualClock) -> None:
    """A job that is pending is cancelled, and its time runs, as if it were under way."""
    stuck = Server()
    stuck.is_stuck = True
    async with running(store, clock, Limits(jobs_running=1), providers=served(a=stuck)) as engine:
        await opened(engine)
        await submitted(engine)
        await settle(engine)
        left, late = await submitted(engine), await submitted(engine, timeout_ms=1000)
        await engine.jobs.cancel("a", left.id)
        clock.advance(2)
        await settle(engine)
        left, late = await engine.jobs.row("a", left.id), await engine.jobs.row("a", late.id)
        assert (left.state, late.state, late.error) == ("cancelled", "failed", "ETIMEDOUT")
        assert await books(store) == (50, 0) and len(stuck.tasks) == 1


async def test_a_list_that_does_not_come_keeps_nobody(store: Store, clock: ManualClock) -> None:
    class Hung(Server):
        is_hung = False

        async def models(self, key: str) -> tuple[str, ...]:
            if self.is_hung:
                await trio.sleep_forever()
            return ()

    good, hung = Server(), Hung()
    async with running(store, clock, providers=served(a=good, h=hung)) as engine:
        await opened(engine)
        await asked(engine, clock)
        hung.is_hung = True
        clock.advance(61)
        assert (await asked(engine, clock)).state == "complete"


async def test_a_list_of_a_broken_provider_breaks_nothing_else(
    store: Store, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Server):
        async def models(self, key: str) -> tuple[str, ...]:
            raise KeyError("data")

    async with running(store, clock, providers=served(a=Server(), z=Broken())) as engine:
        await opened(engine)
        assert (await asked(engine, clock)).state == "complete"
        assert engine.jobs.models.about("z")["reason"] == "internal error"
        clock.advance(61)
        assert (await asked(engine, clock)).state == "complete"
    caplog.clear()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "parts",
    [
        [Part(data=[{"index": 0, "function": {"arguments": "x" * 10_000}}])] * 500,
        [Part(output={"images": ["x" * 2_000_000]})],
    ],
)
async def test_an_answer_without_end_is_ended(
    store: Store, clock: ManualClock, parts: Sequence[Part], stream: bool
) -> None:
    """Tool calls, pictures and the like count as text does."""
    server = Says(*parts, Part(finish_reason="stop"))
    async with running(store, clock, Limits(body_bytes=1_000_000), providers=served(a=server)) as engine:
        await opened(engine)
        row = await asked(engine, clock, stream=stream, max_cost_usd=100_000)
        assert (row.state, row.error) == ("failed", "EFBIG") and server.taken <= 101


async def test_what_is_measured_is_of_who_answered(store: Store, clock: ManualClock) -> None:
    """A first sign of life of one provider is not the first of the next."""
    mute = Says(Part())
    mute.failures, mute.before = [unserved("failed")], lambda: clock.advance(5)
    async with running(store, clock, providers=served(a=mute, b=Server())) as engine:
        await opened(engine)
        assert (await asked(engine, clock)).provider == "b"
        assert engine.jobs.models.served["b"].measured["m"].first_ms == 0


async def test_a_job_that_runs_again_is_another_version(store: Store, clock: ManualClock) -> None:
    """Else who asks "only if it changed" is told that a failed job is as it was."""
    async with running(store, clock, providers=served(a=Server(unserved("denied")))) as engine:
        await opened(engine)
        await keyed(engine, "k")
        await settle(engine)
        (before,) = await store.scan(JobRow, "a")
        await keyed(engine, "k")
        await settle(engine)
        (after,) = await store.scan(JobRow, "a")
        assert (before.state, after.state) == ("failed", "complete") and after.version > before.version


async def test_a_dead_letter_finds_its_jobs_however_late(store: Store, clock: ManualClock) -> None:
    """The journal keeps the key of an envelope that may be replayed; so does the job stay."""
    server, seen = Server(), list[tuple[str, bool]]()

    async def act(self: Script, ctx: Any, trigger: Any) -> None:
        row, is_new = await keyed(engine, "k", Principal("agent", "a"))
        seen.append((row.id, is_new))
        while (await engine.jobs.row("a", row.id)).state != "complete":
            await trio.lowlevel.checkpoint()
        raise ValueError("not good enough")

    async with running(store, clock, Limits(job_ttl_seconds=60), providers=served(a=server)) as engine:
        await opened(engine)
        Script.act = act
        await send(engine, "a", "x", id="e")
        await settle(engine)
        while not await dead(engine, "a"):
            clock.advance(100)
            await settle(engine)
        clock.advance(7200)
        await settle(engine)
        row, is_new = await keyed(engine, "k")
        assert (row.state, is_new, len(server.tasks)) == ("complete", False, 1)
        assert len(set(seen)) == 2 and len(seen) > 1


@pytest.mark.parametrize("depth", [DEPTH_MAX - 3, DEPTH_MAX, 900])
def test_an_input_is_so_deep_at_most(depth: int) -> None:
    """What would be too deep to be counted is refused at the door."""
    nest = b'{"a":' * depth + b"1" + b"}" * depth
    doc = b'{"input":{"messages":[{"role":"user","content":"x"}],"x":%b}}' % nest
    if depth < DEPTH_MAX:
        request = parse(doc)
        assert Offer("a", "m", None).cost(request) is None and request.input["x"]
    else:
        with pytest.raises(OSError, match="nested deeper") as caught:
            parse(doc)
        assert caught.value.errno == errno.EINVAL


# -- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(4, 124, 8))
async def test_who_asks_while_its_agent_is_terminated_leaves_no_job_behind(
    store: Store, clock: ManualClock, steps: int
) -> None:
    stuck = Server()
    stuck.is_stuck = True

    async def ask(engine: Engine) -> None:
        with contextlib.suppress(PermissionError):
            await submitted(engine)

    async with running(store, clock, providers=served(a=stuck)) as engine:
        await opened(engine)
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(ask, engine)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            await engine.verb("a", "terminate", OPERATOR)
        await settle(engine)
        rows = await store.scan(JobRow, "a")
        assert {row.state for row in rows} <= {"cancelled", "failed"}
        assert await store.count(HoldRow) == 0


async def test_jobs_are_never_held_all_at_once(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may hold a picture: neither a start nor a listing reads them all into memory."""
    sizes, scan = list[int](), store.scan

    async def counted(table: Any, *prefix: str, **how: Any) -> Any:
        rows = await scan(table, *prefix, **how)
        sizes.extend([len(rows)] if table is JobRow else [])
        return rows

    async with running(store, clock, providers=served(a=Server())) as engine:
        await opened(engine)
        made = [await submitted(engine) for _ in range(70)]
        await settle(engine)
    monkeypatch.setattr(store, "scan", counted)
    async with running(store, clock, providers=served(a=Server())) as engine:
        await settle(engine)
        tree = compute(Scope(engine, "a", Errors(lambda path, exc: None), cast("Table", None)))
        found = await tree.list(Path("jobs"))
        rest = await tree.list(Path("jobs"), after=found[9].name, limit=20)
    assert [st.name for st in found] == sorted(row.id for row in made) and rest == found[10:30]
    assert sizes and max(sizes) <= 32
