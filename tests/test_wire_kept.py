"""What our own binding lets the kernel keep, and how it is told that it no longer holds. A socket is the kernel."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pytest
import trio
from fusescratch import Scratch
from msgspec.structs import replace
from wirekernel import FACET, PATIENCE_S, Promised, fixed, hello, pair, serving

from agentfs.faces.fuse.wire import protocol as p
from agentfs.faces.fuse.wire.protocol import FOpen, Notify, Op
from agentfs.tree import At, Dir, File, Tree
from agentfs.types import Path, Stat
from agentfs.views import View


async def test_what_lasts_is_kept_until_the_kernel_is_told() -> None:
    tree = Promised(Tree(File(name="fixed", read=fixed), Dir(name="d", entries=[File(name="f", read=fixed)])))
    async with serving(tree) as (kernel, core):
        found = [p.ENTRY_OUT.unpack((await kernel.ask(Op.LOOKUP, name))[1]) for name in (b"d\0", b"fixed\0")]
        (directory, _, name_s, attributes_s, *_), (_, _, file_s, none, *_) = found
        assert min(name_s, attributes_s, file_s) > 60 and none == 0
        _, text = await kernel.ask(Op.GETATTR, bytes(p.GETATTR_IN.size), node=directory)
        assert p.ATTR_OUT.unpack(text)[0] > 60
        core.changed(FACET)
        assert await kernel.answer() == (0, -Notify.INC_EPOCH, b"")
        assert await kernel.answer() == (0, -Notify.INVAL_INODE, p.NOTIFY_INVAL_INODE.pack(directory, -1, 0))
        core.changed(FACET)  # nothing is kept now
        assert await kernel.is_well()


async def test_what_changes_while_it_is_asked_for_is_not_kept() -> None:
    reached, go = trio.Event(), trio.Event()

    async def is_protected(at: At) -> bool:
        reached.set()
        await go.wait()
        return False

    async with serving(Tree(Dir(name="d", is_protected=is_protected))) as (kernel, core):
        asked = await kernel.send(Op.LOOKUP, b"d\0")
        await reached.wait()
        core.changed(FACET)
        go.set()
        unique, _, entry = await kernel.answer()
        assert unique == asked
        assert p.ENTRY_OUT.unpack(entry)[2:6] == (0, 0, 0, 0)


async def test_who_is_told_of_before_it_is_put_away_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel does not know a number yet whose answer it has; it would then keep it, and the name."""
    told: list[int] = []

    def notify(code: int, body: bytes) -> bool:
        told.append(code)
        return code != Notify.INVAL_INODE

    tree = Promised(Tree(Dir(name="d", entries=[File(name="f", read=fixed)])))
    async with pair(tree) as (kernel, session, core), trio.open_nursery() as nursery:
        monkeypatch.setattr(session._device, "notify", notify)
        await kernel.send(Op.INIT, hello(), node=0)
        await session.greet()
        await kernel.answer()
        nursery.start_soon(session.run)
        await kernel.ask(Op.LOOKUP, b"d\0")
        core._names.clear()
        core.changed(FACET)
        assert told == [Notify.INVAL_INODE, Notify.INC_EPOCH]
        with trio.fail_after(PATIENCE_S):
            while len(told) < 4:
                await trio.lowlevel.checkpoint()
        assert told[2:] == [Notify.INC_EPOCH, Notify.INVAL_INODE]
        nursery.cancel_scope.cancel()


async def test_what_is_forgotten_is_recalled_no_more() -> None:
    tree = Promised(Tree(Dir(name="d", entries=[File(name="f", read=fixed)])))
    async with serving(tree) as (kernel, core):
        found = p.ENTRY_OUT.unpack((await kernel.ask(Op.LOOKUP, b"d\0"))[1])
        await kernel.ask(Op.LOOKUP, b"d\0")
        await kernel.send(Op.FORGET, p.FORGET_IN.pack(1), node=found[0])
        core.changed(FACET)
        assert await kernel.answer() == (0, -Notify.INC_EPOCH, b"")
        assert await kernel.answer() == (0, -Notify.INVAL_INODE, p.NOTIFY_INVAL_INODE.pack(found[0], -1, 0))
        await kernel.ask(Op.LOOKUP, b"d\0")
        await kernel.send(Op.FORGET, p.FORGET_IN.pack(2), node=found[0])
        assert (await kernel.ask(Op.STATFS))[0] == 0
        core.changed(FACET)
        assert await kernel.answer() == (0, -Notify.INC_EPOCH, b"")
        assert (await kernel.ask(Op.STATFS))[0] == 0


class Listed(Promised):
    """Its directories say when their names change."""

    async def stat(self, path: Path) -> Stat:
        st = await super().stat(path)
        return replace(st, lists=st.is_dir)


async def test_one_reader_at_a_time_has_the_kernel_keep_a_listing() -> None:
    """Of two it would keep what one has got under the mtime that the other finds later."""
    async with serving(Listed(Tree(Dir(name="d", entries=[File(name="f", read=fixed)])))) as (kernel, _):
        node = p.ENTRY_OUT.unpack((await kernel.ask(Op.LOOKUP, b"d\0"))[1])[0]
        opened = [p.OPEN_OUT.unpack((await kernel.ask(Op.OPENDIR, bytes(8), node=node))[1]) for _ in range(2)]
        assert [bool(flags & FOpen.CACHE_DIR) for _, flags, _ in opened] == [True, False]
        for (fh, _, _), is_kept in zip(reversed(opened), (False, True), strict=True):
            assert await kernel.ask(Op.RELEASEDIR, p.RELEASE_IN.pack(fh, 0, 0, 0), node=node) == (0, b"")
            _, text = await kernel.ask(Op.OPENDIR, bytes(8), node=node)
            assert bool(p.OPEN_OUT.unpack(text)[1] & FOpen.CACHE_DIR) is is_kept


class Torn(View):
    """Listing fails behind the first page."""

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        if after:
            raise OSError(errno.ENOBUFS, "torn")
        return await super().list(path, after, limit)


async def test_a_listing_that_fails_half_way_counts_nothing() -> None:
    async with serving(Torn(Scratch())) as (kernel, core):
        _, entry = await kernel.ask(Op.LOOKUP, b"big\0")
        node, before = p.ENTRY_OUT.unpack(entry)[0], len(core.inodes)
        _, text = await kernel.ask(Op.OPENDIR, p.OPEN_IN.pack(0, 0), node=node)
        body = p.READ_IN.pack(p.OPEN_OUT.unpack(text)[0], 0, 1 << 20, 0, 0, 0, 0)
        assert (await kernel.ask(Op.READDIRPLUS, body, node=node))[0] == errno.ENOBUFS
        assert len(core.inodes) == before
