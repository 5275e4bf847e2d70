"""Containers of a real engine that are made for one command: it is their main process, and ends as any other does."""

from __future__ import annotations

import errno
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from dockerkit import OWNER, Boxes, Engine, Ran
from test_docker_hostile import emptied, theirs

from agentfs.containers.documents import Words
from agentfs.containers.port import Command, Exit, Happening, Output, Spec

MAIN = "main"
SLEEPS = Command(MAIN, ["/bin/sh", "-c", "echo begun; sleep 1000"])


@pytest.fixture
async def boxes(docker_engine: Engine, tmp_path: Path) -> AsyncIterator[Boxes]:
    kit = Boxes(docker_engine, tmp_path)
    yield kit
    for id in await kit.provider.found():
        await kit.provider.remove(id)
    assert theirs() == []
    await kit.provider.aclose()
    assert docker_engine.docker("ps", "-aq").stdout == ""


def only(boxes: Boxes, max_memory_mb: int = 64) -> Spec:
    """A sandbox for the command `MAIN`."""
    return replace(boxes.spec(max_memory_mb=max_memory_mb), main=MAIN)


async def once(boxes: Boxes, words: Words, **about: object) -> Ran:
    """Run *words* in a new sandbox of their own, to the end of both."""
    await boxes.provider.make(spec := only(boxes))
    try:
        ran = await boxes.run(spec, words, id=MAIN, **about)
        with pytest.raises(FileNotFoundError):
            await boxes.run(spec, "true")
        return ran
    finally:
        await boxes.provider.remove("s1")


async def test_it_says_what_it_says_where_it_says_it(boxes: Boxes) -> None:
    ran = await once(boxes, "echo out; echo err >&2; pwd; id -u; exit 3")
    assert ran == (3, "", f"out\n/work\n{OWNER.uid}\n", "err\n")
    assert (await once(boxes, ["/bin/echo", "a b", "$HOME", "'\"\\"])).out == "a b $HOME '\"\\\n"
    many = await once(boxes, "seq 1 300000; seq 1 1000 >&2")
    assert many.out.splitlines() == [str(number) for number in range(1, 300_001)] and len(many.err.split()) == 1000


async def test_any_word_and_value_comes_as_it_is(boxes: Boxes) -> None:
    odd = "".join(chr(number) for number in range(1, 0x250)) + "\n.\n' \\\n\n"
    assert (await once(boxes, ["/bin/echo", "-n", odd])).out == odd
    assert (await once(boxes, 'echo -n "$ODD"', env={"ODD": odd})).out == odd


async def test_what_is_given_goes_in_and_is_closed(boxes: Boxes) -> None:
    data = bytes(range(256)) * 8192
    assert (await once(boxes, "wc -c; cat", stdin=data)).out == f"{len(data)}\n"
    assert (await once(boxes, "cat; echo end")).out == "end\n"
    assert (await once(boxes, "true", stdin=data)).code == 0


async def test_how_it_ends(boxes: Boxes) -> None:
    assert (await once(boxes, ["nothing-of-the-kind"])).code == 127
    assert (await once(boxes, ["/etc/passwd"])).code == 126
    assert (await once(boxes, "kill -TERM $$"))[:2] == (128 + 15, "")
    assert (await once(boxes, "kill -9 $$"))[:2] == (137, "")
    assert (await once(boxes, "kill -9 $PPID; sleep 1000"))[:2] == (137, "")
    assert (await once(boxes, "true", cwd="nowhere")).code == 126
    assert (await once(boxes, "pwd", cwd="/tmp")).out == "/tmp\n"
    with trio.fail_after(60):
        ran = await once(boxes, "sleep 1000 & (setsid sleep 1000 </dev/null >/dev/null 2>&1 &); echo done")
    assert ran == (0, "", "done\n", "")


