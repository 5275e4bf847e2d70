"""Fixtures: a clock moved by hand, each store, checked when the test has ended, and each way to a whole runtime."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import fake_openai
import fusemount
import pytest
import trio
from dockerkit import Engine, Podman, an_engine
from engines import Script
from fake_openai import FakeOpenAI
from hypothesis import HealthCheck, settings

from agentfs.engine.audit import audit
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.providers.store.memory import MemoryStore
from agentfs.providers.store.sqlite import SqliteStore
from conformance.drivers import DRIVERS, STORES, Driver, Runtime, in_process

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started here is interrupted as anywhere else
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")  # no example fails for the time it takes: that is the machine's, and of who else uses it

SLOWEST = (
    "test_docs", "test_keys_machine", "test_conformance", "test_llm_crash", "test_remote_mount", "test_key_leak",
    "test_money_crash", "test_signed_machine", "test_docker_hostile", "test_docker", "test_docker_away", "test_crash",
    "test_remote", "test_cli_start", "test_bubblewrap_escape", "test_containers", "test_containers_machine",
    "test_enclosed_machine", "test_containers_docker", "test_agentctl_run", "test_mount_sh", "test_dialogue",
    "test_cli_keys", "test_money_model", "test_agentctl_chat",
)  # fmt: skip
"""The files that take longest, and so are begun first: last, each would keep one worker busy while others wait."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    order = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


BINDINGS = {"fuse": "wire", "pyfuse3": "pyfuse3"}
"""Drivers by a mount, and what speaks with the kernel for each."""


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, clock: ManualClock, tmp_path: Path) -> AsyncIterator[Store]:
    opened: Store = MemoryStore(clock) if request.param == "memory" else await SqliteStore.open(tmp_path / "db", clock)
    yield opened
    assert list(await opened.check()) == [] and list(await audit(opened)) == []
    await opened.aclose()


@pytest.fixture(autouse=True)
def script() -> type[Script]:
    Script.act, Script.ran = None, []
    return Script


@pytest.fixture(params=[f"{driver}-{store}" for driver in DRIVERS for store in STORES])
async def driver(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Driver]:
    name, _, store = request.param.rpartition("-")
    async with AsyncExitStack() as stack:
        if name == "in-process":
            yield await stack.enter_async_context(in_process(store, tmp_path))
            return
        settings = [f"fuse_binding={BINDINGS[name]}"] if name in BINDINGS else []
        runtime = Runtime(store, tmp_path, fuse=name in BINDINGS, settings=settings)
        await trio.to_thread.run_sync(runtime.start)
        try:
            way = runtime.fuse() if name in BINDINGS else runtime.http()
            yield await stack.enter_async_context(way)
            await stack.aclose()
        finally:
            with trio.CancelScope(shield=True):
                assert await trio.to_thread.run_sync(runtime.stop) == 0, runtime.log.read_text()[-2000:]
        assert '"level":"error"' not in runtime.log.read_text(), runtime.log.read_text()[-4000:]


@pytest.fixture(scope="module", params=["wire", "pyfuse3"])
def binding(request: pytest.FixtureRequest) -> Iterator[str]:
    """Everything that is mounted in a module that uses this is so by each binding in turn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(fusemount.BINDING, request.param)
        yield request.param


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[Engine]:
    """A real container engine with an image of busybox, for all tests of this process."""
    with an_engine() as engine:
        yield engine


@pytest.fixture(scope="session")
def podman_engine() -> Iterator[Engine]:
    """Podman in its place."""
    with an_engine(Podman) as engine:
        yield engine


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    """A server of models in a thread of this process."""
    with fake_openai.in_thread() as fake:
        yield fake
