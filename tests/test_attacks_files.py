"""What hostile or unlucky use of the files of an agent cannot do: lose a place, half a verb, a policy or a message."""

from __future__ import annotations

import errno
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path as FsPath

import msgspec
import pytest
import trio
from engines import dead, fails, lines, pending, running, send, settings, settle

from agentfs.engine.engine import Engine
from agentfs.engine.settings import ExecProgram, Settings, parse_settings
from agentfs.house import build
from agentfs.limits import Limits
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.providers.programs.execute import Execute
from agentfs.rows import AlarmRow, KvRow
from agentfs.service import FileService
from agentfs.tree import Tree
from agentfs.types import OPERATOR, Mode, Path, Principal, join

READ, WRITE = Mode.READ, Mode.WRITE
FULL = {"policy": "reject", "max_depth": 1, "dead_letter_max": 9}
ALARM = b'{"in_ms": 60000, "payload": "x"}'


@asynccontextmanager
async def housed(store: Store, clock: ManualClock) -> AsyncIterator[tuple[Engine, FileService, FileService]]:
    """An engine with one paused agent, its files as the operator sees them and as it sees them itself."""
    async with running(store, clock) as engine:
        default = parse_settings(b'{"program": {"kind": "inline", "ref": "engines:Script"}}')
        _, spaces = build(engine, default, lambda config: None, {})
        await engine.create("a", settings(overflow=FULL))
        await engine.verb("a", "pause", OPERATOR)
        yield engine, spaces.office("a", OPERATOR), spaces.view(Principal("agent", "a"))


async def text(files: FileService, path: str) -> bytes:
    """All of a small file."""
    async with await files.open(Path(path), READ) as handle:
        return await handle.read(1 << 20, 0)


async def test_a_new_file_is_read_and_removed_while_its_writer_is_open(store: Store, clock: ManualClock) -> None:
    async with housed(store, clock) as (_, files, _own), await files.create(Path("schedule/x"), WRITE) as handle:
        assert await text(files, "schedule/x") == b""
        await handle.write(ALARM, 0)
        assert msgspec.json.decode(await text(files, "schedule/x"))["payload"] == "x"
        assert (await files.stat(Path("schedule/x"))).qid.version
        await files.remove(Path("schedule/x"))
        assert await store.get(AlarmRow, "a", "x") is None
        await fails(errno.ENOENT, files.stat(Path("schedule/x")))


async def test_a_close_that_is_cancelled_gives_its_place_back(store: Store, clock: ManualClock) -> None:
    async with housed(store, clock) as (_, files, _own):
        handle = await files.open(Path("inbox"), WRITE)
        await handle.write(b"half a message", 0)
        with trio.CancelScope() as scope:
            scope.cancel()
            await handle.aclose()
        await handle.aclose()
        async with await files.open(Path("inbox"), WRITE) as again:
            await fails(errno.EAGAIN, files.open(Path("inbox"), WRITE))
            await again.write(b"whole\n", 0)


async def test_half_a_verb_is_never_run(store: Store, clock: ManualClock) -> None:
    async with housed(store, clock) as (engine, files, _own):
        limit = Limits().ctl_line_bytes
        async with await files.open(Path("ctl"), WRITE) as handle:
            await handle.write(b"tick " + b"x" * (limit - 10), 0)
            await fails(errno.EFBIG, handle.write(b"x" * limit, 0))
            await fails(errno.EFBIG, handle.write(b"x\nterminate\n", 0))
        async with await files.open(Path("ctl"), WRITE) as handle:
            assert await handle.write(b"pause\n" + b"x" * (limit + 1), 0) == len(b"pause\n")
        assert await pending(engine, "a") == []
        await settle(engine)
        assert (await engine.status("a"))["state"] == "dormant"


