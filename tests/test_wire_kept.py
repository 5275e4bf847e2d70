"""What our own binding lets the kernel keep, and how it is told that it no longer holds. A socket is the kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import pytest
import trio
import trio.testing
from fusescratch import Scratch
from msgspec.structs import replace
from wirekernel import FACET, PATIENCE_S, Kernel, Promised, fixed, hello, pair, serving

from agentfs.faces.fuse.wire import protocol as p
from agentfs.faces.fuse.wire.protocol import FOpen, Notify, Op
from agentfs.namespace import Namespace
from agentfs.service import FileHandle
from agentfs.tree import At, Dir, Entry, File, Info, Tree
from agentfs.types import NO_WANT, Bind, Facet, Mode, Path, Stat, Want
from agentfs.views import View


async def test_what_lasts_is_kept_until_the_kernel_is_told() -> None:
    tree = Promised(Tree(File(name="fixed", read=fixed), Dir(name="d", entries=[File(name="f", read=fixed)])))
    async with serving(tree) as (kernel, core):
        found = [p.ENTRY_OUT.unpack((await kernel.ask(Op.LOOKUP, name))[1]) for name in (b"d\0", b"fixed\0")]
        (directory, _, name_s, attributes_s, *_), (_, _, file_s, none, *_) = found
        assert min(name_s, attributes_s, file_s) > 60 and none == 0
        _, text = await kernel.ask(Op.GETATTR, bytes(p.GETATTR_IN.size), node=directory)
        assert p.ATTR_OUT.unpack(text)[0] > 60
        core.keeping.changed(FACET)
        assert await kernel.answer() == (0, -Notify.INC_EPOCH, b"")
        assert await kernel.answer() == (0, -Notify.INVAL_INODE, p.NOTIFY_INVAL_INODE.pack(directory, -1, 0))
        core.keeping.changed(FACET)  # nothing is kept now
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
        core.keeping.changed(FACET)
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
        core.keeping._names.clear()
        core.keeping.changed(FACET)
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
        core.keeping.changed(FACET)
        assert await kernel.answer() == (0, -Notify.INC_EPOCH, b"")
        assert await kernel.answer() == (0, -Notify.INVAL_INODE, p.NOTIFY_INVAL_INODE.pack(found[0], -1, 0))
        await kernel.ask(Op.LOOKUP, b"d\0")
        await kernel.send(Op.FORGET, p.FORGET_IN.pack(2), node=found[0])
        assert (await kernel.ask(Op.STATFS))[0] == 0
        core.keeping.changed(FACET)
        assert await kernel.answer() == (0, -Notify.INC_EPOCH, b"")
        assert (await kernel.ask(Op.STATFS))[0] == 0


class Counting(View):
    """Counts what is opened and asked for."""

    opened = asked = 0

    async def stat(self, path: Path) -> Stat:
        self.asked += 1
        return await super().stat(path)

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        self.opened += 1
        return await super().open(path, mode, want=want)


class Book:
    """A file whose size is known once it was read, and the kernel's place in it."""

    def __init__(self, until: tuple[Facet, ...] | None = (FACET,)) -> None:
        self.text, self.until = b"one", until
        self.service = Counting(Tree(File(name="f", read=self.read, write=self.write, info=self.info)))

    async def read(self, at: At) -> bytes:
        return self.text

    async def write(self, at: At, text: bytes) -> None:
        self.text = text

    async def info(self, at: At) -> Info:
        return Info(1, until=self.until)


async def seen(kernel: Kernel, node: int) -> tuple[int, int]:
    """For how long the kernel may keep the attributes of *node*, and the size in them."""
    _, text = await kernel.ask(Op.GETATTR, bytes(p.GETATTR_IN.size), node=node)
    kept_s, _, _, _, size, *_ = p.ATTR_OUT.unpack(text)
    return kept_s, size


async def text_of(kernel: Kernel, node: int, fh: int, offset: int = 0) -> bytes:
    return (await kernel.ask(Op.READ, p.READ_IN.pack(fh, offset, 100, 0, 0, 0, 0), node=node))[1]


async def test_what_is_known_is_opened_without_asking() -> None:
    book = Book()
    async with serving(book.service) as (kernel, core):
        node = p.ENTRY_OUT.unpack((await kernel.ask(Op.LOOKUP, b"f\0"))[1])[0]
        invalid = p.NOTIFY_INVAL_INODE.pack(node, -1, 0)
        asked = await kernel.send(Op.OPEN, p.OPEN_IN.pack(os.O_RDONLY, 0), node=node)
        assert await kernel.answer() == (0, -Notify.INVAL_INODE, invalid)  # it was told of size 0
        unique, _, text = await kernel.answer()
        first = p.OPEN_OUT.unpack(text)[0]
        assert unique == asked and await seen(kernel, node) == (3600, 3)
        _, second = await kernel.opened(b"f\0")
        assert (first, book.service.opened) != (second, 2)
        assert [await text_of(kernel, node, fh) for fh in (first, second)] == [b"one", b"one"]
        assert [await text_of(kernel, node, first, offset) for offset in (2, 3, 9)] == [b"e", b"", b""]
        book.text = b"other"
        core.keeping.changed(FACET)
        assert await kernel.answer() == (0, -Notify.INVAL_INODE, invalid)
        assert await seen(kernel, node) == (0, 3)  # as it is open, which no facet tells
        _, third = await kernel.opened(b"f\0")
        assert book.service.opened == 2
        assert [await text_of(kernel, node, fh) for fh in (first, third)] == [b"one", b"other"]
        assert await seen(kernel, node) == (3600, 5)
        await kernel.send(Op.RELEASE, p.RELEASE_IN.pack(third, 0, 0, 0), node=node)
        assert await kernel.answer() == (0, -Notify.INVAL_INODE, invalid)
        await kernel.answer()
        assert await seen(kernel, node) == (0, 3)
        for fh in (first, second):
            await kernel.ask(Op.RELEASE, p.RELEASE_IN.pack(fh, 0, 0, 0), node=node)
        assert await seen(kernel, node) == (3600, 5)


