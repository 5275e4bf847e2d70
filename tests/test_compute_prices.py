"""Prices and promises: a caller may say that a request costs little, and wins nothing by it."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from engines import running
from test_compute_engine import Server, asked, opened, served

from agentfs.ports import Store
from agentfs.providers.clock import ManualClock


class Vendor(Server):
    """A provider that is not here: free only where the table says so."""

    is_local = False
    kinds = frozenset({"chat", "image_generate", "custom:"})


@pytest.mark.parametrize(
    ("price", "request_", "code"),
    [
        (None, {"max_cost_usd": 1}, errno.EACCES),
        (None, {}, errno.EACCES),
        ({"input_usd": 1000, "output_usd": 1000}, {"max_cost_usd": 1}, errno.EDQUOT),
        ({"request_usd": 40_000}, {"max_cost_usd": 39_999}, errno.EDQUOT),
        ({"input_usd": 5}, {"kind": "image_generate", "input": {"prompt": "x"}, "max_cost_usd": 1}, errno.EACCES),
        ({"request_usd": 9}, {"kind": "custom:batches", "input": {}, "max_cost_usd": 8}, errno.EDQUOT),
    ],
)
async def test_a_promise_below_the_price_buys_nothing(
    store: Store, clock: ManualClock, price: Any, request_: dict[str, Any], code: int
) -> None:
    """What a caller says a request may cost never makes it cheaper."""
    vendor = Vendor()
    async with running(store, clock, providers=served(v=vendor)) as engine:
        await opened(engine, {"models": {"m": price}} if price else {})
        with pytest.raises(OSError) as caught:
            await asked(engine, clock, **request_)
        assert caught.value.errno == code and vendor.tasks == []
        if price is not None and "request_usd" in price:
            row = await asked(engine, clock, **{**request_, "max_cost_usd": 50_000})
            assert row.cost_usd == price["request_usd"]
