"""`Models`: the providers of models that this runtime has, what each offers now, how it fares, and what it costs.

It asks providers what they have; jobs are run by `agentfs.engine.jobs`.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import anyio
import msgspec

from agentfs.compute import prices
from agentfs.compute.breaker import Breaker
from agentfs.compute.documents import Request, family, is_key, split_model
from agentfs.compute.policy import Policy
from agentfs.compute.port import ComputeProvider
from agentfs.compute.prices import FREE, Price, Prices
from agentfs.compute.routing import Measured, Offer, candidates, is_priced
from agentfs.engine.core import Core
from agentfs.engine.documents import Documents
from agentfs.engine.secrets import Secrets
from agentfs.errors import detail_of, error

log = logging.getLogger(__name__)
PRICES = "prices"
_FRESH_NS = 60_000_000_000
_STALE_NS = 1_000_000_000


@dataclass(slots=True)
class Served:
    """One provider as this runtime knows it. ``key``: its API key, as a text or ``secret:NAME`` of the runtime's."""

    name: str
    provider: ComputeProvider
    key: str = ""
    models: tuple[str, ...] = ()
    asked_ns: int | None = None
    reason: str = ""  # why it could not be asked
    breaker: Breaker = field(default_factory=Breaker)
    measured: dict[str, Measured] = field(default_factory=dict)


