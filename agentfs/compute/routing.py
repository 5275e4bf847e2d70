"""Which provider and model a request goes to: what is allowed and can be had, ordered by what the policy prefers.

Pure: offers and measurements come from whoever keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentfs.compute.documents import Request, family
from agentfs.compute.policy import Policy
from agentfs.compute.prices import UNCOUNTED, Price, estimate

_WEIGHT = 0.3  # of the newest measurement
_UNKNOWN_MS = 1_000.0  # latency taken for what was never measured


@dataclass(frozen=True, slots=True)
class Measured:
    """Moving averages of one model at one provider: ms to the first token, tokens a second; 0: never measured."""

    first_ms: float = 0.0
    tokens_per_s: float = 0.0
    count: int = 0

    def with_(self, first_ms: float, tokens_per_s: float) -> Measured:
        """Along with one more measurement; a rate of 0 tells nothing."""
        return Measured(
            _mixed(self.first_ms, first_ms),
            _mixed(self.tokens_per_s, tokens_per_s) if tokens_per_s else self.tokens_per_s,
            self.count + 1,
        )


def _mixed(before: float, now: float) -> float:
    return before + _WEIGHT * (now - before) if before else now


@dataclass(frozen=True, slots=True)
class Offer:
    """One model that one provider has now. ``price`` None: nobody knows what it costs."""

    provider: str
    model: str
    price: Price | None
    measured: Measured = Measured()

    def cost(self, request: Request) -> int | None:
        """What *request* costs here at most."""
        return None if self.price is None else estimate(self.price, request)


def candidates(offers: Sequence[Offer], request: Request, policy: Policy, provider: str, model: str) -> list[Offer]:
    """The offers for *model* (""; any) at *provider* ("": any) that the policy allows, the preferred first.

    An offer is left out when what is reserved would not pay for it: see `is_covered`.
    """
    fitting = [
        offer
        for offer in offers
        if provider in ("", offer.provider)
        and model in ("", offer.model)
        and policy.allows(offer.provider, offer.model)
        and is_covered(offer, request, policy)
    ]
    return sorted(fitting, key=lambda offer: _rank(offer, request, policy))


def is_priced(offer: Offer, request: Request) -> bool:
    """Whether it is known what *request* comes to at *offer*."""
    price = offer.price
    if price is None:
        return False
    return not price.counts_tokens or family(request.kind) not in UNCOUNTED


def is_covered(offer: Offer, request: Request, policy: Policy) -> bool:
    """Whether the reservation pays at least for the cheapest answer: a caller may promise less than is taken.

    Where no price is known nothing can be promised, but for who brings a key and pays there.
    """
    if offer.price is None or not is_priced(offer, request):
        return bool(request.api_key)
    most = policy.default_max_cost_usd if request.max_cost_usd is None else request.max_cost_usd
    return most is None or offer.price.least(request) <= most


def _rank(offer: Offer, request: Request, policy: Policy) -> tuple[float, float, str, str]:
    cost = offer.cost(request)
    known = float("inf") if cost is None else float(cost)
    first_ms = offer.measured.first_ms or _UNKNOWN_MS
    names = (offer.provider, offer.model)
    match policy.prefer:
        case "cost":
            return known, first_ms, *names
        case "latency":
            return first_ms, known, *names
        case "quality":
            return -offer.measured.tokens_per_s, first_ms, *names
    return (known + 1) * first_ms, first_ms, *names


def places(offers: Sequence[Offer], policy: Policy) -> tuple[Offer, Offer]:
    """The first of *offers*, and the one that is tried once when it produces nothing: the policy's, else the next best.

    A provider that is alone is asked again.
    """
    first, *rest = offers
    others = [offer for offer in rest if offer.provider != first.provider]
    named = [offer for offer in others if offer.provider == policy.fallback_provider]
    return first, (named or others or [first])[0]
