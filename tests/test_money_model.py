"""Budget and journal against a naive model, killed and restarted between any two steps: money is always conserved."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio
from engines import settings as program
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentfs.budget import Policy, day_of
from agentfs.engine.audit import audit
from agentfs.engine.engine import Engine
from agentfs.engine.journal import DONE, FAILED, OPEN, UNKNOWN, Intent
from agentfs.limits import Limits
from agentfs.ports import Charge, Committed, Store, Sums, Unit
from agentfs.providers.clock import ManualClock
from agentfs.providers.store.memory import MemoryStore
from agentfs.providers.store.sqlite import SqliteStore
from agentfs.rows import AccountRow, EffectRow, EnvelopeRow, HoldRow
from agentfs.tree import Tree
from agentfs.types import OPERATOR
from agentfs.types import Path as TreePath

DAY_S = 86_400
KEYS = st.sampled_from(["k1", "k2", "k3", "k4"])
BODIES = st.sampled_from(["body", "another"])
MONEY = st.integers(0, 60)
DAY_LIMIT, TICK_LIMIT, TOKEN_LIMIT = 100, 70, 90
KILLS = st.sampled_from(["", "", "before", "after"])


class Killed(BaseException):
    """The process is gone."""


class Mortal:
    """A store whose process dies *before* or right *after* a commit of its choice."""

    def __init__(self, store: Store) -> None:
        self._store, self.dies, self.countdown = store, "", 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, unit: Unit) -> Committed:
        self.countdown -= 1
        if self.dies == "before" and self.countdown < 0:
            raise Killed
        done = await self._store.commit(unit)
        if self.dies == "after" and self.countdown < 0:
            raise Killed
        return done


class World(RuleBasedStateMachine):
    """Each step runs in a process of its own: all that lives on is in the store."""

    name = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.top = Path(tempfile.mkdtemp())
        self.clock = ManualClock()
        self.memory = MemoryStore(self.clock)
        self.entries: dict[str, dict[str, Any]] = {}
        self.sums: dict[tuple[str, str], list[int]] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.top)

    # -- processes -----------------------------------------------------------------------------------------------------

    def process(self, act: Callable[[Engine], Awaitable[Any]], dies: str = "", countdown: int = 0) -> Any:
        """Run *act* in a process: what it gives, or Killed, or the errno of its OSError."""

        async def main() -> Any:
            store = self.memory if self.name == "memory" else await SqliteStore.open(self.top / "db", self.clock)
            mortal = Mortal(store)
            engine = Engine(mortal, self.clock, Limits(), lambda a, s: None, lambda a: Tree())  # type: ignore[arg-type, return-value]
            mortal.dies, mortal.countdown = dies, countdown
            try:
                return await act(engine)
            except OSError as exc:
                return exc.errno
            except Killed:
                return Killed
            finally:
                assert list(await store.check()) == [] and list(await audit(store)) == []
                if self.name != "memory":
                    await store.aclose()

        return trio.run(main)

    @initialize()
    def create(self) -> None:
        async def act(engine: Engine) -> None:
            await engine.create("a", program())

        self.process(act)

    def charges(self, envelope: str) -> tuple[Charge, ...]:
        tick = (Charge("a", "effects", f"tick:{envelope}", TICK_LIMIT),) if envelope else ()
        return (
            Charge("a", "effects", day_of(self.clock.now_ns()), DAY_LIMIT),
            *tick,
            Charge("", "token:t", "total", TOKEN_LIMIT),
        )

    # -- the model -----------------------------------------------------------------------------------------------------

    def fits(self, charges: tuple[Charge, ...], amount: int) -> bool:
        return all(sum(self.sums.get((c.account, c.period), [0, 0])) + amount <= (c.limit_usd or 0) for c in charges)

    def move(self, charges: tuple[Charge, ...], reserved: int, spent: int) -> None:
        for charge in charges:
            line = self.sums.setdefault((charge.account, charge.period), [0, 0])
            line[0] += reserved
            line[1] += spent

    def settle(self, entry: dict[str, Any], state: str, cost: int) -> None:
        self.move(entry["charges"], -entry["amount"], min(cost, entry["amount"]))
        entry["state"] = state

    # -- steps ---------------------------------------------------------------------------------------------------------

    @rule(key=KEYS, body=BODIES, amount=MONEY, in_tick=st.booleans(), dies=KILLS)
    def begin(self, key: str, body: str, amount: int, in_tick: bool, dies: str) -> None:
        envelope = "m1" if in_tick else ""
        charges = self.charges(envelope)
        deadline = None if in_tick else self.clock.now_ns() + 10**9 * DAY_S
        intent = Intent("a", "bank", key, body, amount, charges, "a", envelope=envelope, deadline_ns=deadline)
        known = self.entries.get(key)
        got = self.process(lambda engine: engine.money.journal.begin(intent), dies)
        if known is not None and known["body"] != body:
            assert got == errno.EEXIST
        elif known is not None and known["state"] != FAILED:
            assert got[1] is False and got[0].state == known["state"]
        elif not self.fits(charges, amount):
            assert got == errno.EDQUOT
        elif dies == "before":
            assert got is Killed
        else:
            assert got is Killed if dies else got[1]
            self.move(charges, amount, 0)
            about = {"body": body, "amount": amount, "state": OPEN, "charges": charges, "tick": in_tick}
            self.entries[key] = {**about, "deadline": deadline or 0}

    @rule(key=KEYS, cost=st.none() | MONEY, fails=st.booleans(), dies=KILLS)
    def finish(self, key: str, cost: int | None, fails: bool, dies: str) -> None:
        state, entry = FAILED if fails else DONE, self.entries.get(key)
        cost = 0 if fails else cost
        effect = Intent("a", "bank", key, "", 0, (), "").id
        got = self.process(lambda engine: engine.money.journal.finish("a", effect, state, cost_usd=cost), dies)
        if entry is None:
            assert got == errno.ENOENT
        elif entry["state"] == OPEN:
            assert (got is Killed) if dies else got.state == state
            if dies != "before":
                self.settle(entry, state, entry["amount"] if cost is None else cost)
        else:
            assert got == errno.EEXIST or got.state == entry["state"]

    @rule(price=st.integers(1, 30), dies=KILLS, countdown=st.integers(0, 1), fails=st.booleans())
    def pay_a_price(self, price: int, dies: str, countdown: int, fails: bool) -> None:
        """A unit of a priced mount, killed at its reservation, at its settlement, or not at all."""

        async def act(engine: Engine) -> None:
            account = engine.money.account(await engine.row("a"), "effects", OPERATOR, TreePath("effects"))
            account = replace(account, policy=Policy(price_usd=price, per_day_usd=DAY_LIMIT))
            async with account.paying(TreePath("x"), b"doc"):
                if fails:
                    raise OSError(errno.EINVAL, "bad")

        charges = (Charge("a", "effects", day_of(self.clock.now_ns()), DAY_LIMIT),)
        got = self.process(act, dies, countdown)
        if not self.fits(charges, price):
            assert got == errno.EDQUOT
        elif dies == "before" and countdown == 0:
            assert got is Killed
        else:
            died_open = dies and not (dies == "after" and countdown == 1)
            assert got is Killed if dies else got == (errno.EINVAL if fails else None)
            if died_open:  # the next start takes the price: nobody can tell whether the unit was stored
                self.process(lambda engine: engine.money.restore())
                self.swept()
                self.move(charges, 0, price)
            elif not fails:
                self.move(charges, 0, price)

    @rule(dies=KILLS, countdown=st.integers(0, 2))
    def restart(self, dies: str, countdown: int) -> None:
        """A start that may be killed too, and then one that is not."""
        if dies:
            self.process(lambda engine: engine.money.restore(), dies, countdown)
        self.process(lambda engine: engine.money.restore())
        self.swept()

    @precondition(lambda self: self.entries)
    @rule()
    def wait_a_day(self) -> None:
        self.clock.advance(DAY_S + 1)
        self.restart("", 0)

    def swept(self) -> None:
        """What a start makes of what it finds: a tick's open entry whose envelope is gone, and what is late."""

        async def look(engine: Engine) -> dict[str, str]:
            return {row.key: row.state for row in await engine.core.store.scan(EffectRow, "a")}

        found = self.process(look)
        for key, entry in list(self.entries.items()):
            if key not in found:
                assert entry["state"] != OPEN, "an open entry is never forgotten"
                del self.entries[key]
            elif entry["state"] == OPEN and found[key] == UNKNOWN:
                self.settle(entry, UNKNOWN, entry["amount"])
            else:
                assert found[key] == entry["state"], key
                is_over = entry["tick"] or entry["deadline"] <= self.clock.now_ns()
                assert entry["state"] != OPEN or not is_over, "nobody can report it any more, and it is still held"

    # -- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def money_is_conserved(self) -> None:
        async def look(engine: Engine) -> None:
            store = engine.core.store
            assert await store.count(EnvelopeRow) == 0
            limits = {"total": TOKEN_LIMIT, "tick:m1": TICK_LIMIT}
            rows = [row for agent in ("", "a") for row in await store.scan(AccountRow, agent)]
            for row in rows:
                limit, now = limits.get(row.period, DAY_LIMIT), Sums(row.reserved_usd, row.spent_usd)
                assert now.reserved_usd >= 0 and now.spent_usd >= 0 and now.remaining(limit) >= 0
                assert now.reserved_usd + now.spent_usd + now.remaining(limit) == limit
            known = {(r.account, r.period): [r.reserved_usd, r.spent_usd] for r in rows}
            for key, line in self.sums.items():
                assert known.get(key, [0, 0]) == line or (key not in known and line[0] == 0), (key, known, self.sums)
            for key in set(self.sums) - set(known):
                del self.sums[key]  # an account that is over was forgotten
            held = sum(row.amount_usd for row in await store.scan(HoldRow, "a"))
            assert held == sum(e["amount"] for e in self.entries.values() if e["state"] == OPEN)

        self.process(look)


class OnDisk(World):
    name = "sqlite"


World.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
OnDisk.TestCase.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
TestInMemory = World.TestCase
TestOnDisk = OnDisk.TestCase
