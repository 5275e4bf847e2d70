"""Where jobs go: the preferred provider, the fallback, the breaker's pauses, keys; on a clock moved by hand."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec
import pytest
import trio
from engines import fails, running, settle, started
from hypothesis import given
from hypothesis import strategies as st

from agentfs import budget
from agentfs.compute.breaker import FAILURES, FIRST_NS, LONGEST_NS, Breaker
from agentfs.compute.documents import Request, Usage, parse
from agentfs.compute.policy import Policy
from agentfs.compute.port import ComputeProvider, Part, Task, Unserved, Why
from agentfs.compute.prices import Price, estimate, input_tokens
from agentfs.compute.routing import Measured, Offer, candidates
from agentfs.engine.engine import Engine
from agentfs.engine.jobs import LIVE, POLICY
from agentfs.engine.models import PRICES
from agentfs.engine.money import COMPUTE
from agentfs.engine.orders import Order
from agentfs.errors import error
from agentfs.grants import Grant
from agentfs.limits import Limits
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.rows import AccountRow, EffectRow, JobRow
from agentfs.types import OPERATOR, Path

FREE_TABLE = {"models": {"*": {"input_usd": 1000, "output_usd": 1000}}}


class Server:
    """A provider in this process: it fails as often as it is told, then answers; `tasks` are what it was asked."""

    kinds = frozenset({"chat"})
    is_local = True

    def __init__(self, *failures: OSError, takes_s: float = 0, models: tuple[str, ...] = ("m",), key: str = "") -> None:
        self.failures, self.takes_s, self.names, self.key = list(failures), takes_s, models, key
        self.needs_key = bool(key)
        self.tasks: list[Task] = []
        self.is_partial = self.is_stuck = False
        self.clock: ManualClock | None = None

    async def models(self, key: str) -> tuple[str, ...]:
        if self.key and key != self.key:
            raise Unserved("denied", "status 401: no")
        return self.names

    async def run(self, task: Task) -> AsyncGenerator[Part]:
        self.tasks.append(task)
        if self.is_stuck:
            await trio.sleep_forever()
        if self.is_partial:
            yield Part(text="half")
        if self.failures:
            raise self.failures.pop(0)
        if self.clock is not None and self.takes_s:
            self.clock.advance(self.takes_s)
        yield Part(text="yes", finish_reason="stop", usage=Usage(input_tokens=3, output_tokens=2))

    async def aclose(self) -> None:
        """Nothing is held."""


def unserved(why: Why) -> Unserved:
    return Unserved(why, f"it is {why}")


def served(**servers: Server) -> Mapping[str, tuple[ComputeProvider, str]]:
    return {name: (server, "secret:k" if server.key else "") for name, server in servers.items()}


async def opened(engine: Engine, table: Any = FREE_TABLE, **policy: Any) -> None:
    """One agent with money, prices and a policy."""
    grant = Grant("budgeted", budget.Policy(per_day_usd=1_000_000))

    async def nobody(agent: str) -> None: ...

    engine.adopt(lambda row, service: grant, nobody)
    await started(engine)
    models = engine.jobs.models
    await models.documents.put("", PRICES, msgspec.json.encode(table), None)
    if policy:
        await models.documents.put("a", POLICY, msgspec.json.encode(policy), None)


async def asked(engine: Engine, clock: ManualClock, model: str = "m", **fields: Any) -> JobRow:
    """One job, from its submit to its end; the clock is moved past every retry."""
    doc = {"model": model, "input": {"messages": [{"role": "user", "content": "hi"}]}, **fields}
    account = engine.money.account(await engine.row("a"), COMPUTE, OPERATOR, Path(COMPUTE))
    order = Order("a", parse(msgspec.json.encode(doc)), account, engine.core.new_id(), Path("compute/new"))
    row, _ = await engine.jobs.submit(order)
    with trio.fail_after(60):
        await settle(engine)
        while (row := await engine.jobs.row("a", row.id)).state in LIVE:
            clock.advance(0.5)
            await settle(engine)
    return row


async def books(store: Store) -> tuple[int, int]:
    (row,) = [r for r in await store.scan(AccountRow, "a") if not r.period.startswith("tick")]
    return row.reserved_usd, row.spent_usd


@pytest.mark.parametrize("why", ["away", "busy", "failed", "denied"])
async def test_the_fallback_is_asked_once_under_the_same_reservation(
    store: Store, clock: ManualClock, why: Why
) -> None:
    broken, good = Server(unserved(why), unserved(why)), Server()
    async with running(store, clock, providers=served(a=broken, b=good)) as engine:
        await opened(engine)
        row = await asked(engine, clock, max_cost_usd=500)
        assert (row.state, row.provider, row.cost_usd) == ("complete", "b", 5)
        assert len(broken.tasks) == len(good.tasks) == 1 and await store.count(EffectRow) == 1
        assert await books(store) == (0, 5)


@pytest.mark.parametrize(
    ("failure", "is_partial", "cost"),
    [
        (unserved("refused"), False, 0),  # another server would not take it either
        (unserved("failed"), True, 0),  # something has been shown already
        (error(errno.EREMOTEIO, detail="cut off"), True, 500),
    ],
)
async def test_what_has_shown_something_or_was_refused_goes_nowhere_else(
    store: Store, clock: ManualClock, failure: OSError, is_partial: bool, cost: int
) -> None:
    broken, good = Server(failure), Server()
    broken.is_partial = is_partial
    async with running(store, clock, providers=served(a=broken, b=good)) as engine:
        await opened(engine)
        row = await asked(engine, clock, max_cost_usd=500)
        assert (row.state, row.error, row.cost_usd) == ("failed", "EREMOTEIO", cost) and good.tasks == []
        assert await books(store) == (0, cost)


async def test_two_failures_are_the_end(store: Store, clock: ManualClock) -> None:
    servers = {name: Server(*(unserved("failed") for _ in range(9))) for name in "abc"}
    async with running(store, clock, providers=served(**servers)) as engine:
        await opened(engine)
        row = await asked(engine, clock, max_cost_usd=500)
        assert (row.state, row.cost_usd) == ("failed", 0) and "it is failed" in row.reason
        assert [len(server.tasks) for server in servers.values()] == [1, 1, 0]
        assert await books(store) == (0, 0)


async def test_the_fallback_that_the_policy_names(store: Store, clock: ManualClock) -> None:
    first, second, named = Server(unserved("failed")), Server(), Server()
    async with running(store, clock, providers=served(a=first, b=second, c=named)) as engine:
        await opened(engine, fallback_provider="c")
        assert (await asked(engine, clock)).provider == "c" and second.tasks == []


async def test_what_the_first_may_have_cost_is_spent_too(store: Store, clock: ManualClock) -> None:
    """It was cut off before anything came: nobody knows, so all that was reserved counts."""
    cut, good = Server(error(errno.EREMOTEIO, detail="cut off")), Server()
    async with running(store, clock, providers=served(a=cut, b=good)) as engine:
        await opened(engine)
        row = await asked(engine, clock, max_cost_usd=500)
        assert (row.state, row.provider, row.cost_usd) == ("complete", "b", 500)


async def test_a_breaker_opens_half_opens_and_closes(store: Store, clock: ManualClock) -> None:
    ill = Server(*(unserved("failed") for _ in range(FAILURES + 1)))
    async with running(store, clock, providers=served(a=ill, b=Server())) as engine:
        await opened(engine)

        def health() -> object:
            return engine.jobs.models.about("a")["status"]

        for _ in range(FAILURES):
            assert health() == "closed"
            assert (await asked(engine, clock)).provider == "b"
        assert health() == "open" and len(ill.tasks) == FAILURES
        assert (await asked(engine, clock)).provider == "b" and len(ill.tasks) == FAILURES
        await fails(errno.ENOTCONN, asked(engine, clock, "a/m"))
        clock.advance(FIRST_NS / 1e9)
        assert health() == "half_open"
        assert (await asked(engine, clock)).provider == "b" and len(ill.tasks) == FAILURES + 1
        assert health() == "open"
        clock.advance(FIRST_NS / 1e9)
        assert health() == "open"  # twice as long by now
        clock.advance(FIRST_NS / 1e9)
        assert (await asked(engine, clock)).provider == "a" and health() == "closed"


@pytest.mark.parametrize(
    ("prefer", "chosen"), [("cost", "cheap"), ("latency", "fast"), ("quality", "strong"), ("balanced", "fast")]
)
async def test_what_the_policy_prefers(store: Store, clock: ManualClock, prefer: str, chosen: str) -> None:
    servers = {"cheap": Server(takes_s=1.0), "fast": Server(takes_s=0.01), "strong": Server(takes_s=0.5)}
    for server in servers.values():
        server.clock = clock
    prices = {"cheap/m": 100, "fast/m": 200, "strong/m": 400}
    table = {"models": {name: {"input_usd": usd, "output_usd": usd} for name, usd in prices.items()}}
    async with running(store, clock, providers=served(**servers)) as engine:
        await opened(engine, table, prefer=prefer)
        for name in servers:
            assert (await asked(engine, clock, f"{name}/m")).provider == name
        engine.jobs.models.answered("strong", "m", 500.0, 1000.0)
        assert (await asked(engine, clock)).provider == chosen


async def test_a_key_is_needed_and_a_callers_own_wins(store: Store, clock: ManualClock) -> None:
    server = Server(key="sk-runtime-0001")
    async with running(store, clock, providers=served(a=server)) as engine:
        await opened(engine)
        refusal = await fails(errno.ENOENT, asked(engine, clock, "a/m"))
        assert "secret" in str(refusal)
        own = await asked(engine, clock, "a/m", api_key="sk-own-00000001")  # before the runtime has one at all
        assert (own.state, server.tasks[-1].key) == ("complete", "sk-own-00000001")
        await fails(errno.EINVAL, asked(engine, clock, "m", api_key="sk-own-00000001"))  # whose key is it?
        await engine.secrets.put("", "k", b"sk-runtime-0001")
        clock.advance(2)
        await asked(engine, clock)
        assert server.tasks[-1].key == "sk-runtime-0001"
        await engine.secrets.put("", "k", b"sk-runtime-0002")  # the next request uses it, whatever is listed
        await asked(engine, clock)
        await asked(engine, clock, "a/m", api_key="sk-own-00000001")
        assert [task.key for task in server.tasks[-2:]] == ["sk-runtime-0002", "sk-own-00000001"]
        rows = b"".join([msgspec.json.encode(row) for row in await store.scan(JobRow, "a")])
        assert b"sk-" not in rows


async def test_an_own_key_opens_nothing_that_the_policy_forbids(store: Store, clock: ManualClock) -> None:
    server = Server(key="sk-runtime-0001")
    async with running(store, clock, providers=served(a=server)) as engine:
        await opened(engine, blocked_models=["a/*"])
        await fails(errno.EACCES, asked(engine, clock, "a/m", api_key="sk-own-00000001"))
        assert server.tasks == []


# -- the decisions alone -----------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "a/b", "m1", "m2", "a*", "*", "m?", "a/m1", "b/*"])
PRICE = st.builds(
    Price, input_usd=st.integers(0, 10**6), output_usd=st.integers(0, 10**6), request_usd=st.integers(0, 10**6)
)
MEASURED = st.builds(Measured, st.floats(0, 1e5), st.floats(0, 1e4), st.integers(0, 9))
OFFERS = st.lists(
    st.builds(Offer, st.sampled_from("ab"), st.sampled_from(["m1", "m2"]), st.none() | PRICE, MEASURED), max_size=8
)
POLICIES = st.builds(
    Policy,
    allowed_providers=st.none() | st.lists(NAMES, max_size=3),
    allowed_models=st.none() | st.lists(NAMES, max_size=3),
    blocked_models=st.lists(NAMES, max_size=2),
    prefer=st.sampled_from(["cost", "latency", "quality", "balanced"]),
)
REQUESTS = st.builds(
    Request,
    input=st.fixed_dictionaries(
        {"messages": st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.text()}), min_size=1)},
        optional={"max_tokens": st.integers(1, 10_000)},
    ),
    max_cost_usd=st.none() | st.integers(0, 10**9),
)


@given(OFFERS, REQUESTS, POLICIES, st.sampled_from(["", "a", "b"]), st.sampled_from(["", "m1", "m2"]))
def test_every_candidate_is_allowed(
    offers: list[Offer], request: Request, policy: Policy, provider: str, model: str
) -> None:
    found = candidates(offers, request, policy, provider, model)
    assert all(offer in offers for offer in found) and len(found) <= len(offers)
    for offer in found:
        assert policy.allows(offer.provider, offer.model)
        assert provider in ("", offer.provider) and model in ("", offer.model)
        names = (offer.model, f"{offer.provider}/{offer.model}")
        assert not set(names) & set(policy.blocked_models)
    if policy.prefer == "cost":
        costs = [float("inf") if (cost := offer.cost(request)) is None else cost for offer in found]
        assert costs == sorted(costs)
    nothing = msgspec.structs.replace(policy, blocked_models=["*"])
    assert candidates(offers, request, nothing, provider, model) == []


@given(PRICE, REQUESTS, st.integers(0, 2**20), st.integers(0, 2**20))
def test_a_price_is_never_below_zero_nor_above_its_estimate(
    price: Price, request: Request, into: int, out: int
) -> None:
    cost = price.cost(Usage(input_tokens=into, output_tokens=out))
    exact = into * price.input_usd + out * price.output_usd
    assert 0 <= (cost - price.request_usd) * 1000 - exact < 1000  # rounded up, by less than one
    most_out = request.input.get("max_tokens", 4096)
    used = Usage(input_tokens=min(into, input_tokens(request)), output_tokens=min(out, most_out))
    assert 0 <= price.cost(used) <= estimate(price, request)


@given(PRICE, st.integers(0, 10**9), st.integers(0, 10**5))
def test_as_many_tokens_come_out_as_are_paid_for(price: Price, max_cost_usd: int, into: int) -> None:
    most = price.output_tokens(max_cost_usd, into)
    if most is None:
        assert price.output_usd == 0
    elif most:
        assert price.cost(Usage(input_tokens=into, output_tokens=most)) <= max_cost_usd
        assert price.cost(Usage(input_tokens=into, output_tokens=most + 1001)) > max_cost_usd


@given(st.lists(st.sampled_from(["fail", "succeed", "start", "leave", "wait"]), max_size=60))
def test_a_breaker_lets_one_try_at_a_time(events: list[str]) -> None:
    breaker, now_ns = Breaker(), 0
    for event in events:
        if event == "wait":
            now_ns += FIRST_NS
        elif event == "fail":
            breaker = breaker.failed(now_ns)
            assert breaker.until_ns - now_ns <= LONGEST_NS
            assert breaker.is_available(now_ns) == (breaker.failures < FAILURES)
        elif event == "succeed":
            breaker = breaker.succeeded()
            assert breaker.state(now_ns) == "closed"
        elif event == "leave":
            breaker = breaker.left()
        else:
            was = breaker.state(now_ns)
            breaker = breaker.started(now_ns)
            assert breaker.is_available(now_ns) == (was == "closed")


async def submitted(engine: Engine, **fields: Any) -> JobRow:
    """A job that was taken, whatever becomes of it."""
    doc = {"model": "m", "input": {"messages": [{"role": "user", "content": "hi"}]}, "max_cost_usd": 50, **fields}
    account = engine.money.account(await engine.row("a"), COMPUTE, OPERATOR, Path(COMPUTE))
    order = Order("a", parse(msgspec.json.encode(doc)), account, engine.core.new_id(), Path("compute/new"))
    return (await engine.jobs.submit(order))[0]


async def test_a_restart_runs_what_was_never_sent_and_gives_up_the_rest(store: Store, clock: ManualClock) -> None:
    """What was sent is never sent again and counts as spent; a key that its caller brought is gone."""
    stuck = Server()
    stuck.is_stuck = True
    limits = Limits(jobs_running=1)
    async with running(store, clock, limits, providers=served(a=stuck)) as engine:
        await opened(engine)
        sent = await submitted(engine)
        await settle(engine)
        waiting, private = await submitted(engine), await submitted(engine, model="a/m", api_key="sk-mine-alone")
        assert len(stuck.tasks) == 1 and await books(store) == (150, 0)
    again = Server()
    async with running(store, clock, limits, providers=served(a=again)) as engine:
        await settle(engine)
        rows = {row.id: row for row in await store.scan(JobRow, "a")}
        assert (rows[sent.id].state, rows[sent.id].cost_usd) == ("failed", 50)
        assert (rows[waiting.id].state, rows[waiting.id].cost_usd) == ("complete", 5)
        assert (rows[private.id].state, rows[private.id].cost_usd) == ("failed", 0)
        assert len(again.tasks) == 1 and await books(store) == (0, 55)


async def test_an_agent_that_is_removed_takes_its_jobs_along(store: Store, clock: ManualClock) -> None:
    stuck = Server()
    stuck.is_stuck = True
    async with running(store, clock, providers=served(a=stuck)) as engine:
        await opened(engine)
        await submitted(engine)
        await settle(engine)
        await engine.verb("a", "terminate", OPERATOR)
        await settle(engine)
        (row,) = await store.scan(JobRow, "a")
        assert row.state == "cancelled"
        await engine.remove("a")
        assert await store.count(JobRow) == 0


async def test_a_job_is_forgotten_with_its_stream_when_its_time_is_over(store: Store, clock: ManualClock) -> None:
    async with running(store, clock, Limits(job_ttl_seconds=60), providers=served(a=Server())) as engine:
        await opened(engine)
        row = await asked(engine, clock, stream=True)
        assert await store.log("a", f"job-{row.id}")
        clock.advance(61)
        await settle(engine)
        assert await store.count(JobRow) == 0 and not await store.log("a", f"job-{row.id}")


async def test_a_job_that_takes_too_long_is_ended(store: Store, clock: ManualClock) -> None:
    stuck = Server()
    stuck.is_stuck = True
    async with running(store, clock, providers=served(a=stuck)) as engine:
        await opened(engine)
        row = await submitted(engine, timeout_ms=1000)
        await settle(engine)
        clock.advance(2)
        await settle(engine)
        ended = await engine.jobs.row("a", row.id)
        assert (ended.state, ended.error, ended.cost_usd) == ("failed", "ETIMEDOUT", 50)