async def test_a_policy_out_of_bounds_is_refused(store: Store, clock: ManualClock) -> None:
    async with housed(store, clock) as (engine, files, _own):
        for doc in (b'{"max_depth": 0}', b'{"dead_letter_max": -1}', b'{"max_depth": 1000000000000000000000}'):
            async with await files.open(Path("queue/overflow"), WRITE) as handle:
                await fails(errno.EINVAL, handle.write(doc, 0))
        assert (await engine.status("a"))["queue_depth"] == 0
        for env in ({"": "x"}, {"A=B": "x"}):
            doc = msgspec.json.encode({"program": {"kind": "exec", "argv": ["true"], "env": env}})
            async with await files.open(Path("config"), WRITE) as handle:
                await fails(errno.EINVAL, handle.write(doc, 0))


async def test_only_the_operator_discards(store: Store, clock: ManualClock) -> None:
    async with housed(store, clock) as (engine, files, own):
        await send(engine, "a", "x", id="m1")
        await fails(errno.EACCES, own.remove(Path("queue/m1.json")))
        await engine.configure("a", settings(overflow={**FULL, "policy": "drop_oldest"}), None)
        await send(engine, "a", "y", id="m2")
        await fails(errno.EACCES, own.remove(Path("deadletter/m1.json")))
        async with await own.open(Path("deadletter/ctl"), WRITE) as handle:
            await fails(errno.EPERM, handle.write(b"discard m1\n", 0))
        assert [row.id for row in await dead(engine, "a")] == ["m1"]
        await files.remove(Path("deadletter/m1.json"))
        await files.remove(Path("queue/m2.json"))
        assert await dead(engine, "a") == [] and await pending(engine, "a") == []


async def test_what_the_operator_edits_is_out_of_an_agents_reach(store: Store, clock: ManualClock) -> None:
    async with housed(store, clock) as (_, files, own):
        async with await files.create(Path("sedAbC123"), WRITE) as handle:
            await handle.write(b"draft", 0)
        await fails(errno.ENOENT, own.open(Path("sedAbC123"), WRITE))
        await fails(errno.ENOENT, own.stat(Path("sedAbC123")))


async def test_scratch_files_left_behind_do_not_add_up(store: Store, clock: ManualClock) -> None:
    async with housed(store, clock) as (_, files, _own):
        for number in range(40):
            async with await files.create(Path(f"sedabc{number:03}"), WRITE) as handle:
                await handle.write(b"left", 0)
        await files.stat(Path("sedabc039"))
        await fails(errno.ENOENT, files.stat(Path("sedabc000")))


async def test_listing_large_values_in_pages(store: Store, clock: ManualClock) -> None:
    async with housed(store, clock) as (engine, files, _own):
        for number in range(70):
            await engine.put_kv("a", f"k{number:02}", b"value", match=None, is_new=True)
        names = [st.name for st in await files.list(Path("kv"))]
        assert names == [f"k{number:02}" for number in range(70)]
        page = await files.list(Path("kv"), "k09", 40)
        assert [st.name for st in page] == names[10:50] and {st.size for st in page} == {5}


async def run_exec(store: Store, clock: ManualClock, work: FsPath, script: str) -> list[bytes | None]:
    """The value that one tick of an exec program stores, its last words if it fails."""

    def load(agent: str, config: Settings) -> Execute:
        assert isinstance(config.program, ExecProgram)
        return Execute(config.program, {"PATH": "/usr/bin:/bin"}, work / agent, 1 << 16)

    engine = Engine(store, clock, Limits(), load, lambda agent: Tree())
    doc = {"program": {"kind": "exec", "argv": [sys.executable, "-c", script]}, "retry": {"attempts": 1}}
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: engine.run(task_status=task_status))
        await engine.create("a", msgspec.convert(doc, Settings))
        await send(engine, "a", "x" * 200_000)
        with trio.fail_after(60):
            await settle(engine)
        nursery.cancel_scope.cancel()
    row = await store.get(KvRow, "a", "k")
    return [row.value if row else None, *[letter.reason.encode() for letter in await dead(engine, "a")]]