async def test_what_is_known_is_looked_up_without_asking() -> None:
    book = Book()
    async with serving(book.service) as (kernel, core):
        for times in (1, 2):
            for _ in range(3):
                found = p.ENTRY_OUT.unpack((await kernel.ask(Op.LOOKUP, b"f\0"))[1])
                assert await seen(kernel, found[0]) == (3600, 0)
            assert book.service.asked == times
            core.keeping.changed(FACET)
            await kernel.answer()
        book.until = None
        for _ in range(3):
            await kernel.ask(Op.LOOKUP, b"f\0")
        assert book.service.asked == 5


@pytest.mark.parametrize("until", [None, (FACET,)])
async def test_only_what_is_told_of_is_known(until: tuple[Facet, ...] | None) -> None:
    book = Book(until)
    async with serving(book.service) as (kernel, core):
        core.keeping.recall = lambda numbers, names: None
        for flags in (os.O_RDWR, os.O_WRONLY):
            await kernel.opened(b"f\0", flags)
        assert book.service.opened == 2
        await kernel.opened(b"f\0", os.O_RDWR)
        assert book.service.opened == 3
        if until is None:
            await kernel.opened(b"f\0")
            await kernel.opened(b"f\0")
            assert book.service.opened == 5
        assert core.keeping.content(1) is None


async def test_what_changes_while_it_is_opened_is_not_known() -> None:
    book, reached, go = Book(), trio.Event(), trio.Event()

    async def read(at: At) -> bytes:
        reached.set()
        await go.wait()
        return b"old"

    book.service = Counting(Tree(File(name="f", read=read, info=book.info)))
    async with serving(book.service) as (kernel, core):
        node = p.ENTRY_OUT.unpack((await kernel.ask(Op.LOOKUP, b"f\0"))[1])[0]
        await kernel.send(Op.OPEN, p.OPEN_IN.pack(os.O_RDONLY, 0), node=node)
        await reached.wait()
        core.keeping.changed(FACET)
        go.set()
        await trio.testing.wait_all_tasks_blocked()
        assert core.keeping.content(node) is None


async def test_few_contents_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentfs.faces.fuse.keeping._CONTENTS", 2)
    book = Book()
    files = [File(name=name, read=book.read, info=book.info) for name in "abc"]
    book.service = Counting(Tree(*files))
    async with serving(book.service) as (kernel, core):
        nodes = []
        for name in (b"a\0", b"b\0", b"c\0"):
            await kernel.send(Op.LOOKUP, name)
            nodes.append(p.ENTRY_OUT.unpack((await kernel.answer())[2])[0])
            await kernel.send(Op.OPEN, p.OPEN_IN.pack(os.O_RDONLY, 0), node=nodes[-1])
            await kernel.answer()
            await kernel.answer()
        assert [core.keeping.content(node) for node in nodes] == [None, b"one", b"one"]
        await kernel.send(Op.FORGET, p.FORGET_IN.pack(1), node=nodes[1])
        assert await kernel.is_well()
        assert core.keeping.content(nodes[1]) is None


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


def kept(names: dict[str, bool], facet: Facet) -> Tree:
    """A directory of directories that come and go with *facet*, each with a listing that may be kept."""

    async def has(at: At, key: str) -> bool:
        return key in names

    async def keys(at: At, after: str, limit: int) -> list[Entry]:
        return [Entry(name) for name in sorted(names) if name > after][:limit]

    return Tree(root=Dir(each=Dir(name="{key}"), has=has, keys=keys, facets=(facet,)))


async def test_a_listing_promises_no_more_than_a_look_at_each() -> None:
    """Of a union another member may get the same name, and have names of its own in a directory of that name."""
    first, second = kept({"x": True, "both": True}, ("a", "one/")), kept({"y": True, "both": True}, ("a", "two/"))
    space = Namespace()
    space.mount(first, Path("u"), name="one")
    space.mount(second, Path("u"), Bind.AFTER, name="two")
    space.mount(first, Path("alone"), name="one")
    for top in ("u", "alone"):
        for entry in await space.list(Path(top)):
            assert entry == await space.stat(Path(f"{top}/{entry.name}")), entry.name
    promised = {entry.name: (entry.named is not None, entry.lists) for entry in await space.list(Path("u"))}
    assert promised == {"both": (True, False), "x": (True, False), "y": (False, False)}
