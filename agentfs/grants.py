"""What a mount grants, as words behind it in the script ``ns``: an access level, a budget policy, a rate, who confirms.

Values and their text only; who enforces them is in `guards`.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentfs.budget import Policy, check_usd
from agentfs.errors import error

LEVELS: Final = ("read_only", "read_write", "sign_only", "budgeted", "disabled")
_MONEY: Final = ("per_tick_usd", "per_day_usd", "approval_threshold_usd", "price_usd")
_WORDS: Final = (*_MONEY, "approvers", "trust", "rate", "confirm")
_ANYWHERE: Final = frozenset({"rate", "confirm"})


@dataclass(frozen=True, slots=True)
class Grant:
    """One mount's level; ``policy`` exactly when it is ``budgeted``; ``rate``: opens and changes a second, or None.

    ``is_partial``: only a subtree of the service is bound, so that what is not there is reached through files alone.
    ``confirm``: who may allow each of its calls, which waits for that; what is no call is then not to be changed.
    """

    level: str = "read_write"
    policy: Policy | None = None
    rate: int | None = None
    is_partial: bool = False
    confirm: tuple[str, ...] = ()

    @property
    def is_readable(self) -> bool:
        """Whether a program that has it may read all of the service."""
        return self.level != "disabled" and not self.is_partial

    @property
    def is_writable(self) -> bool:
        """Whether a program that has it may change all of the service."""
        return self.level in ("read_write", "budgeted") and not self.is_partial and not self.confirm


def parse(words: Sequence[str]) -> Grant:
    """The words behind a mount: ``[LEVEL] [NAME=VALUE...]``, none is ``read_write``. EINVAL naming the word."""
    level = words[0] if words and "=" not in words[0] else "read_write"
    if level not in LEVELS:
        raise error(errno.EINVAL, detail=f"level {level[:40]!r}: want one of {' '.join(LEVELS)}")
    found: dict[str, str] = {}
    for word in words[1 if words and "=" not in words[0] else 0 :]:
        name, sep, value = word.partition("=")
        if not sep or name not in _WORDS or name in found:
            raise error(
                errno.EINVAL, detail=f"{word[:60]!r}: want each of {' '.join(_WORDS)} at most once, as NAME=VALUE"
            )
        found[name] = value
    rate = _number("rate", found["rate"]) if "rate" in found else None
    if rate == 0:
        raise error(errno.EINVAL, detail="rate: 0: want disabled instead")
    confirm = _names(found["confirm"]) if "confirm" in found else ()
    if "confirm" in found and (not confirm or level in ("read_only", "disabled")):
        raise error(errno.EINVAL, detail=f"confirm: {'no calls are' if confirm else 'want who'} to be allowed")
    if level != "budgeted" and (extra := [name for name in found if name not in _ANYWHERE]):
        raise error(errno.EINVAL, detail=f"{extra[0]}: only a budgeted mount has it")
    return Grant(level, _policy(found) if level == "budgeted" else None, rate, confirm=confirm)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _policy(found: dict[str, str]) -> Policy:
    money = {name: check_usd(name, _number(name, found[name])) for name in _MONEY if name in found}
    trust = found.get("trust", "reported")
    if trust not in ("reported", "reserved"):
        raise error(errno.EINVAL, detail=f"trust: {trust[:40]!r}: want reported or reserved")
    approvers = _names(found.get("approvers", "operator"))
    return Policy(
        per_tick_usd=money.get("per_tick_usd"), per_day_usd=money.get("per_day_usd"),
        approval_threshold_usd=money.get("approval_threshold_usd"), approvers=approvers,
        price_usd=money.get("price_usd", 0), is_trusting=trust == "reported",
    )  # fmt: skip


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise error(errno.EINVAL, detail=f"{name}: {text[:40]!r}: want a whole number")
    return int(text)


class Preset(dict[str, tuple[str, ...]]):
    """What one autonomy grants, by service; ``budgeted`` stands for every service that costs money."""

    def __missing__(self, service: str) -> tuple[str, ...]:
        return ()


PRESETS: Final = {
    "supervised": Preset(
        schedule=("read_only",),
        budgeted=(
            "budgeted", "per_tick_usd=100000", "per_day_usd=1000000", "approval_threshold_usd=0", "trust=reserved",
        ),
    ),
    "semi_autonomous": Preset(
        budgeted=("budgeted", "per_tick_usd=1000000", "per_day_usd=5000000", "approval_threshold_usd=500000"),
    ),
    "autonomous": Preset(budgeted=("budgeted", "per_tick_usd=10000000", "per_day_usd=50000000")),
}  # fmt: skip
"""The three autonomies: 5 dollars a day is ``per_day_usd=5000000``."""
