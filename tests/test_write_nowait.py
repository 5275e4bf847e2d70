"""Writes that nothing has to be waited for: they do what `write` does, or nothing; nobody is passed by."""

from __future__ import annotations

from typing import TypeAlias

import pytest
from dictfs import DictService
from hypothesis import given
from hypothesis import strategies as st

import agentfs.guards.confined
import agentfs.guards.fair
import agentfs.tree.grafts  # noqa: F401  (with the others it holds every view of a handle)
from agentfs.checked import Checked
from agentfs.grants import parse
from agentfs.guards import Granted, Lease
from agentfs.guards.fair import Bucket
from agentfs.providers.clock import ManualClock
from agentfs.service import FileHandle
from agentfs.tree import At, Data, Tree
from agentfs.types import OPERATOR, Mode, Path
from agentfs.views import NamedHandle, ReadOnly, ViewHandle

V = Path("v")
LIMIT = 20
MODES = st.sampled_from([Mode.WRITE, Mode.READ | Mode.WRITE, Mode.WRITE | Mode.APPEND, Mode.WRITE | Mode.TRUNCATE])
Step: TypeAlias = tuple[str, bytes, int]
STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(st.sampled_from(["write", "truncate", "flush", "close"]), st.binary(max_size=12), st.integers(0, 24)),
    max_size=12,
)


class Value:
    """A file with one value."""

    def __init__(self, value: bytes) -> None:
        self.stored = [value]
        self.tree = Checked(Tree(Data(name="v", read=self.read, write=self.write, limit=LIMIT)))

    async def read(self, at: At) -> bytes:
        return self.stored[-1]

    async def write(self, at: At, value: bytes) -> None:
        self.stored.append(value)


async def said(handle: FileHandle, step: Step) -> object:
    """What *step* gives, its error included."""
    kind, data, offset = step
    try:
        if kind == "write":
            return await handle.write(data, offset)
        if kind == "truncate":
            await handle.truncate(offset)
        elif kind == "flush":
            await handle.flush()
        else:
            await handle.aclose()
    except OSError as exc:
        return exc.errno
    return None


@given(st.binary(max_size=LIMIT), MODES, STEPS)
async def test_it_does_what_write_does_or_nothing(value: bytes, mode: Mode, steps: list[Step]) -> None:
    one, other = Value(value), Value(value)
    waits, rushes = await one.tree.open(V, mode), await other.tree.open(V, mode)
    for kind, data, offset in steps:
        expected = await said(waits, (kind, data, offset))
        if kind == "write" and rushes.write_nowait(data, offset):
            assert expected == len(data)
        else:
            assert await said(rushes, (kind, data, offset)) == expected
        assert one.stored == other.stored
    await waits.aclose()
    await rushes.aclose()
    assert one.stored == other.stored


async def test_a_small_write_is_taken() -> None:
    value = Value(b"")
    async with await value.tree.open(V, Mode.WRITE) as handle:
        assert handle.write_nowait(b"a", 0) and handle.write_nowait(b"b", 1)
    assert value.stored == [b"", b"ab"]
    assert not handle.write_nowait(b"c", 2), "it is closed"
    async with await value.tree.open(V, Mode.READ) as handle:
        assert not handle.write_nowait(b"c", 0)
    async with await Checked(DictService({"v": b""})).open(V, Mode.WRITE) as handle:
        assert not handle.write_nowait(b"c", 0), "its service says nothing of it"


async def test_a_mount_that_says_more_is_asked() -> None:
    value, lease, clock = Value(b""), Lease(), ManualClock()
    free, limited = Granted(value.tree, parse([]), lease), Granted(value.tree, parse([]), lease, Bucket(1, clock))
    async with await free.open(V, Mode.WRITE) as handle, await limited.open(V, Mode.WRITE) as counted:
        assert handle.write_nowait(b"a", 0)
        assert not counted.write_nowait(b"b", 0)
        await lease.revoke()
        assert not handle.write_nowait(b"b", 0)
    assert value.stored == [b""]
    async with await ReadOnly(value.tree.attach(OPERATOR)).open(V, Mode.READ) as handle:
        assert not handle.write_nowait(b"b", 0)


def below(kind: type[ViewHandle]) -> set[type[ViewHandle]]:
    """Every class that is made from *kind*."""
    return {kind}.union(*(below(each) for each in kind.__subclasses__()))


@pytest.mark.parametrize("kind", sorted(below(ViewHandle) - {NamedHandle}, key=str))
def test_a_view_that_does_more_at_a_write_says_so(kind: type[ViewHandle]) -> None:
    assert ("write" in vars(kind)) <= ("write_nowait" in vars(kind))  # what is named else has no error to name
