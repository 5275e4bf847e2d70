"""`HostFiles` over real directories: the file suite, listings of all sizes, odd names, owners, handles."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path as FsPath

import anyio
import pytest
from boxfiles import OWNER, errno_of, files, get, put

from agentfs.checked import Checked
from agentfs.providers.containers.files import HostFiles
from agentfs.providers.containers.names import Names
from agentfs.service import FileService
from agentfs.types import OPERATOR, ROOT, Kind, Mode, Path, Stat, Want
from conformance.bench import Bench
from conformance.drivers import ALL
from conformance.suite import violations

POSIX = {"names_have_a_form", "a_handle_outlives_its_file"}  # files/ takes any name; a removed file lives while open


async def everything(service: FileService, path: str = "", limit: int = 1000) -> list[Stat]:
    found: list[Stat] = []
    while page := await service.list(Path(path), found[-1].name if found else "", limit):
        found += page
    return found


async def test_the_file_suite(tmp_path: FsPath) -> None:
    for rules in (("READ", "WRITE"), ("WRITE", "READ")):
        top = tmp_path / rules[0]
        (top / "sub/deep").mkdir(parents=True)
        (top / "sub/a").write_text("hello\n")
        service = Checked(files(top, file_bytes=1 << 20)).attach(OPERATOR)
        found = await violations(Bench(service, ALL), rules)
        assert {text.partition(" ")[0] for text in found} <= POSIX, found


async def test_a_file_from_birth_to_removal(tmp_path: FsPath) -> None:
    service = files(tmp_path)
    async with await service.create(Path("a"), Mode.READ | Mode.WRITE, want=Want(exclusive=True)) as handle:
        assert await handle.write(b"0123456789", 0) == 10
        assert await handle.write(b"xx", 4) == 2
        assert await handle.write(b"!", 12) == 1
        assert (await handle.read(100, 0), await handle.read(2, 3), handle.size) == (b"0123xx6789\0\0!", b"3x", 13)
        await handle.truncate(2)
        assert (tmp_path / "a").read_bytes() == b"01"
    async with await service.open(Path("a"), Mode.WRITE | Mode.APPEND) as handle:
        await handle.write(b"+", 0)
        assert await errno_of(handle.read(1, 0)) == errno.EBADF
    assert await get(service, "a") == b"01+"
    assert await errno_of(service.create(Path("a"), Mode.WRITE, want=Want(exclusive=True))) == errno.EEXIST
    await (await service.create(Path("a"), Mode.WRITE)).aclose()
    assert await get(service, "a") == b"01+"
    await service.mkdir(Path("d"))
    for path, code in (("d", errno.EEXIST), ("a/x", errno.ENOTDIR), ("no/x", errno.ENOENT), ("", errno.EEXIST)):
        assert await errno_of(service.mkdir(Path(path))) == code
        assert await errno_of(service.create(Path(path), Mode.WRITE)) == code
    await service.rename(Path("a"), Path("d/b"))
    assert await errno_of(service.remove(Path("d"))) == errno.ENOTEMPTY
    await put(service, "c", b"")
    assert await errno_of(service.rename(Path("c"), Path("d/b"), want=Want(exclusive=True))) == errno.EEXIST
    assert await errno_of(service.rename(Path("d"), Path("d/in"))) == errno.EINVAL
    await service.rename(Path("c"), Path("d/b"))
    await service.remove(Path("d/b"))
    await service.remove(Path("d"))
    assert list(await service.list(ROOT)) == []
    for call in (service.remove(ROOT), service.rename(ROOT, Path("x")), service.rename(Path("x"), ROOT)):
        assert await errno_of(call) == errno.EBUSY


async def test_what_is_shown(tmp_path: FsPath) -> None:
    service = files(tmp_path)
    await put(service, "f", b"abc")
    await service.mkdir(Path("d"))
    (tmp_path / "run").write_text("#!/bin/sh\n")
    (tmp_path / "run").chmod(0o4755)
    os.utime(tmp_path / "run", ns=(0, -5_000_000_000))
    shown = {st.name: st for st in await service.list(ROOT)}
    assert list(shown) == ["d", "f", "run"]
    assert shown["run"].mode == stat.S_IFREG | 0o755
    assert shown["run"].mtime_ns == 0
    assert (shown["f"].mode, shown["f"].size, shown["f"].kind) == (stat.S_IFREG | 0o644, 3, Kind.DATA)
    assert (shown["d"].mode, shown["d"].kind) == (stat.S_IFDIR | 0o755, Kind.DIR)
    about = (tmp_path / "f").stat()
    assert (about.st_uid, about.st_gid, (tmp_path / "d").stat().st_uid) == (OWNER.uid, OWNER.gid, OWNER.uid)
    assert shown["f"].mtime_ns == about.st_mtime_ns
    for name, st in shown.items():
        assert await service.stat(Path(name)) == st
    assert (await service.stat(ROOT)).is_dir
    assert await errno_of(service.list(Path("f"))) == errno.ENOTDIR
    assert await errno_of(service.open(Path("d"), Mode.READ)) == errno.EISDIR


async def test_a_version_is_matched(tmp_path: FsPath) -> None:
    service = files(tmp_path)
    await put(service, "f", b"abc")
    old = Want(match=(await service.stat(Path("f"))).qid.version)
    os.utime(tmp_path / "f", ns=(1, 1))
    assert await errno_of(service.open(Path("f"), Mode.WRITE, want=old)) == errno.ESTALE
    assert await errno_of(service.remove(Path("f"), want=old)) == errno.ESTALE
    assert await errno_of(service.rename(Path("f"), Path("g"), want=old)) == errno.ESTALE
    await service.remove(Path("f"), want=Want(match=(await service.stat(Path("f"))).qid.version))


async def test_truncation_waits_for_the_first_operation(tmp_path: FsPath) -> None:
    service, at = files(tmp_path), tmp_path / "f"
    at.write_text("abc")
    handle = await service.open(Path("f"), Mode.WRITE | Mode.TRUNCATE)
    handle.discard()
    await handle.aclose()
    assert at.read_text() == "abc"
    async with await service.open(Path("f"), Mode.WRITE | Mode.TRUNCATE) as handle:
        assert (at.read_text(), handle.size) == ("abc", 0)
        await handle.write(b"x", 0)
        assert at.read_text() == "x"
    await (await service.open(Path("f"), Mode.WRITE | Mode.TRUNCATE)).aclose()
    assert at.read_text() == ""


async def test_sizes_have_limits(tmp_path: FsPath) -> None:
    service = files(tmp_path, file_bytes=1000)
    async with await service.create(Path("f"), Mode.READ | Mode.WRITE) as handle:
        assert await errno_of(handle.write(b"x", 1000)) == errno.EFBIG
        assert await errno_of(handle.truncate(1001)) == errno.EFBIG
        assert await handle.write(bytes(1000), 0) == 1000
        assert await handle.read(10, 1 << 70) == b""
    async with await service.open(Path("f"), Mode.WRITE | Mode.APPEND) as handle:
        assert await errno_of(handle.write(b"x", 0)) == errno.EFBIG
    async with await files(tmp_path).create(Path("g"), Mode.WRITE) as handle:
        assert await errno_of(handle.write(b"x", 1 << 63)) == errno.EFBIG
        assert await errno_of(handle.truncate(1 << 70)) == errno.EFBIG


async def test_big_pieces_and_a_close_meanwhile(tmp_path: FsPath) -> None:
    service, data = files(tmp_path), os.urandom(3 << 20)
    await put(service, "big", data)
    handle = await service.open(Path("big"), Mode.READ)
    assert len(await handle.read(1 << 40, 0)) == len(data)
    got: list[bytes] = []
    begun = anyio.Event()

    async def read() -> None:
        begun.set()
        got.append(await handle.read(len(data), 0))

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await begun.wait()
        await handle.aclose()
    assert got == [data]
    assert await errno_of(handle.read(1, 0)) == errno.EBADF
    assert handle.size is None


def descriptors() -> int:
    return len(list(FsPath("/proc/self/fd").iterdir()))


async def test_no_descriptor_is_left(tmp_path: FsPath) -> None:
    service = files(tmp_path)
    await put(service, "d", b"")
    (tmp_path / "out").symlink_to("/etc")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    before = descriptors()
    for path in ("d", "out/passwd", "loop", "fifo", "no", "d/x", "loop/x"):
        for call in (
            service.stat(Path(path)), service.list(Path(path)), service.remove(Path(f"{path}/x")),
            service.open(Path(f"{path}/x"), Mode.READ), service.create(Path(f"{path}/x"), Mode.READ),
            service.rename(Path(f"{path}/x"), Path("y")),
        ):  # fmt: skip
            await errno_of(call)
    assert descriptors() == before
    assert [st.name for st in await service.list(ROOT)] == ["d", "fifo", "loop", "out"]


async def test_a_root_that_is_gone(tmp_path: FsPath) -> None:
    top = tmp_path / "top"
    service = HostFiles(lambda: top, OWNER)
    for make in (None, lambda: top.write_text("a file"), lambda: top.symlink_to(tmp_path)):
        if make is not None:
            make()
        for call in (
            service.stat(ROOT), service.list(ROOT), service.open(Path("a"), Mode.READ), service.remove(Path("a")),
            service.create(Path("a"), Mode.WRITE), service.mkdir(Path("a")), service.rename(Path("a"), Path("b")),
        ):  # fmt: skip
            assert await errno_of(call) == errno.ENOENT
        top.unlink(missing_ok=True)
    top.mkdir()
    await put(service, "a", b"back")
    assert await get(service, "a") == b"back"


NAMES = [".git", "a@follow", "x.1", "x~", "new\nline", "tab\t", "e\u0301", "\U0001f600", "-rf", "*", "%2e", " ", "\x7f"]


async def test_odd_names(tmp_path: FsPath) -> None:
    service = Checked(files(tmp_path)).attach(OPERATOR)
    for name in NAMES:
        await put(service, name, name.encode())
    (tmp_path / os.fsdecode(b"not\xffutf8")).write_text("x")
    await put(service, "n" * 255, b"")
    assert [st.name for st in await everything(service, limit=2)] == sorted([*NAMES, "n" * 255])
    for name in NAMES:
        assert await get(service, name) == name.encode()
        await service.remove(Path(name))
    assert await errno_of(service.create(Path("n" * 256), Mode.WRITE)) == errno.ENAMETOOLONG
    for path in ("..", "a/../b", "a/..", ".", "a\0b"):
        for tree in (service, *([] if path == "a/../b" else [files(tmp_path)])):
            assert await errno_of(tree.create(Path(path), Mode.WRITE)) == errno.EINVAL, path
            assert await errno_of(tree.remove(Path(path))) == errno.EINVAL, path
            assert await errno_of(tree.rename(Path(path), Path("z"))) == errno.EINVAL, path


async def test_hundreds_of_levels(tmp_path: FsPath) -> None:
    service, path = files(tmp_path), Path("d")
    for _ in range(500):
        await service.mkdir(path)
        path = Path(f"{path}/d")
    await put(service, path, b"deep")
    assert await get(service, path) == b"deep"
    assert [st.name for st in await service.list(Path(path[:-2]))] == ["d"]
    assert await errno_of(service.stat(Path("/".join(["d"] * 3000)))) == errno.ENAMETOOLONG
    (tmp_path / "link").symlink_to("d")
    assert await get(service, f"link{path[1:]}") == b"deep"


class Reads(Names):
    """`Names` that counts how often a whole directory is read."""

    reads = 0

    def _read(self, fd: int) -> Sequence[str] | None:
        self.reads += 1
        return super()._read(fd)


@pytest.mark.timeout(240)
async def test_a_hundred_thousand_files(tmp_path: FsPath) -> None:
    for n in range(100_000):
        os.close(os.open(tmp_path / f"{n:06}", os.O_CREAT | os.O_WRONLY))
    names = Reads()
    service = HostFiles(tmp_path, OWNER, names=names)
    assert [st.name for st in await everything(service)] == [f"{n:06}" for n in range(100_000)]
    assert names.reads == 1


async def test_later_pages_see_what_changed(tmp_path: FsPath) -> None:
    for name in "abcdefgh":
        (tmp_path / name).touch()
    names = Names(most=100)
    service = HostFiles(tmp_path, OWNER, names=names)
    assert [st.name for st in await service.list(ROOT, limit=3)] == ["a", "b", "c"]
    (tmp_path / "d").unlink()
    os.utime(tmp_path, ns=(1, 1))
    assert [st.name for st in await service.list(ROOT, "c", 2)] == ["e", "f"]
    assert [st.name for st in await service.list(ROOT, "f", 0)] == []
    assert [st.name for st in await service.list(ROOT, "f", 100)] == ["g", "h"]
    few = HostFiles(tmp_path, OWNER, names=Names(most=3))  # more than are kept: each page by itself
    assert [st.name for st in await everything(few, limit=2)] == list("abcefgh")