async def test_env_is_given_and_told_to_nobody_else(boxes: Boxes, docker_engine: Engine) -> None:
    await boxes.provider.make(spec := replace(only(boxes), env={"TOKEN": "hush-hush"}))
    line = "echo $TOKEN $MORE $HOME; cat /proc/1/cmdline /proc/self/cmdline; set; sleep 1000"
    command = Command(MAIN, ["/bin/sh", "-c", line], {"MORE": "yes"})
    async with aclosing(boxes.provider.run(spec, command)) as happenings:
        said = await anext(happenings)
        assert isinstance(said, Output) and said.data.startswith(b"hush-hush yes /work\n")
        assert "hush-hush" not in docker_engine.docker("inspect", "agentfs-s1").stdout
        assert docker_engine.docker("top", "agentfs-s1", "-eo", "pid,args").stdout.count("hush-hush") == 0


async def test_limits_are_named(boxes: Boxes) -> None:
    assert (await once(boxes, "tail -c 500m /dev/zero"))[:2] == (137, "memory")
    assert (await once(boxes, "tail -c 500m /dev/zero; true"))[:2] == (0, "")
    many = "while :; do i=$((i+1)); dd if=/dev/zero of=f$i bs=1M count=1 2>/dev/null; done"
    with trio.fail_after(60):
        assert (await once(boxes, many)).cause == "disk"


async def test_what_was_used_is_told_when_it_has_ended(boxes: Boxes) -> None:
    """The engine may be quicker to take away who counts; then nobody knows, and that is told."""
    line = "dd if=/dev/zero of=/dev/null bs=24M count=1; dd if=/dev/zero of=a bs=1M count=2; seq 1 100000 | wc -l"
    for _ in range(60):
        await boxes.provider.make(spec := only(boxes, max_memory_mb=128))
        async with aclosing(boxes.provider.run(spec, Command(MAIN, ["/bin/sh", "-c", line]))) as happenings:
            *_, ended = [happening async for happening in happenings]
        used = await boxes.provider.used("s1")
        assert isinstance(ended, Exit) and ended.used == replace(used, disk_bytes=None)
        if used.cpu_ms is not None and used.peak_memory_bytes is not None:  # of two groups, each with an end of its own
            break
        await boxes.provider.remove("s1")
    assert used.cpu_ms is not None and 5 < used.cpu_ms < 60_000
    assert used.peak_memory_bytes is not None and 20 << 20 < used.peak_memory_bytes <= 128 << 20
    assert used.disk_bytes is not None and 2 << 20 <= used.disk_bytes < 3 << 20 and used.network_bytes == 0


@pytest.mark.parametrize(
    "line",
    [
        "echo begun; sleep 1000",
        "trap '' TERM INT HUP; echo begun; while :; do :; done",
        "(setsid sh -c 'setsid env -i sleep 1000 </dev/null >/dev/null 2>&1 &' &); echo begun; sleep 1000",
        "exec 2>/dev/null; echo begun; b() { b | b & }; while :; do b; done",
        "echo begun; exec >&- 2>&-; sleep 1000",
        "echo begun; while :; do kill -9 1; kill -STOP 1; kill -TERM 1; done",
    ],
)
async def test_nothing_outlives_it_when_it_is_given_up(boxes: Boxes, line: str) -> None:
    await boxes.provider.make(spec := only(boxes))
    with trio.fail_after(60):
        async with aclosing(boxes.provider.run(spec, Command(MAIN, ["/bin/sh", "-c", line]))) as happenings:
            assert await anext(happenings) == Output("stdout", b"begun\n")
    assert theirs() == []


