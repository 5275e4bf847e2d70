"""What a hostile or unlucky caller tries: each fails with its errno, and nothing else suffers."""

from __future__ import annotations

import errno

import pytest
import trio
from engines import Script, fails, pending, running, send, settings, settle, started

from agentfs.engine.context import AgentContext
from agentfs.engine.settings import parse_settings
from agentfs.engine.timers import Timers
from agentfs.engine.trigger import Trigger
from agentfs.house import build
from agentfs.limits import Limits
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.types import OPERATOR, Mode, Path, Principal, parse_time

WRITE = Mode.WRITE


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+23:00", "10000-01-01T00:00:00Z", "soon", "", "2026-13-01"])
def test_times_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(OSError, match="want RFC 3339"):
        parse_time(text)


async def test_a_timer_that_fails_does_not_stop_the_others(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    timers, fired = Timers(clock), []

    async def broken() -> None:
        raise ValueError("broken")

    async def fine() -> None:
        fired.append(1)

    timers.set("a", clock.now_ns() + 1, broken)
    timers.set("b", clock.now_ns() + 2, fine)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        clock.advance(1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    assert fired == [1] and "timer a failed" in caplog.text


async def test_a_recreated_agent_knows_nothing_of_the_one_before(store: Store, clock: ManualClock) -> None:
    async with running(store, clock) as engine:
        await started(engine)
        await engine.verb("a", "pause", OPERATOR)
        give_back = await engine.mail.reserve("a")
        await send(engine, "a", "old", id="m1")
        await engine.verb("a", "terminate", OPERATOR)
        await settle(engine)
        await engine.remove("a")
        await started(engine)
        give_back()
        assert await engine.mail.depth("a") == 0 and await pending(engine, "a") == []
        ring = engine.core.logs.ring("a")
        lines = await ring.lines((await ring.heads())[0].generation)
        assert b"m1" not in b"".join(line.line for line in lines)
        await send(engine, "a", "new", id="m1")
        await settle(engine)
        assert Script.ran == [("operator", "new")]


async def test_a_message_cannot_pretend_to_be_an_alarm(store: Store, clock: ManualClock) -> None:
    seen: list[tuple[str, str | None]] = []

    async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
        seen.append((trigger.kind, trigger.alarm))

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine)
        await send(engine, "a", "x", extra={"alarm": "fake", "origin": "somebody"})
        await settle(engine)
    assert seen == [("message", None)]


async def test_an_agent_in_its_own_view(store: Store, clock: ManualClock) -> None:
    """No other agent, no policy, no operator's verb, no other name as sender; a cut-off message is never stored."""
    async with running(store, clock) as engine:
        default = parse_settings(b'{"program": {"kind": "inline", "ref": "engines:Script"}}')
        house, _ = build(engine, default, lambda config: None, {})
        await engine.create("a", settings())
        await engine.verb("a", "pause", OPERATOR)
        own = house.attach(Principal("agent", "a"))
        for path in ("agents/a/status", "views/a/status", "runtime/status"):
            await fails(errno.ENOENT, own.stat(Path(path)))
        for path in ("config", "queue/overflow"):
            await fails(errno.EACCES, own.open(Path(path), WRITE))
        for verb in (b"terminate\n", b"pause\n", b"recover\n"):
            async with await own.open(Path("ctl"), WRITE) as handle:
                await fails(errno.EPERM, handle.write(verb, 0))
        async with await own.open(Path("inbox"), WRITE) as handle:
            await fails(errno.EPERM, handle.write(b'{"source": "operator", "payload": 1}', 0))
            await fails(errno.EINVAL, handle.write(b"[" * 5000, 0))
        async with await own.open(Path("inbox"), WRITE) as handle:
            await handle.write(b"x" * Limits().document_bytes, 0)
            await fails(errno.EFBIG, handle.write(b"x", 0))
            await fails(errno.EFBIG, handle.write(b"more\n", 0))
        assert await pending(engine, "a") == []
        async with await own.create(Path("kv/v"), WRITE) as handle:
            await handle.write(b"y" * Limits().kv_value_bytes, 0)
            await fails(errno.EFBIG, handle.write(b"y", Limits().kv_value_bytes))
        assert (await own.stat(Path("kv/v"))).size == 0