STORES = 'print(\'{"type": "kv", "key": "k", "value": "v"}\', flush=True)'


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (f"{STORES}; import subprocess; subprocess.Popen(['sleep', '600'])", b"v"),
        (f"{STORES}; import subprocess; subprocess.Popen(['sleep', '5'], start_new_session=True)", b"v"),
        (f"import os; os.close(0); {STORES}", b"v"),
        (f"{STORES}; print('garbage')", b"EINVAL"),
        (f'{STORES}; print(\'{{"type": "alarm", "name": "n", "in_ms": 1e400}}\')', b"EINVAL"),
        (f'{STORES}; print(\'{{"type": "reply", "payload": "\' + chr(92) + \'ud800"}}\')', b"EINVAL"),
        (f"{STORES}; print('[' * 9000)", b"EINVAL"),
        (f"{STORES}; print('x' * 70000)", b"EFBIG"),
        (f"{STORES}; import sys; sys.stderr.write('no ' * 100000); sys.exit(3)", b"EREMOTEIO"),
        (f"{STORES}; import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", b"EREMOTEIO"),
    ],
)
async def test_programs_that_misbehave(
    store: Store, clock: ManualClock, tmp_path: FsPath, script: str, found: bytes
) -> None:
    """What a child that stays behind holds open is not waited for; a bad end or a bad line rolls everything back."""
    value, *reasons = await run_exec(store, clock, tmp_path, script)
    if found == b"v":
        assert (value, reasons) == (b"v", [])
    else:
        assert value is None and [(r or b"").partition(b":")[0] for r in reasons] == [found]


async def test_words_before_a_bad_line_are_told(store: Store, clock: ManualClock, tmp_path: FsPath) -> None:
    """Whichever of the two pipes is read first."""

    def load(agent: str, config: Settings) -> Execute:
        assert isinstance(config.program, ExecProgram)
        return Execute(config.program, {"PATH": "/usr/bin:/bin"}, tmp_path / agent, 1 << 16)

    engine = Engine(store, clock, Limits(), load, lambda agent: Tree())
    argv = ["sh", "-c", "echo before it >&2; echo garbage; exec sleep 600"]
    doc = {"program": {"kind": "exec", "argv": argv}, "retry": {"attempts": 1}, "quarantine_after": 100}
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: engine.run(task_status=task_status))
        await engine.create("a", msgspec.convert(doc, Settings))
        for _ in range(12):
            await send(engine, "a", "x")
        with trio.fail_after(60):
            await settle(engine)
        nursery.cancel_scope.cancel()
    ring = engine.core.logs.ring("a")
    lines = [line.line for head in await ring.heads() for line in await ring.lines(head.generation)]
    assert sum(b'"text":"before it"' in line for line in lines) == 12


async def test_what_agents_write_about_themselves_cannot_name_another(store: Store, clock: ManualClock) -> None:
    """An alarm's origin is the runtime's to say; a reply goes to whoever really asked."""
    async with housed(store, clock) as (engine, _, own):
        async with await own.create(Path("schedule/x"), WRITE) as handle:
            await handle.write(b'{"in_ms": 1, "origin": "b", "reply_to": "m9", "payload": null}', 0)
        row = await store.get(AlarmRow, "a", "x")
        assert row is not None and msgspec.json.decode(row.spec).keys() == {"at"}
        clock.advance(1)
        await settle(engine)
        (envelope,) = await pending(engine, "a")
        assert msgspec.json.decode(envelope.body)["metadata"] == {"extra": {"alarm": "x"}}
        assert await lines(engine, "a", "outbox") == []


async def test_what_is_listed_promises_no_more_than_what_is_looked_at(store: Store, clock: ManualClock) -> None:
    """What a mount learns from a listing it goes by later, for all that is below."""
    async with running(store, clock) as engine:
        default = parse_settings(b'{"program": {"kind": "inline", "ref": "engines:Script"}}')
        house, _ = build(engine, default, lambda config: None, {})
        await engine.create("a", settings())
        await engine.put_kv("a", "x", b"1", match=None, is_new=True)
        left = [Path("")]
        while left:
            top = left.pop()
            for entry in await house.list(top):
                found = await house.stat(path := join(top, entry.name))
                promises = [(st.until, st.named, st.lists) for st in (entry, found)]
                assert promises[0] == promises[1], path
                left += [path] if entry.is_dir else []
