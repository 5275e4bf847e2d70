"""A container engine that stops, dies or hangs while it is needed: told in time, and nothing of it is left behind."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
from dockerkit import Boxes, Engine
from test_docker_hostile import emptied

from agentfs.containers.port import Command, Exit, Happening

SOON_S = 60


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """One for this test alone."""
    engine = Engine()
    try:
        await trio.to_thread.run_sync(engine.start)
        await trio.to_thread.run_sync(engine.build_busybox)
        yield engine
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(engine.remove)


async def last_of(boxes: Boxes, engine: Engine, number: signal.Signals) -> Happening | OSError:
    """How a command ends when *engine* gets *number* while it runs; it is given up then."""
    command = Command("c", ["/bin/sh", "-c", "echo begun; sleep 1000"])
    async with aclosing(boxes.provider.run(boxes.spec(), command)) as happenings:
        await anext(happenings)
        engine.send(number)
        with trio.fail_after(SOON_S):
            try:
                return await anext(happenings)
            except OSError as exc:
                return exc


async def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    boxes = Boxes(Engine(tmp_path), tmp_path)
    assert "cannot be reached" in await boxes.provider.health()
    begun = time.monotonic()
    for call in (boxes.provider.images(), boxes.provider.found(), boxes.provider.make(boxes.spec()),
                 boxes.provider.remove("s1"), boxes.provider.used("s1"), boxes.run(boxes.spec(), "true")):  # fmt: skip
        with pytest.raises(OSError, match="container engine") as caught:
            await call
        assert caught.value.errno == errno.ENOTCONN
    assert time.monotonic() - begun < 10
    await boxes.provider.aclose()
    await boxes.provider.aclose()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_an_engine_that_ends_while_a_command_runs(engine: Engine, tmp_path: Path, number: signal.Signals) -> None:
    boxes = Boxes(engine, tmp_path)
    await boxes.provider.make(boxes.spec())
    await boxes.run(boxes.spec(), "echo kept > file")
    how = await last_of(boxes, engine, number)
    if isinstance(how, OSError):
        assert how.errno == errno.ENOTCONN
    else:
        assert isinstance(how, Exit) and how.cause == "gone"
    with trio.fail_after(SOON_S):
        await emptied()
    await trio.to_thread.run_sync(engine.stop)
    await trio.to_thread.run_sync(engine.start)
    assert list(await boxes.provider.found()) == ["s1"]
    with pytest.raises(FileNotFoundError):
        await boxes.run(boxes.spec(), "true")
    assert (boxes.top / "s1" / "file").read_text() == "kept\n"
    await boxes.provider.remove("s1")
    assert list(await boxes.provider.found()) == []
    await boxes.provider.aclose()


async def test_an_engine_that_hangs(engine: Engine, tmp_path: Path) -> None:
    boxes = Boxes(engine, tmp_path)
    await boxes.provider.make(boxes.spec())
    how = await last_of(boxes, engine, signal.SIGSTOP)
    assert isinstance(how, OSError) and how.errno == errno.ENOTCONN
    assert "no answer" in await boxes.provider.health()
    await emptied()
    engine.send(signal.SIGCONT)
    assert (await boxes.run(boxes.spec(), "echo well")).out == "well\n"
    await boxes.provider.remove("s1")
    await boxes.provider.aclose()
