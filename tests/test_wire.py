"""Our own reader of /dev/fuse without a kernel: a socket stands in for the device, and says what no kernel would."""

from __future__ import annotations

import errno
import os
import socket
import time
from functools import partial
from typing import Any

import pytest
import trio
from fusescratch import Scratch
from hypothesis import given, settings
from hypothesis import strategies as st
from wirekernel import FOLLOW, NEWEST, PATIENCE_S, fixed, hello, pair, read_in, serving

from agentfs.faces.fuse.wire import protocol as p
from agentfs.faces.fuse.wire.operations import SILENT
from agentfs.faces.fuse.wire.protocol import Init, Op
from agentfs.service import FileHandle
from agentfs.tree import Ctl, File, Tree
from agentfs.types import NO_WANT, Mode, Path, Stat, Want
from agentfs.views import View, ViewHandle

# -- the greeting ------------------------------------------------------------------------------------------------------


async def test_what_is_agreed_upon() -> None:
    async with pair() as (kernel, session, _):
        await kernel.send(Op.GETATTR, bytes(16))
        await kernel.send(Op.INIT, hello((8, 0)), node=0)
        await kernel.send(Op.INIT, hello((7, 31), Init.BIG_WRITES | Init.MAX_PAGES), node=0)
        await session.greet()
        assert (await kernel.answer())[1] == errno.EIO
        assert p.INIT_OUT.unpack((await kernel.answer())[2])[:2] == NEWEST, "a newer kernel asks again"
        _, code, text = await kernel.answer()
        major, minor, readahead, flags, background, _, max_write, _, max_pages, *_ = p.INIT_OUT.unpack(text)
        assert (code, major, minor, readahead) == (0, *NEWEST, 1 << 17)
        assert flags == Init.BIG_WRITES | Init.MAX_PAGES
        assert max_write == max_pages * 4096 == 1 << 20
        assert background > 4096, "readers that wait hold up no close"


@pytest.mark.parametrize("version", [(6, 99), (7, 30), (0, 0)])
async def test_an_old_kernel_is_refused(version: tuple[int, int]) -> None:
    async with pair() as (kernel, session, _):
        await kernel.send(Op.INIT, hello(version), node=0)
        with pytest.raises(OSError, match=f"FUSE {version[0]}.{version[1]}"):
            await session.greet()
        assert (await kernel.answer())[1] == errno.EPROTO


# -- requests ----------------------------------------------------------------------------------------------------------


async def test_what_is_absent_is_told_so_that_it_is_asked_for_once_only() -> None:
    absent = {
        Op.SETXATTR, Op.GETXATTR, Op.LISTXATTR, Op.REMOVEXATTR, Op.ACCESS, Op.IOCTL, Op.LSEEK, Op.COPY_FILE_RANGE,
        Op.COPY_FILE_RANGE_64, Op.FALLOCATE, Op.STATX,
    }  # fmt: skip
    refused = {Op.SYMLINK: errno.EPERM, Op.LINK: errno.EPERM, Op.READLINK: errno.EINVAL}
    strange = {Op.INIT, Op.GETLK, Op.SETLK, Op.SETLKW, Op.BMAP, Op.NOTIFY_REPLY, Op.SETUPMAPPING, Op.REMOVEMAPPING,
               Op.SYNCFS, Op.TMPFILE, 7, 19, 54, 4096, 0xFFFFFFFF}  # fmt: skip
    async with serving() as (kernel, _):
        for op in absent:
            assert await kernel.ask(op, bytes(64)) == (errno.ENOSYS, b""), op
        for op, code in refused.items():
            assert await kernel.ask(op, b"a\0b\0") == (code, b""), op
        for number in strange:
            assert await kernel.ask(number, bytes(64)) == (errno.EOPNOTSUPP, b""), number


