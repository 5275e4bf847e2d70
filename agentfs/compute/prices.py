"""What models cost: a table of prices, estimates before a call and costs after it; all integer micro-USD.

The table is the operator's; nothing here knows where it is kept.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec

from agentfs.compute.documents import CUSTOM, Request, Usage, family
from agentfs.errors import error

TOKENS_MAX: Final = 4096
"""Tokens that an answer is taken to have at most, where the request does not say."""
BYTES_A_TOKEN: Final = 3
"""A likely value; what is reserved is counted with 1."""
_MESSAGE_TOKENS: Final = 8  # what a chat template puts around each message, at most


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Micro-USD for 1000 tokens in and out, and for each request."""

    input_usd: int = 0
    output_usd: int = 0
    request_usd: int = 0

    def cost(self, usage: Usage) -> int:
        """What *usage* comes to, rounded up."""
        tokens = usage.input_tokens * self.input_usd + usage.output_tokens * self.output_usd
        return self.request_usd + -(-tokens // 1000)

    @property
    def counts_tokens(self) -> bool:
        """Whether a cost depends on what was used."""
        return bool(self.input_usd or self.output_usd)

    def least(self, request: Request) -> int:
        """What *request* costs at the very least: its input, as it is likely counted, and one token that comes out."""
        if family(request.kind) in UNCOUNTED:
            return self.request_usd
        tokens = input_tokens(request) // BYTES_A_TOKEN
        return self.cost(Usage(input_tokens=tokens, output_tokens=0 if request.kind == "embeddings" else 1))

    def output_tokens(self, max_cost_usd: int, input_tokens: int) -> int | None:
        """How many tokens may come out within *max_cost_usd*; None when they cost nothing."""
        if not self.output_usd:
            return None
        left = (max_cost_usd - self.request_usd) * 1000 - input_tokens * self.input_usd
        return max(0, left // self.output_usd)


FREE: Final = Price()
UNCOUNTED: Final = frozenset({"image_generate", "transcribe", "speak", CUSTOM})
"""Kinds whose cost tokens do not tell beforehand: only a price for each request does."""


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The price table: ``models`` by ``PROVIDER/MODEL`` or ``MODEL`` (globs), over ``providers`` by name."""

    providers: dict[str, Price] = {}
    models: dict[str, Price] = {}

    def of(self, provider: str, model: str) -> Price | None:
        """The price of *model* at *provider*: the longest pattern that fits; None when there is none."""
        for name in (f"{provider}/{model}", model):
            fitting = [pattern for pattern in self.models if fnmatchcase(name, pattern)]
            if fitting:
                return self.models[max(fitting, key=len)]
        return self.providers.get(provider)


def parse(doc: bytes) -> Prices:
    """*doc* as `Prices`. EINVAL naming the field; no price is below 0."""
    try:
        prices = msgspec.json.decode(doc, type=Prices)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise error(errno.EINVAL, detail=f"prices: {exc}") from exc
    tables: Mapping[str, Mapping[str, Price]] = {"providers": prices.providers, "models": prices.models}
    for table, rows in tables.items():
        for name, price in rows.items():
            if min(price.input_usd, price.output_usd, price.request_usd) < 0:
                raise error(errno.EINVAL, detail=f"prices: {table}.{name}: below 0")
    return prices


def input_tokens(request: Request) -> int:
    """At most how many tokens *request* has: a token is a byte at least, and each message has a frame."""
    messages = request.input.get("messages")
    frames = len(messages) if isinstance(messages, list) else 1
    return _size(request.input) + _MESSAGE_TOKENS * frames


def likely_tokens(messages: Sequence[Any]) -> int:
    """About how many tokens *messages* have."""
    return sum(_size(message) for message in messages) // BYTES_A_TOKEN + _MESSAGE_TOKENS * len(messages)


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, dict):
        return sum(_size(name) + _size(each) for name, each in value.items())
    if isinstance(value, list):
        return sum(_size(each) for each in value)
    return 1


def output_tokens(request: Request) -> int:
    """How many tokens may come out, as the request says, or `TOKENS_MAX`."""
    if request.kind == "embeddings":
        return 0
    for name in ("max_completion_tokens", "max_tokens"):
        asked = request.input.get(name)
        if isinstance(asked, int) and not isinstance(asked, bool) and asked > 0:
            return asked
    return TOKENS_MAX


def estimate(price: Price, request: Request) -> int:
    """What *request* costs at most: what is reserved where it names no maximum."""
    return price.cost(Usage(input_tokens=input_tokens(request), output_tokens=output_tokens(request)))
