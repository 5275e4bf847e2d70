"""What an agent may ask of which model: the document ``compute/policy``, written by the operator.

Money limits hang on the mount, not here.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final, Literal

import msgspec

from agentfs.budget import check_usd
from agentfs.compute.documents import Request
from agentfs.errors import error

Prefer = Literal["cost", "latency", "quality", "balanced"]
_MONEY: Final = "max_cost_usd_per_tick and max_cost_usd_per_day are per_tick_usd and per_day_usd of the mount: see ns"


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ComputePolicy. Names are globs over ``PROVIDER`` and over ``MODEL`` or ``PROVIDER/MODEL``; blocked wins.

    ``allowed_*`` null is "all". ``default_max_cost_usd`` counts where a request names none, else an estimate does.
    """

    allowed_providers: list[str] | None = None
    allowed_models: list[str] | None = None
    blocked_models: list[str] = []
    default_max_cost_usd: int | None = None
    require_max_cost: bool = False
    require_idempotency: bool = False
    default_model: str = ""
    prefer: Prefer = "balanced"
    fallback_provider: str = ""

    def allows(self, provider: str, model: str) -> bool:
        """Whether *model* at *provider* may be asked."""
        names = (model, f"{provider}/{model}")
        return (
            _fits((provider,), self.allowed_providers)
            and _fits(names, self.allowed_models)
            and not any(fnmatchcase(name, pattern) for name in names for pattern in self.blocked_models)
        )

    def check(self, request: Request) -> None:
        """EINVAL where *request* lacks what is required."""
        if self.require_max_cost and request.max_cost_usd is None:
            raise error(errno.EINVAL, detail="max_cost_usd: the policy requires it")
        if self.require_idempotency and not request.idempotency_key:
            raise error(errno.EINVAL, detail="idempotency_key: the policy requires it")


def _fits(names: Sequence[str], patterns: list[str] | None) -> bool:
    return patterns is None or any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def parse(doc: bytes) -> Policy:
    """*doc* as a `Policy`. EINVAL naming the field."""
    try:
        policy = msgspec.json.decode(doc, type=Policy)
    except (msgspec.DecodeError, RecursionError) as exc:
        hint = f" ({_MONEY})" if "max_cost_usd_per" in str(exc) else ""
        raise error(errno.EINVAL, detail=f"policy: {exc}{hint}") from exc
    if policy.default_max_cost_usd is not None:
        check_usd("default_max_cost_usd", policy.default_max_cost_usd)
    return policy