class Models:
    """All providers of one runtime, by name."""

    def __init__(self, core: Core, secrets: Secrets, providers: Mapping[str, tuple[ComputeProvider, str]]) -> None:
        self._core, self._secrets, self.documents = core, secrets, Documents(core)
        self.served = {name: Served(name, provider, key) for name, (provider, key) in providers.items()}
        self._asking = anyio.Lock()

    async def refresh(self, older_than_ns: int = _FRESH_NS) -> None:
        """Ask the providers whose list of models is older than that what they have now, all at once."""
        if not self._old(older_than_ns):
            return  # not even for who asks for others
        async with self._asking, anyio.create_task_group() as group:
            for served in self._old(older_than_ns):
                group.start_soon(self._ask, served)

    def _old(self, older_than_ns: int) -> Sequence[Served]:
        now_ns = self._core.clock.monotonic_ns()
        return [s for s in self.served.values() if s.asked_ns is None or now_ns - s.asked_ns > older_than_ns]

    @property
    def is_old(self) -> bool:
        """Whether a provider should be asked what it has, and nobody does so."""
        return not self._asking.locked() and bool(self._old(_FRESH_NS))

    async def _ask(self, served: Served) -> None:
        try:
            served.models, served.reason = tuple(await served.provider.models(await self.key(served))), ""
        except OSError as exc:
            served.models, served.reason = (), detail_of(exc)
        except Exception:  # a bug in a provider is its own: others go on
            log.exception("provider %s", served.name)
            served.models, served.reason = (), "internal error"
        served.asked_ns = self._core.clock.monotonic_ns()
        if served.reason:
            log.info("provider %s: %s", served.name, served.reason)

    async def key(self, served: Served) -> str:
        """The runtime's key for *served*, "" for none.

        ENOENT: it refers to a secret that is not set; EILSEQ: no header can carry it.
        """
        key = await self._secrets.use("", served.key)
        if not is_key(key):
            raise error(errno.EILSEQ, detail=f"the key of {served.name} is not printable ASCII without spaces")
        return key

    # -- prices ----------------------------------------------------------------------------------------------------

    async def prices(self) -> Prices:
        """The table as the operator wrote it last."""
        row = await self.documents.row("", PRICES)
        return prices.parse(row.text.encode()) if row else Prices()

    # -- routes ----------------------------------------------------------------------------------------------------

    async def offers(self, *, is_all: bool = False) -> Sequence[Offer]:
        """Every model that can be asked now; *is_all*: also of providers that are given a pause."""
        table, now_ns = await self.prices(), self._core.clock.monotonic_ns()
        return [
            Offer(s.name, model, self._price(table, s, model), s.measured.get(model, Measured()))
            for s in self.served.values()
            if is_all or s.breaker.is_available(now_ns)
            for model in s.models
        ]

    def _price(self, table: Prices, served: Served, model: str) -> Price | None:
        found = table.of(served.name, model)
        return FREE if found is None and served.provider.is_local else found

    async def route(self, request: Request, policy: Policy) -> Sequence[Offer]:
        """Where *request* may go, the preferred first; it waits for lists of models only where nothing known fits.

        ENOENT: no provider has such a model; EACCES: the policy allows none; ENOTCONN: all are given a pause.
        EINVAL: a caller's own key, and no provider that it is for.
        """
        name, model = split_model(request.model or policy.default_model, self.served)
        if request.api_key and not name:
            raise error(errno.EINVAL, detail="api_key: say whose: want PROVIDER/MODEL as the model")
        found = await self._fitting(request, policy, name, model)
        if not found:
            await self.refresh(_STALE_NS)
            found = await self._fitting(request, policy, name, model)
        if not found:
            raise await self._nowhere(request, policy, name, model)
        return found

    async def _fitting(self, request: Request, policy: Policy, name: str, model: str) -> Sequence[Offer]:
        return candidates(await self._able(request, name, model), request, policy, name, model)

    async def _able(self, request: Request, name: str, model: str, *, is_all: bool = False) -> Sequence[Offer]:
        """The offers that can do what *request* is."""
        offers = [*await self.offers(is_all=is_all), *await self._unlisted(request, name, model, is_all=is_all)]
        return [o for o in offers if family(request.kind) in self.served[o.provider].provider.kinds]

    async def _unlisted(self, request: Request, name: str, model: str, *, is_all: bool) -> Sequence[Offer]:
        """The model that is named along with its provider by who brings a key: ours may not even list what there is."""
        served = self.served.get(name)
        if served is None or served.models or not (model and request.api_key and served.provider.needs_key):
            return []
        if not is_all and not served.breaker.is_available(self._core.clock.monotonic_ns()):
            return []
        return [Offer(name, model, self._price(await self.prices(), served, model))]

    async def _nowhere(self, request: Request, policy: Policy, name: str, model: str) -> OSError:
        """Why there is no route."""
        everything = await self.offers(is_all=True)
        fitting = await self._able(request, name, model, is_all=True)
        able = [o for o in fitting if name in ("", o.provider) and model in ("", o.model)]
        shown = request.model or "any model"
        if not able:
            away = [f"{s.name}: {s.reason}" for s in self.served.values() if s.reason]
            known = " ".join(sorted({o.model for o in everything})[:8]) or "none"
            detail = f"model: no provider has {shown} for {request.kind}; there are: {known}"
            return error(errno.ENOENT, detail="; ".join([detail, *away])[:500])
        allowed = [o for o in able if policy.allows(o.provider, o.model)]
        if not allowed:
            return error(errno.EACCES, detail=f"model: the policy does not allow {shown}")
        if not any(is_priced(o, request) for o in allowed) and not request.api_key:
            return error(
                errno.EACCES, detail=f"model: {shown} has no price for {request.kind} in runtime/compute/prices"
            )
        if not candidates(allowed, request, policy, name, model):
            return error(errno.EDQUOT, detail=f"max_cost_usd: it does not pay for the cheapest answer of {shown}")
        return error(errno.ENOTCONN, detail=f"model: every provider of {shown} failed lately; try again later")

    # -- what came of it -------------------------------------------------------------------------------------------

    def began(self, name: str) -> None:
        """A request goes to the provider *name*."""
        served = self.served[name]
        served.breaker = served.breaker.started(self._core.clock.monotonic_ns())

    def failed(self, name: str) -> None:
        """It failed before it produced anything."""
        served = self.served[name]
        served.breaker = served.breaker.failed(self._core.clock.monotonic_ns())

    def left(self, name: str) -> None:
        """It was left before anything could be told of it."""
        served = self.served[name]
        served.breaker = served.breaker.left()

    def answered(self, name: str, model: str, first_ms: float, tokens_per_s: float) -> None:
        """It answered, that fast."""
        served = self.served[name]
        served.breaker = served.breaker.succeeded()
        served.measured[model] = served.measured.get(model, Measured()).with_(first_ms, tokens_per_s)

    def about(self, name: str) -> dict[str, object]:
        """What is known of one provider. ENOENT."""
        served = self.served.get(name)
        if served is None:
            raise error(errno.ENOENT, detail=f"no provider {name!r}")
        state = served.breaker.state(self._core.clock.monotonic_ns())
        measured = {model: msgspec.to_builtins(found) for model, found in sorted(served.measured.items())}
        return {
            "id": name, "kinds": sorted(served.provider.kinds), "is_local": served.provider.is_local,
            "models": list(served.models), "status": "away" if served.reason else state,
            "reason": served.reason or None,
            "failures": served.breaker.failures, "measured": measured,
        }  # fmt: skip
