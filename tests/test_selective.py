"""A union that passes members over, because they can tell what they do not have, shows what one does that asks all."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfs.grants import parse
from agentfs.guards import Granted, Lease
from agentfs.guards.fair import Bucket
from agentfs.mounts import place_of
from agentfs.namespace import Namespace
from agentfs.providers.clock import ManualClock
from agentfs.record import RingLog
from agentfs.service import FileService
from agentfs.tree import At, Data, Dir, File, Stream, Tree
from agentfs.types import NO_WANT, OPERATOR, ROOT, Bind, Mode, Path, Stat
from agentfs.views import View

LEVELS = [
    "read_write",
    "read_only",
    "disabled",
    "sign_only",
    "budgeted",
    "read_write rate=1",
    "read_write confirm=operator",
]
MODES = [Mode.READ, Mode.WRITE, Mode.READ | Mode.WRITE]
PATHS = [
    Path(name) for name in (
        "", "one", "two", "three", "none", "one/below", "log", "log@follow", "log@0", "log.1", "keys", "keys/a",
        "keys/new", "sedAbCdEf", "none/below", "one@follow", "two.1",
    )
]  # fmt: skip


class Counted(View):
    """Tells nothing of what it lacks, and counts how often it is asked."""

    asked = 0

    async def stat(self, path: Path) -> Stat:
        self.asked += 1
        return await super().stat(path)


async def read(at: At) -> bytes:
    return b"text\n"


async def write(at: At, doc: bytes) -> None:
    return


def trees(clock: ManualClock) -> list[Tree]:
    ring, keys = RingLog(clock, 1000), {"a"}

    async def log(at: At) -> RingLog:
        return ring

    async def has(at: At, key: str) -> bool:
        return key in keys

    async def create(at: At) -> None:
        keys.add(at["key"])

    async def remove(at: At) -> None:
        keys.discard(at["key"])

    each = Data(name="{key}", read=read, write=write, remove=remove)
    return [
        Tree(File(name="one", read=read, write=write)),
        Tree(File(name="two", read=read), Stream(name="log", log=log)),
        Tree(Dir(name="keys", each=each, has=has, create=create), File(name="three", read=read, remove=write_nothing)),
    ]


async def write_nothing(at: At) -> None:
    return


def union(levels: list[str], wrap: Callable[[FileService], FileService], revoked: int) -> Namespace:
    clock = ManualClock()
    space = Namespace()
    for number, (level, tree) in enumerate(zip(levels, trees(clock), strict=True)):
        grant, lease = parse(level.split()), Lease()
        granted = Granted(tree, grant, lease, Bucket(grant.rate, clock) if grant.rate else None)
        lease.is_revoked = number == revoked
        space.mount(wrap(granted), ROOT, Bind.AFTER, name=f"s{number}")
    return space.attach(OPERATOR)


def seen(found: Stat) -> Stat:
    """*found* without what it promises: who asks all members can promise less."""
    return msgspec.structs.replace(found, until=None, named=None, lists=False)


async def told(space: Namespace, op: str, path: Path, mode: Mode) -> object:
    """What *op* gives, as far as a caller can tell."""
    try:
        match op:
            case "stat":
                return seen(await space.stat(path))
            case "list":
                return [seen(found) for found in await space.list(path)]
            case "remove":
                await space.remove(path)
                return None
        async with await getattr(space, op)(path, mode, want=NO_WANT) as handle:
            return handle.size
    except OSError as exc:
        return exc.errno, exc.filename, exc.strerror


steps = st.tuples(
    st.sampled_from(["stat", "list", "open", "create", "remove"]), st.sampled_from(PATHS), st.sampled_from(MODES)
)


@given(levels=st.tuples(*[st.sampled_from(LEVELS)] * 3).map(list), sequence=st.lists(steps), revoked=st.integers(0, 5))
async def test_nothing_else_is_seen(levels: list[str], sequence: list[Any], revoked: int) -> None:
    quick, plain = union(levels, lambda s: s, revoked), union(levels, Counted, revoked)
    for op, path, mode in sequence:
        assert await told(quick, op, path, mode) == await told(plain, op, path, mode), (op, path, mode)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("level", LEVELS)
async def test_every_path_behind_a_member_of_every_level(level: str, path: Path) -> None:
    for op in ("stat", "list", "open", "remove"):
        for mode in MODES:
            levels = [level, "read_write", "read_write"]
            quick, plain = union(levels, lambda s: s, 9), union(levels, Counted, 9)
            assert await told(quick, op, path, mode) == await told(plain, op, path, mode), (op, mode)


def test_a_tree_tells_what_it_lacks() -> None:
    one, two, three = trees(ManualClock())
    for is_change in (False, True):
        assert one.lacks("two", is_change=is_change) and not one.lacks("one", is_change=is_change)
        assert not two.lacks("log@follow", is_change=is_change) and not two.lacks("log.1", is_change=is_change)
        assert three.lacks("a", is_change=is_change) and not three.lacks("keys", is_change=is_change)


async def test_a_name_that_was_only_created_is_not_lacked() -> None:
    tree = trees(ManualClock())[0]
    async with await tree.create(Path("sedAbCdEf"), Mode.WRITE) as handle:
        await handle.write(b"scratch\n", 0)
    assert not tree.lacks("sedAbCdEf", is_change=False)


async def test_a_grant_that_refuses_more_is_asked() -> None:
    tree, lease = Tree(File(name="one", read=read)), Lease()
    assert Granted(tree, parse([]), lease).lacks("two", is_change=True)
    assert Granted(tree, parse(["read_only"]), lease).lacks("two", is_change=False)
    assert not Granted(tree, parse(["read_only"]), lease).lacks("two", is_change=True)
    assert not Granted(tree, parse(["disabled"]), lease).lacks("two", is_change=False)
    assert not Granted(tree, parse([]), lease, Bucket(1, ManualClock())).lacks("two", is_change=False)
    assert not Granted(Counted(tree), parse([]), lease).lacks("two", is_change=False)
    await lease.revoke()
    assert not Granted(tree, parse([]), lease).lacks("two", is_change=False)


def test_a_table_keeps_few_places() -> None:
    space = Namespace()
    space.mount(Tree(), Path("a"), name="t")
    root = space._table.root
    for number in range(1000):
        place = place_of(root, Path(f"a/{number}"))
        assert place is place_of(root, Path(f"a/{number}")) and place.ways[0].inner == str(number)
    assert len(root.places) <= 256
    place_of(root, Path("a/" + "x" * 1000))
    assert Path("a/" + "x" * 1000) not in root.places


async def test_errno_of_a_name_that_all_lack() -> None:
    space = union(["read_write"] * 3, lambda s: s, 9)
    assert await told(space, "stat", Path("none"), Mode.READ) == (errno.ENOENT, "none", "file does not exist")