async def test_others_run_beside_it_and_end_alone_or_with_it(boxes: Boxes) -> None:
    await boxes.provider.make(spec := only(boxes))
    line = "(setsid sleep 1000 &); echo begun; while [ ! -e end ]; do sleep 0.1; done; ps; echo out"
    said: list[Happening] = []
    async with aclosing(boxes.provider.run(spec, Command(MAIN, ["/bin/sh", "-c", line]))) as happenings:
        await anext(happenings)
        beside = await boxes.run(spec, "(setsid sleep 2000 </dev/null >/dev/null 2>&1 &); echo beside; touch there")
        assert beside == (0, "", "beside\n", "")
        async with aclosing(boxes.provider.run(spec, Command("x", ["/bin/sh", "-c", "echo on; sleep 3000"]))) as other:
            await anext(other)
            await boxes.run(spec, "touch end")
            said = [happening async for happening in happenings]
            with trio.fail_after(60):
                assert isinstance(await anext(other), Exit)
    text = b"".join(happening.data for happening in said if isinstance(happening, Output))
    assert text.endswith(b"out\n") and said[-1].__class__ is Exit
    assert b"sleep 1000" in text and b"sleep 2000" not in text and b"sleep 3000" in text


@pytest.mark.parametrize("words", [["kill"], ["stop", "-t", "1"], ["rm", "-f"]], ids=lambda words: str(words[0]))
async def test_a_container_that_is_taken_away_is_told(boxes: Boxes, docker_engine: Engine, words: list[str]) -> None:
    await boxes.provider.make(spec := only(boxes))
    async with aclosing(boxes.provider.run(spec, SLEEPS)) as happenings:
        await anext(happenings)
        await trio.to_thread.run_sync(lambda: docker_engine.docker(*words, "agentfs-s1"))
        with trio.fail_after(60):
            ended = await anext(happenings)
    assert isinstance(ended, Exit) and ended.cause == "gone"


async def test_one_that_is_taken_before_it_begins(boxes: Boxes, docker_engine: Engine) -> None:
    await boxes.provider.make(spec := only(boxes))
    await trio.to_thread.run_sync(docker_engine.docker, "kill", "agentfs-s1")
    with pytest.raises(FileNotFoundError):
        await boxes.run(spec, "true", id=MAIN)


async def test_what_is_not_read_stops_it(boxes: Boxes) -> None:
    await boxes.provider.make(spec := only(boxes))
    command = Command(MAIN, ["/bin/sh", "-c", "while :; do seq 1 20000; i=$((i+1)); echo $i > count; done"])
    async with aclosing(boxes.provider.run(spec, command)) as happenings:
        await anext(happenings)
        count, seen = boxes.top / "s1" / "count", "-"
        with trio.fail_after(60):
            while (now := count.read_text() if count.exists() else "") != seen:
                seen = now
                await trio.sleep(0.5)
    assert int(seen or 0) < 100


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_an_engine_that_is_lost_meanwhile(tmp_path: Path, number: signal.Signals) -> None:
    engine = Engine()
    try:
        await trio.to_thread.run_sync(engine.start)
        await trio.to_thread.run_sync(engine.build_busybox)
        boxes = Boxes(engine, tmp_path)
        await boxes.provider.make(spec := only(boxes))
        async with aclosing(boxes.provider.run(spec, SLEEPS)) as happenings:
            await anext(happenings)
            engine.send(number)
            with trio.fail_after(60), pytest.raises(OSError, match="engine") as caught:
                await anext(happenings)
        assert caught.value.errno == errno.ENOTCONN
        await emptied()
        await boxes.provider.aclose()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(engine.stop)  # one that is dead or asleep removes nothing
            await trio.to_thread.run_sync(engine.remove)


async def test_many_begin_at_once(boxes: Boxes) -> None:
    """A program that becomes another one has no words for a moment, and has not ended."""
    said: list[str] = []

    async def begin(id: str) -> None:
        spec = replace(boxes.spec(id), main=MAIN)
        await boxes.provider.make(spec)
        said.append((await boxes.run(spec, "echo well", id=MAIN)).out)
        await boxes.provider.remove(id)

    for turn in range(4):
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(begin, f"s{turn}-{number}")
    assert said == ["well\n"] * 16