async def test_lookups_are_forgotten_exactly() -> None:
    async with serving(Tree(File(name="fixed", read=fixed), Ctl(name="ctl", verbs={}))) as (kernel, core):
        before = len(core.inodes)
        nodes = []
        for name in (b"fixed\0", b"fixed\0", b"ctl\0", b"ctl\0"):
            _, entry = await kernel.ask(Op.LOOKUP, name)
            nodes.append((p.ENTRY_OUT.unpack(entry)[0], p.ENTRY_OUT.unpack(entry)[6]))
        assert nodes[0] == nodes[1], "one number for one file"
        assert nodes[2][0] != nodes[3][0] and nodes[2][1] == nodes[3][1], "but where commands go: one for each lookup"
        pairs = b"".join(p.FORGET_ONE.pack(node, 1) for node, _ in nodes[1:])
        await kernel.send(Op.FORGET, p.FORGET_IN.pack(1), node=nodes[0][0])
        await kernel.send(Op.BATCH_FORGET, p.BATCH_FORGET_IN.pack(3, 0) + pairs, node=0)
        await kernel.send(Op.BATCH_FORGET, p.BATCH_FORGET_IN.pack(9, 0) + pairs, node=0)
        assert await kernel.is_well()
        assert len(core.inodes) == before


async def test_an_interrupt_ends_the_read_it_is_about_and_no_other() -> None:
    async with serving() as (kernel, core):
        readers = [await kernel.send(Op.READ, read_in(fh), node=node)
                   for node, fh in [await kernel.opened(FOLLOW) for _ in range(3)]]  # fmt: skip
        await kernel.send(Op.INTERRUPT, p.INTERRUPT_IN.pack(readers[1]), node=0)
        assert await kernel.answer() == (readers[1], errno.EINTR, b"")
        for unique in (readers[1], 0, 12345, (1 << 64) - 1):
            await kernel.send(Op.INTERRUPT, p.INTERRUPT_IN.pack(unique), node=0)
        assert await kernel.is_well()
        assert len(core.blocked) == 2
        node, fh = await kernel.opened(b"ctl\0", os.O_WRONLY)
        line = b"emit x\n"
        asked = await kernel.send(Op.WRITE, p.WRITE_IN.pack(fh, 0, len(line), 0, 0, 0, 0) + line, node=node)
        answers = sorted([await kernel.answer() for _ in range(3)])
        assert answers == sorted([(readers[0], 0, b"x\n"), (readers[2], 0, b"x\n"), (asked, 0, p.WRITE_OUT.pack(7, 0))])


class Slow(View):
    """Each look keeps the processor for a while."""

    async def stat(self, path: Path) -> Stat:
        ends = time.monotonic() + 0.003
        while time.monotonic() < ends:
            pass
        return await super().stat(path)


async def test_a_flood_leaves_others_their_turn() -> None:
    count = 30
    async with serving(Slow(Scratch())) as (kernel, _):
        for _ in range(count):
            kernel.put(Op.GETATTR, bytes(p.GETATTR_IN.size))
        turns = 0
        while kernel.waiting() < count:
            await trio.lowlevel.checkpoint()
            turns += 1
        assert turns > count / 2


