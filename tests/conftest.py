"""Fixtures for tests of the engine: a clock moved by hand, and each store, checked when the test has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from engines import Script

from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.providers.store.memory import MemoryStore
from agentfs.providers.store.sqlite import SqliteStore


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, clock: ManualClock, tmp_path: Path) -> AsyncIterator[Store]:
    opened: Store = MemoryStore(clock) if request.param == "memory" else await SqliteStore.open(tmp_path / "db", clock)
    yield opened
    assert list(await opened.check()) == []
    await opened.aclose()


@pytest.fixture(autouse=True)
def script() -> type[Script]:
    Script.act, Script.ran = None, []
    return Script
