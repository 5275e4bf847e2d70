"""Money as a pure state machine: reserve, settle, release, the warning at 80 %; whole micro-USD.

It knows no clock, no store and no agent; what is stored where is the ledger's.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final, TypeAlias

from agentfs.errors import error
from agentfs.ports import Charge, Sums
from agentfs.types import rfc3339

WARN_PERCENT: Final = 80
_DAY_NS: Final = 86_400_000_000_000
USD_MAX: Final = 1 << 53
"""No amount is larger: 9 billion dollars, and exact in every JSON reader."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What hangs on a budgeted mount. None is "no limit"; ``price_usd`` is paid for each unit written there.

    Above ``approval_threshold_usd`` one of ``approvers`` must allow the very request. ``is_trusting``: an agent's own
    report of a cost below its reservation counts; otherwise all that was reserved is spent.
    """

    per_tick_usd: int | None = None
    per_day_usd: int | None = None
    approval_threshold_usd: int | None = None
    approvers: tuple[str, ...] = ("operator",)
    price_usd: int = 0
    is_trusting: bool = True


@dataclass(frozen=True, slots=True)
class Hold:
    """An open reservation of ``amount_usd`` on each of ``charges``."""

    amount_usd: int
    charges: tuple[Charge, ...]


Key: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Books:
    """All money there is: sums by (agent, account, period), and the open holds by id."""

    sums: Mapping[Key, Sums] = field(default_factory=dict)
    holds: Mapping[str, Hold] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reserve:
    """Hold *amount_usd* on each of *charges*."""

    id: str
    amount_usd: int
    charges: tuple[Charge, ...]


@dataclass(frozen=True, slots=True)
class Settle:
    """The hold *id* came to *cost_usd*; the rest is released. A cost of 0 is a release."""

    id: str
    cost_usd: int


Event: TypeAlias = Reserve | Settle


def key_of(charge: Charge) -> Key:
    """Where *charge* stands in the books."""
    return charge.agent, charge.account, charge.period


def check_usd(name: str, value: int) -> int:
    """*value* if it is an amount, else EINVAL naming *name*."""
    if not 0 <= value <= USD_MAX:
        raise error(errno.EINVAL, detail=f"{name}: {value}: want 0..{USD_MAX} micro-USD")
    return value


def day_of(now_ns: int) -> str:
    """The UTC day a reservation made now belongs to."""
    return _day(now_ns // _DAY_NS)


def next_day_ns(now_ns: int) -> int:
    """When that day is over."""
    return (now_ns // _DAY_NS + 1) * _DAY_NS


@lru_cache(maxsize=8)
def _day(number: int) -> str:
    return rfc3339(number * _DAY_NS)[:10]


def step(books: Books, event: Event) -> Books:
    """The books behind *event*. EDQUOT past a limit, EEXIST and ENOENT for a hold, EINVAL for an amount."""
    match event:
        case Reserve():
            return _reserve(books, event)
        case Settle():
            return _settle(books, event)


def _reserve(books: Books, event: Reserve) -> Books:
    check_usd("max_cost_usd", event.amount_usd)
    if event.id in books.holds:
        raise error(errno.EEXIST, detail=f"reservation {event.id!r} is held")
    sums = dict(books.sums)
    for charge in event.charges:
        now = sums.get(key_of(charge), Sums())
        if charge.limit_usd is not None and event.amount_usd > now.remaining(charge.limit_usd):
            raise error(errno.EDQUOT, detail=_exhausted(charge, now, event.amount_usd))
        if event.amount_usd > now.remaining(USD_MAX):
            raise error(errno.EDQUOT, detail=f"{charge.account} {charge.period}: no sum is over {USD_MAX} micro-USD")
        sums[key_of(charge)] = replace(now, reserved_usd=now.reserved_usd + event.amount_usd)
    return Books(sums, {**books.holds, event.id: Hold(event.amount_usd, event.charges)})


def _exhausted(charge: Charge, now: Sums, amount_usd: int) -> str:
    left = max(0, now.remaining(charge.limit_usd or 0))
    return f"{charge.account} {charge.period}: {amount_usd} asked, {left} left of {charge.limit_usd} micro-USD"


def _settle(books: Books, event: Settle) -> Books:
    hold = books.holds.get(event.id)
    if hold is None:
        raise error(errno.ENOENT, detail=f"no reservation {event.id!r}")
    check_usd("cost_usd", event.cost_usd)
    if event.cost_usd > hold.amount_usd:
        raise error(errno.EINVAL, detail=f"cost_usd: {event.cost_usd} is over the {hold.amount_usd} reserved")
    sums = dict(books.sums)
    for charge in hold.charges:
        now = sums[key_of(charge)]
        sums[key_of(charge)] = Sums(now.reserved_usd - hold.amount_usd, now.spent_usd + event.cost_usd)
    return Books(sums, {k: v for k, v in books.holds.items() if k != event.id})


def is_warned(before: Sums, after: Sums, limit_usd: int | None) -> bool:
    """Whether what is used has just reached 80 % of *limit_usd*."""
    if not limit_usd:
        return False
    used = [100 * (s.reserved_usd + s.spent_usd) >= WARN_PERCENT * limit_usd for s in (before, after)]
    return used == [False, True]
