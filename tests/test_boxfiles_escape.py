"""What hostile code puts into its directory: nothing outside is read, listed or changed, and nothing blocks."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as FsPath

import anyio
import pytest
from boxfiles import OWNER, errno_of, files, get, put

from agentfs.providers.containers.files import HostFiles
from agentfs.types import ROOT, Mode, Path, Want

SECRET = b"secret\n"


@pytest.fixture
def outside(tmp_path: FsPath) -> FsPath:
    """A directory that must stay as it is, beside the workdir ``in``."""
    top = tmp_path / "out"
    top.mkdir()
    (top / "secret").write_bytes(SECRET)
    (tmp_path / "in").mkdir()
    return top


@pytest.fixture
def inside(outside: FsPath) -> FsPath:
    return outside.parent / "in"


def names_in(top: FsPath) -> list[str]:
    return sorted(at.name for at in top.iterdir())


def links(inside: FsPath, outside: FsPath) -> list[str]:
    """Every way out that a link can be; each leads to the directory outside."""
    ways = {
        "absolute": str(outside), "up": "../out", "far": f"../../../../../../..{outside}", "proc": "/proc/self/cwd",
        "root": "/proc/self/root", "fd": "/proc/self/fd", "back": "../in/../out", "chain": "absolute", "host": "/",
        "itself": str(inside), "dot-up": "./sub/../../out",
    }  # fmt: skip
    (inside / "sub").mkdir()
    for name, target in ways.items():
        (inside / name).symlink_to(target)
    (inside / "sub/up").symlink_to("../../out")
    return [*ways, "sub/up"]


async def test_links_that_leave(inside: FsPath, outside: FsPath) -> None:
    service = files(inside)
    for way in links(inside, outside):
        shown = await service.stat(Path(way))
        assert (shown.mode, shown.size) == (stat.S_IFREG, 0)
        for path in (f"{way}/secret", f"{way}/../out/secret"):
            for call in (
                service.open(Path(path), Mode.READ), service.open(Path(path), Mode.WRITE | Mode.TRUNCATE),
                service.create(Path(f"{path}2"), Mode.WRITE), service.mkdir(Path(f"{path}3")), service.stat(Path(path)),
                service.list(Path(way)), service.remove(Path(path)), service.rename(Path(path), Path("mine")),
                service.rename(Path("sub"), Path(path)), service.create(Path(path), Mode.WRITE),
            ):  # fmt: skip
                assert await errno_of(call) == errno.EACCES, (way, path)
        assert await errno_of(service.open(Path(way), Mode.READ)) == errno.EACCES
        assert await errno_of(service.create(Path(way), Mode.WRITE)) == errno.EACCES
    assert names_in(outside) == ["secret"]
    assert (outside / "secret").read_bytes() == SECRET
    listed = {st.name: st.mode for st in await service.list(ROOT)}
    assert {name for name, mode in listed.items() if mode == stat.S_IFREG} == listed.keys() - {"sub"}
    for way in ("absolute", "up", "sub/up"):
        await service.remove(Path(way))
        assert not (inside / way).is_symlink()
    assert (outside / "secret").read_bytes() == SECRET


async def test_links_that_stay(inside: FsPath) -> None:
    service = files(inside)
    await service.mkdir(Path("real"))
    await put(service, "real/f", b"x")
    for name, target in {
        "dir": "real",
        "file": "real/f",
        "way": "real/../real/f",
        "real/top": "..",
        "twice": "file",
    }.items():
        (inside / name).symlink_to(target)
    assert [await get(service, path) for path in ("file", "way", "dir/f", "twice")] == [b"x"] * 4
    await put(service, "file", b"y")
    await put(service, "dir/g", b"z")
    assert names_in(inside / "real") == ["f", "g", "top"]
    assert (inside / "real/f").read_bytes() == b"y"
    assert (await service.stat(Path("file"))).qid.path == (await service.stat(Path("real/f"))).qid.path
    await service.rename(Path("dir/g"), Path("dir/h"))
    await service.remove(Path("dir/h"))
    assert await errno_of(service.create(Path("file"), Mode.WRITE, want=Want(exclusive=True))) == errno.EEXIST
    await service.remove(Path("dir"))
    assert (inside / "real/f").exists()


async def test_a_walk_through_links_ends_and_spares_what_is_behind(inside: FsPath) -> None:
    """With two links to the root in it, a tree without this rule would have 2 ** 64 directories."""
    service = files(inside)
    (inside / "a").symlink_to(".")
    (inside / "b").symlink_to(".")
    (inside / "sub").mkdir()
    (inside / "sub/f").write_text("x")
    (inside / "sub/in").symlink_to("f")
    seen, left = 0, [Path("")]
    while left:
        here = left.pop()
        for st in await service.list(here):
            path = Path(f"{here}/{st.name}".lstrip("/"))
            seen += 1
            left += [path] if st.is_dir else []
            is_behind_link = path.startswith(("a", "b"))
            assert bool(st.mode & stat.S_ISVTX) is (st.is_dir and is_behind_link), path
    assert seen == 3 * 5
    assert [await get(service, path) for path in ("a/sub/f", "a/sub/in")] == [b"x", b"x"]
    for way in ("a/b/sub", "a/a/a/sub/f", "b/a/sub/in"):
        assert await errno_of(service.open(Path(way), Mode.READ)) == errno.ELOOP
        assert await errno_of(service.stat(Path(way))) == errno.ELOOP
    assert (await service.stat(Path("a/b"))).mode == stat.S_IFREG


async def test_links_to_nothing_and_round(inside: FsPath) -> None:
    service = files(inside)
    (inside / "dangling").symlink_to("nothing")
    (inside / "round").symlink_to("round")
    (inside / "to").symlink_to("fro")
    (inside / "fro").symlink_to("to")
    assert [(st.name, st.mode) for st in await service.list(ROOT)] == [
        (name, stat.S_IFREG) for name in ("dangling", "fro", "round", "to")
    ]
    assert await errno_of(service.open(Path("dangling"), Mode.READ)) == errno.ENOENT
    assert await errno_of(service.create(Path("dangling"), Mode.WRITE)) == errno.ENOENT
    assert await errno_of(service.open(Path("round"), Mode.READ)) == errno.ELOOP
    assert await errno_of(service.stat(Path("to/x"))) == errno.ELOOP
    for name in ("dangling", "fro", "round", "to"):
        await service.remove(Path(name))
    assert list(await service.list(ROOT)) == []


async def test_what_is_no_file(inside: FsPath) -> None:
    """A FIFO has no other end: an open that waited for one would wait for ever."""
    service = files(inside)
    os.mkfifo(inside / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(inside / "socket"))
    names = ["fifo", "socket"]
    if os.geteuid() == 0:
        os.mknod(inside / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        names.insert(0, "device")
    (inside / "link").symlink_to("fifo")
    with anyio.fail_after(5):
        for name in [*names, "link"]:
            for mode in (Mode.READ, Mode.WRITE, Mode.READ | Mode.WRITE, Mode.WRITE | Mode.TRUNCATE):
                assert await errno_of(service.open(Path(name), mode)) == errno.EACCES
                assert await errno_of(service.create(Path(name), mode)) == errno.EACCES
            assert (await service.stat(Path(name))).mode == stat.S_IFREG
        assert [st.name for st in await service.list(ROOT)] == sorted([*names, "link"])
        for name in [*names, "link"]:
            await service.remove(Path(name))


async def test_another_file_system_is_not_entered(inside: FsPath) -> None:
    """Only root can mount one; whoever could would put it where hostile code has its files."""
    if os.geteuid() == 0:
        mounted = anyio.run_process
        (inside / "m").mkdir()
        await mounted(["mount", "-t", "tmpfs", "boxfiles", str(inside / "m")])
        try:
            (inside / "m/f").write_text("x")
            assert await errno_of(files(inside).open(Path("m/f"), Mode.READ)) == errno.EACCES
            assert await errno_of(files(inside).list(Path("m"))) == errno.EACCES
        finally:
            await mounted(["umount", "-l", str(inside / "m")])


@contextmanager
def flipping(inside: FsPath, outside: FsPath) -> Iterator[None]:
    """While the body runs, ``d`` is by turns a directory, a link to the one outside, and nothing."""
    done = threading.Event()
    (inside / "dir").mkdir()
    for name in ("secret", "f"):
        (inside / "dir" / name).write_text("harmless")
    (inside / "link").symlink_to(outside)

    def flip() -> None:
        while not done.is_set():
            for name in ("dir", "link"):
                (inside / name).rename(inside / "d")
                (inside / "d").rename(inside / name)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.timeout(240)
async def test_a_link_swapped_in_during_a_walk(inside: FsPath, outside: FsPath) -> None:
    service, read = HostFiles(inside, OWNER), 0
    with flipping(inside, outside):
        for _ in range(1000):
            try:
                assert await get(service, "d/secret") == b"harmless"
                read += 1
            except OSError as exc:
                assert exc.errno in (errno.ENOENT, errno.EACCES), exc
            for call in (
                service.create(Path("d/made"), Mode.WRITE, want=Want(exclusive=True)), service.mkdir(Path("d/made2")),
                service.rename(Path("d/f"), Path("d/f2")), service.rename(Path("d/f2"), Path("d/f")),
            ):  # fmt: skip
                try:
                    handle = await call
                except OSError as exc:
                    assert exc.errno in (errno.ENOENT, errno.EACCES, errno.EEXIST, errno.ENOTDIR), exc
                else:
                    if handle is not None:
                        await handle.aclose()
            try:
                assert {st.name for st in await service.list(Path("d"))} <= {"secret", "f", "f2", "made", "made2"}
            except OSError as exc:
                assert exc.errno in (errno.ENOENT, errno.EACCES, errno.ENOTDIR), exc
            await errno_of(service.remove(Path("d/secret-not")))
        assert names_in(outside) == ["secret"]
    assert read > 0
    assert (outside / "secret").read_bytes() == SECRET
