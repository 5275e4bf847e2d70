"""What a session may take of time and money, over its request and the policy. It keeps no account."""

from __future__ import annotations

import errno
import math
from typing import Final

import msgspec

from agentfs.containers.documents import Limits, Request
from agentfs.containers.policy import Policy
from agentfs.errors import error

_HOUR_NS: Final = 3_600_000_000_000


def kept(request: Request, rules: Policy) -> Limits:
    """The limits of a session that was accepted, also where the policy has become narrower since."""
    try:
        return rules.limits(request)
    except PermissionError:
        wanted = {name: value for name, value in msgspec.to_builtins(request.limits).items() if value is not None}
        return msgspec.convert({**msgspec.to_builtins(rules.defaults), **wanted}, Limits)


def time_ns(request: Request, limits: Limits) -> int:
    """How long it may be there, in nanoseconds."""
    most = limits.max_time_secs * 1_000_000_000
    return most if request.timeout_ms is None else min(most, request.timeout_ms * 1_000_000)


def kept_ns(request: Request, most_seconds: int) -> int:
    """How long it is kept behind its end, in nanoseconds; *most_seconds*: what the runtime keeps any."""
    return min(most_seconds, request.keep_secs or most_seconds) * 1_000_000_000


def cost(usd_per_hour: int, ns: int) -> int:
    """What *ns* cost, in micro-USD, rounded up."""
    return math.ceil(usd_per_hour * max(0, ns) / _HOUR_NS)


def reserved(request: Request, rules: Policy, usd_per_hour: int, limits: Limits) -> int:
    """What its whole time costs. EDQUOT where that is more than the request or the policy allows."""
    whole = cost(usd_per_hour, time_ns(request, limits))
    for most, name in ((request.max_cost_usd, "max_cost_usd"), (rules.max_cost_usd, "max_cost_usd of the policy")):
        if most is not None and whole > most:
            raise error(errno.EDQUOT, detail=f"{name}: {limits.max_time_secs} s cost {whole} micro-USD")
    return whole
