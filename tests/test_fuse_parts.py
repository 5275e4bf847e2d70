"""The parts of the FUSE face without a kernel: numbers, listings, blocked reads."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from fusescratch import Scratch

from agentfs.faces.fuse.answers import Attr
from agentfs.faces.fuse.blocked import Blocked, Opener
from agentfs.faces.fuse.core import Core
from agentfs.faces.fuse.inodes import ROOT_INO, Inodes
from agentfs.faces.fuse.listing import PAGE, Listing
from agentfs.tree import At, Dir, Entry, File, Tree
from agentfs.types import ROOT, Qid, Stat
from agentfs.types import Path as FilePath


def test_inodes_numbers() -> None:
    inodes, other = Inodes(), Inodes()
    file = Stat("f", stat.S_IFREG | 0o600, qid=Qid(7))
    node = inodes.see(FilePath("d/f"), file)
    node.lookups += 2
    assert node.ino == other.see(FilePath("d/f"), file).ino > ROOT_INO
    assert node.ino < 1 << 63
    inodes.forget(node.ino, 1)
    assert inodes.get(node.ino) is node
    inodes.forget(node.ino, 1)
    with pytest.raises(OSError, match="removed or replaced"):
        inodes.get(node.ino)
    assert len(inodes) == 1
    inodes.forget(ROOT_INO, 99)
    inodes.forget(12345, 1)
    assert inodes.get(ROOT_INO).path == ROOT


def test_inodes_replaced_and_moved() -> None:
    inodes = Inodes()
    first = inodes.see(FilePath("f"), Stat("f", stat.S_IFREG, qid=Qid(1)))
    first.lookups = 1
    second = inodes.see(FilePath("f"), Stat("f", stat.S_IFREG, qid=Qid(2)))
    assert first.is_stale
    assert second.ino != first.ino
    second.lookups = 1
    inodes.retire(FilePath("f"))
    again = inodes.see(FilePath("f"), Stat("f", stat.S_IFREG, qid=Qid(2)))
    assert len({first.ino, second.ino, again.ino}) == 3, "a number the kernel knows is not used again"
    top = inodes.see(FilePath("d"), Stat("d", stat.S_IFDIR))
    below = inodes.see(FilePath("d/x"), Stat("x", stat.S_IFREG))
    beside = inodes.see(FilePath("dx"), Stat("dx", stat.S_IFREG))
    inodes.move(FilePath("d"), FilePath("e/d"))
    assert (top.path, below.path, beside.path) == ("e/d", "e/d/x", "dx")
    assert inodes.see(FilePath("e/d/x"), Stat("x", stat.S_IFREG, qid=Qid(9))) is below


async def test_listing_pages_and_seeks() -> None:
    listing = Listing(Scratch(), FilePath("big"))

    async def name(index: int) -> str:
        page, _ = await listing.at(index)
        return page[0].name if page else ""

    order = [0, 1, PAGE - 1, PAGE, PAGE - 1, 3 * PAGE + 5, 2 * PAGE, 17, 9999, 10_000, 0]
    assert [await name(i) for i in order] == [f"{i:05}" if i < 10_000 else "" for i in order]


async def test_a_name_that_comes_while_a_directory_is_read_moves_no_other() -> None:
    names = ["b", "c", "d"]

    async def keys(at: At, after: str, limit: int) -> list[Entry]:
        return [Entry(name) for name in sorted(names) if name > after][:limit]

    async def read(at: At) -> bytes:
        return b""

    listing = Listing(Tree(root=Dir(each=File(name="{name}", read=read), keys=keys)), ROOT)
    page, _ = await listing.at(0)
    assert [st.name for st in page] == names
    names.append("a")
    assert (await listing.at(3))[0] == ()
    names.append("e")
    page, _ = await listing.at(3)
    assert [st.name for st in page] == ["e"]


async def test_core_refuses_unknown_numbers() -> None:
    core = Core(Scratch())
    for call in (
        core.read(5, 1, 0),
        core.write(5, b"", 0),
        core.flush(5),
        core.directories.read(5, 0, lambda *a: True),
    ):
        with pytest.raises(OSError, match="no open"):
            await call
    await core.release(5)
    core.directories.close(5)
    with pytest.raises(OSError, match="removed or replaced"):
        await core.getattr(5)


async def test_entries_that_do_not_fit_are_not_counted() -> None:
    core = Core(Scratch())
    fh = (await core.directories.open(ROOT_INO, 1)).fh
    taken: list[int] = []

    def emit(name: bytes, attr: Attr, index: int) -> bool:
        taken.append(attr.ino)
        return len(taken) < 4

    await core.directories.read(fh, 0, emit)
    assert len(core.inodes) == 1 + 3
    for ino in taken[:3]:
        core.forget(ino, 1)
    assert len(core.inodes) == 1


async def test_closing_wakes_a_blocked_read(autojump_clock: trio.testing.MockClock) -> None:
    core = Core(Scratch())
    attr = await core.lookup(ROOT_INO, b"log@follow")
    fh = (await core.open(attr.ino, os.O_RDONLY, os.getpid())).fh
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends_with, "closed", core.read, fh, 10, 0)
        await trio.testing.wait_all_tasks_blocked()
        assert len(core.blocked) == 1
        await core.release(fh)
    assert len(core.blocked) == 0


async def ends_with(words: str, call: Callable[..., Awaitable[object]], *args: object) -> None:
    with pytest.raises(OSError, match=words):
        await call(*args)


async def test_only_the_read_of_a_vanished_opener_is_ended(autojump_clock: trio.testing.MockClock) -> None:
    blocked = Blocked(9)
    gone = await trio.run_process(["bash", "-c", "echo $$"], capture_stdout=True)
    nobodys = (1 << 63) - 25
    openers = [Opener(tid=tid, ino=nobodys) for tid in (0, os.getpid(), int(gone.stdout))]

    async def forever() -> bytes:
        await trio.sleep_forever()
        return b""

    async with trio.open_nursery() as nursery:
        nursery.start_soon(blocked.sweep, lambda: True)
        for opener in openers[:2]:
            nursery.start_soon(blocked.run, opener, forever)
        await ends_with("interrupted", blocked.run, openers[2], forever)
        await trio.sleep(1)
        assert len(blocked) == 2
        nursery.cancel_scope.cancel()
