"""`StoreLedger`: the money of one store, through the pure machine of `agentfs.budget`; the default `Ledger`.

It decides nothing about who pays for what; limits come with each charge.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeAlias
from weakref import WeakValueDictionary

import anyio
import msgspec

from agentfs.budget import Books, Hold, Reserve, Settle, is_warned, key_of, step
from agentfs.engine.core import Core
from agentfs.errors import error
from agentfs.ports import Append, Change, Charge, Committed, Delete, Expect, Insert, Put, Sums
from agentfs.rows import AccountRow, HoldRow

_RACES = 64
Moves: TypeAlias = Reserve | Settle


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The part of the books that one event touches, and the rows it came from."""

    books: Books
    rows: dict[tuple[str, str, str], AccountRow | None]


class StoreLedger:
    """Accounts and holds as rows: read, step, and committed only if nobody changed them meanwhile."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()

    async def reserve(
        self, agent: str, hold: str, amount_usd: int, charges: Sequence[Charge], *also: Change
    ) -> Committed:
        """See `Ledger.reserve`."""
        unique = tuple(sorted(set(charges)))
        row = HoldRow(
            agent=agent, id=hold, amount_usd=amount_usd, charges=msgspec.json.encode(unique).decode(),
            at_ns=self._core.clock.now_ns(),
        )  # fmt: skip
        return await self._apply(agent, Reserve(hold, amount_usd, unique), unique, None, Insert(row), *also)

    async def settle(self, agent: str, hold: str, cost_usd: int, *also: Change) -> Committed:
        """See `Ledger.settle`."""
        row = await self._core.store.get(HoldRow, agent, hold)
        if row is None:
            raise error(errno.ENOENT, detail=f"no reservation {hold!r}")
        charges = msgspec.json.decode(row.charges, type=tuple[Charge, ...])
        key = (agent, hold)
        changes = (Expect(HoldRow, key, errno=errno.ENOENT), Delete(HoldRow, key), *also)
        return await self._apply(agent, Settle(hold, cost_usd), charges, Hold(row.amount_usd, charges), *changes)

    async def usage(self, charge: Charge) -> Sums:
        """See `Ledger.usage`."""
        return _sums(await self._core.store.get(AccountRow, *key_of(charge)))

    async def _apply(
        self, agent: str, event: Moves, charges: tuple[Charge, ...], hold: Hold | None, *changes: Change
    ) -> Committed:
        async with AsyncExitStack() as stack:  # of one account one at a time; a token's may be shared by several
            for name in sorted({agent, *(charge.agent or charge.account for charge in charges)}):
                await stack.enter_async_context(self._lock(name))
            for left in reversed(range(_RACES)):
                loaded = await self._load(event, charges, hold)
                after = self._step(agent, loaded.books, event)
                money = self._changes(agent, event, loaded, after)
                try:
                    done = await self._core.commit(*money, *changes)
                except OSError as exc:
                    if exc.errno != errno.ESTALE or not left or not await self._is_stale(loaded):
                        raise
                else:
                    self._trace(agent, event, charges, loaded.books, after)
                    return done
        raise error(errno.EBUSY, detail="accounts")

    def _lock(self, name: str) -> anyio.Lock:
        """The lock of *name*, which lives as long as somebody wants it."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = anyio.Lock()
        return lock

    def _step(self, agent: str, books: Books, event: Moves) -> Books:
        try:
            return step(books, event)
        except OSError as exc:
            if exc.errno == errno.EDQUOT:
                self._core.trace(agent, "budget", **_about(event) | {"event": "refused"}, reason=exc.strerror)
            raise

    async def _load(self, event: Moves, charges: tuple[Charge, ...], hold: Hold | None) -> _Loaded:
        rows = {key_of(c): await self._core.store.get(AccountRow, *key_of(c)) for c in charges}
        holds = {event.id: hold} if isinstance(event, Settle) and hold is not None else {}
        return _Loaded(Books({key: _sums(row) for key, row in rows.items()}, holds), rows)

    async def _is_stale(self, loaded: _Loaded) -> bool:
        """Whether the refusal was about the accounts, not about what was to be committed along."""
        return any([await self._core.store.get(AccountRow, *key) != row for key, row in loaded.rows.items()])

    def _changes(self, agent: str, event: Moves, loaded: _Loaded, after: Books) -> list[Change]:
        changes: list[Change] = []
        for key, row in loaded.rows.items():
            sums = after.sums[key]
            made = AccountRow(
                agent=key[0], account=key[1], period=key[2], reserved_usd=sums.reserved_usd, spent_usd=sums.spent_usd,
                version=row.version + 1 if row else 1, changed_at_ns=self._core.clock.now_ns(),
            )  # fmt: skip
            if row is None:
                changes.append(Insert(made, errno.ESTALE))
            else:
                changes += [Expect(AccountRow, key, "version", row.version), Put(made)]
        record = self._core.record(agent, "budget", _about(event))
        return [*changes, Append(agent, "trajectory", record, chain=True)]

    def _trace(self, agent: str, event: Moves, charges: tuple[Charge, ...], before: Books, after: Books) -> None:
        self._core.trace(agent, "budget", **_about(event))
        for charge in charges:
            key = key_of(charge)
            if is_warned(before.sums.get(key, Sums()), after.sums[key], charge.limit_usd):
                now, about = after.sums[key], {"account": charge.account, "period": charge.period}
                used = {"reserved_usd": now.reserved_usd, "spent_usd": now.spent_usd, "limit_usd": charge.limit_usd}
                self._core.trace(agent, "budget", event="warning", **about, **used)


def _sums(row: AccountRow | None) -> Sums:
    return Sums(row.reserved_usd, row.spent_usd) if row else Sums()


def _about(event: Moves) -> dict[str, object]:
    if isinstance(event, Reserve):
        return {"event": "reserved", "hold": event.id, "amount_usd": event.amount_usd}
    return {"event": "settled", "hold": event.id, "cost_usd": event.cost_usd}