class Grouped(View):
    """Finding `odd` fails in a nursery of its own, with whatever it was cancelled by."""

    async def stat(self, path: Path) -> Stat:
        if path != "odd":
            return await super().stat(path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("of its own")


async def test_an_interrupt_is_answered_whatever_the_cancellation_has_become() -> None:
    async with serving(Grouped(Scratch())) as (kernel, _):
        asked = await kernel.send(Op.LOOKUP, b"odd\0")
        assert await kernel.is_well()
        await kernel.send(Op.INTERRUPT, p.INTERRUPT_IN.pack(asked), node=0)
        assert await kernel.answer() == (asked, errno.EINTR, b"")
        assert await kernel.is_well()


class Spent(View):
    """A service with a bug: what it does at once is at the end of an iterator."""

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        return SpentHandle(await super().open(path, mode, want=want))


class SpentHandle(ViewHandle):
    def write_nowait(self, data: bytes, offset: int) -> bool:
        return next(iter(()))


async def test_a_bug_in_what_is_done_at_once_is_answered_too() -> None:
    async with serving(Spent(Scratch())) as (kernel, _):
        node, fh = await kernel.opened(b"ctl\0", os.O_WRONLY)
        assert await kernel.ask(Op.WRITE, p.WRITE_IN.pack(fh, 0, 1, 0, 0, 0, 0) + b"x", node=node) == (errno.EIO, b"")


async def test_a_thousand_blocked_readers_leave_the_rest_alone() -> None:
    async with serving() as (kernel, core):
        node, fh = await kernel.opened(FOLLOW)
        waiting = [await kernel.send(Op.READ, read_in(fh), node=node) for _ in range(1000)]
        assert await kernel.is_well()
        assert len(core.blocked) == 1000
        for unique in waiting:
            await kernel.send(Op.INTERRUPT, p.INTERRUPT_IN.pack(unique), node=0)
            assert await kernel.answer() == (unique, errno.EINTR, b"")


async def test_many_names_in_pieces() -> None:
    async with serving() as (kernel, _):
        _, entry = await kernel.ask(Op.LOOKUP, b"big\0")
        node = p.ENTRY_OUT.unpack(entry)[0]
        kinds: list[tuple[int, int]] = [(Op.READDIR, 0), (Op.READDIRPLUS, p.ENTRY_OUT.size)]
        for op, extra in kinds:
            _, text = await kernel.ask(Op.OPENDIR, p.OPEN_IN.pack(0, 0), node=node)
            fh, _, _ = p.OPEN_OUT.unpack(text)
            names, index = [], 0
            while True:
                code, text = await kernel.ask(op, p.READ_IN.pack(fh, index, 1000, 0, 0, 0, 0), node=node)
                assert code == 0 and len(text) <= 1000 and len(text) % 8 == 0
                if not text:
                    break
                while text:
                    ino, index, size, _ = p.DIRENT.unpack_from(text, extra)
                    start = extra + p.DIRENT.size
                    names.append(text[start : start + size])
                    assert not extra or p.ENTRY_OUT.unpack_from(text)[6] == ino
                    text = text[start + size + -size % 8 :]
            assert names == sorted(set(names)) and len(names) > 1000
        too_much = p.READ_IN.pack(fh, 0, (1 << 20) + 1, 0, 0, 0, 0)
        assert (await kernel.ask(Op.READDIR, too_much, node=node))[0] == errno.EINVAL


# -- nonsense ----------------------------------------------------------------------------------------------------------

U64 = st.one_of(st.integers(0, 9), st.sampled_from([1 << 31, 1 << 63, (1 << 64) - 1]))
OPS = st.one_of(st.sampled_from(sorted(Op)), st.integers(0, 0xFFFFFFFF))
BODIES = st.one_of(
    st.binary(max_size=200),
    st.tuples(U64, st.binary(max_size=80)).map(lambda found: found[0].to_bytes(8, "little") + found[1]),
    st.sampled_from([b"fixed\0", b"a\0b\0", b"..\0", b"a/b\0", b"x" * 300 + b"\0", b"\0", b"no end", b"log@follow\0"]),
)
MESSAGES = st.lists(st.tuples(OPS, BODIES, U64, st.none() | U64.map(lambda n: n & 0xFFFFFFFF)), max_size=12)


@settings(max_examples=150, deadline=None)
@given(messages=MESSAGES)
def test_no_message_does_harm(messages: list[Any]) -> None:
    trio.run(partial(survive, messages))


async def survive(messages: list[Any]) -> None:
    """Every message that is one is answered once; those that are none are dropped; then all is as it was."""
    async with serving() as (kernel, _):
        asked = set()
        for op, body, node, length in messages:
            number = await kernel.send(op, body, node=node, length=length)
            if length in (None, p.IN_HEADER.size + len(body)) and op not in SILENT:
                asked.add(number)
        last = await kernel.send(Op.GETATTR, bytes(p.GETATTR_IN.size))
        answered: list[int] = []
        while last not in answered:
            unique, _, _ = await kernel.answer()
            answered.append(unique)
        answered.remove(last)
        with trio.move_on_after(PATIENCE_S):
            while set(answered) < asked:
                answered.append((await kernel.answer())[0])
        assert sorted(answered) == sorted(asked)
        assert await kernel.is_well()


@pytest.mark.parametrize("cut", [0, 1, 15, 39])
async def test_what_is_too_short_to_be_a_message_is_dropped(cut: int) -> None:
    async with pair() as (kernel, session, core), trio.open_nursery() as nursery:
        core.start(nursery)
        await kernel.send(Op.INIT, hello(), node=0)
        await session.greet()
        await kernel.answer()
        nursery.start_soon(session.run)
        if cut:
            await kernel._end.send(bytes(cut))
        assert await kernel.is_well()
        kernel._end.shutdown(socket.SHUT_RDWR)  # the mount is gone: the session ends by itself
