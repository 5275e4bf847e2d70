"""How much may lie in a workdir in all, also by what is written through its files while nothing runs."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from pathlib import Path as FsPath

import pytest
import trio
from boxes import collected, opened
from boxfiles import errno_of, put

from agentfs.containers.documents import Limits
from agentfs.containers.port import Command, Spec
from agentfs.providers.containers.bubblewrap import Bubblewrap
from agentfs.providers.containers.workdir import Workdir
from agentfs.service import FileService
from agentfs.types import Mode, Path

MIB = 1 << 20
LIMITS = Limits(max_disk_mb=8, max_files=50)
SPEC = Spec("one", "alice", limits=LIMITS)


@pytest.fixture
async def box(tmp_path: FsPath) -> AsyncIterator[Bubblewrap]:
    async with opened(tmp_path) as made:
        await made.make(SPEC)
        yield made


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time a workdir was measured."""
    seen, used = list[str](), Workdir.used

    def counted(self: Workdir, limits: Limits) -> tuple[int, int]:
        seen.append(self.path.name)
        return used(self, limits)

    monkeypatch.setattr(Workdir, "used", counted)
    return seen


def files(box: Bubblewrap) -> FileService:
    """As every operation of a face has them: anew."""
    return box.files("one", LIMITS)


async def filled(box: Bubblewrap) -> int:
    """How many files of a MiB fit."""
    for number in range(100):
        if await errno_of(put(files(box), f"f{number}", b"x" * MIB)) == errno.ENOSPC:
            await files(box).remove(Path(f"f{number}"))
            return number
    raise AssertionError


async def test_all_files_together_have_a_bound(box: Bubblewrap, walks: list[str]) -> None:
    assert await filled(box) == 8
    assert len(walks) <= 3
    for _ in range(5):
        assert await errno_of(put(files(box), "f0", b"y" * 2 * MIB)) == errno.ENOSPC  # what it was is cut
        await put(files(box), "f0", b"x" * MIB)
    await files(box).remove(Path("f3"))
    await put(files(box), "g", b"x" * MIB)
    assert await errno_of(put(files(box), "h", b"x" * MIB)) == errno.ENOSPC
    async with await files(box).open(Path("f1"), Mode.WRITE) as handle:
        assert await handle.write(b"z" * MIB, 0) == MIB  # nothing more


async def test_a_full_disk_is_measured_once(box: Bubblewrap, walks: list[str]) -> None:
    assert await filled(box) == 8
    async with await files(box).create(Path("f0"), Mode.WRITE | Mode.APPEND) as handle:
        assert await errno_of(handle.write(b"x" * MIB, 0)) == errno.ENOSPC
        walks.clear()
        for _ in range(100):
            assert await errno_of(handle.write(b"x", 0)) == errno.ENOSPC
    assert not walks


async def test_writes_at_the_same_time_are_counted_together(box: Bubblewrap) -> None:
    codes = list[int]()

    async def one(name: str) -> None:
        codes.append(await errno_of(put(files(box), name, b"x" * MIB)))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(one, f"f{number}")
    assert sorted(codes) == [0] * 8 + [errno.ENOSPC] * 12


async def test_holes_are_counted_when_they_are_filled(box: Bubblewrap) -> None:
    for name in ("a", "b"):
        async with await files(box).create(Path(name), Mode.WRITE) as handle:
            await handle.truncate(8 * MIB)
    written = 0
    for name in ("a", "b"):
        async with await files(box).open(Path(name), Mode.WRITE) as handle:
            for number in range(64):
                if await errno_of(handle.write(b"x" * (MIB // 8), number * MIB // 8)):
                    break
                written += MIB // 8
    assert 7 * MIB < written <= 8 * MIB


async def test_a_removed_file_has_its_room_until_it_is_closed(box: Bubblewrap) -> None:
    handle = await files(box).create(Path("a"), Mode.WRITE)
    await handle.write(b"x" * 6 * MIB, 0)
    await files(box).remove(Path("a"))
    assert await errno_of(put(files(box), "b", b"x" * 4 * MIB)) == errno.ENOSPC
    await handle.aclose()
    await put(files(box), "b", b"x" * 4 * MIB)


async def test_so_has_the_number_of_files(box: Bubblewrap) -> None:
    for number in range(25):
        await files(box).mkdir(Path(f"d{number}"))
        await put(files(box), f"f{number}", b"")
    assert await errno_of(files(box).mkdir(Path("d"))) == errno.ENOSPC
    assert await errno_of(put(files(box), "f", b"")) == errno.ENOSPC
    await put(files(box), "f0", b"x")  # is there
    await files(box).rename(Path("f1"), Path("f2"))
    await put(files(box), "f", b"")


async def test_what_commands_leave_is_counted(box: Bubblewrap, walks: list[str]) -> None:
    await put(files(box), "a", b"x" * MIB)
    for line, code in (("head -c 7M /dev/zero > b", errno.ENOSPC), ("rm b", 0)):
        await collected(box, SPEC, Command("c", ["/bin/sh", "-c", line]))
        assert await errno_of(put(files(box), "c", b"x" * MIB)) == code


async def test_what_is_too_deep_to_be_measured_is_full(box: Bubblewrap) -> None:
    name = "d" * 250
    deep = f"for i in $(seq 20); do mkdir {name} && cd {name}; done"
    await collected(box, SPEC, Command("c", ["/bin/sh", "-c", deep]))
    assert await errno_of(put(files(box), "a", b"x")) == errno.ENOSPC
    await collected(box, SPEC, Command("c", ["rm", "-rf", name]))
    await put(files(box), "a", b"x")
