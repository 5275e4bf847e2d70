"""`Graft`: a name of a tree below which another service is: paths, errors, identity, names, money."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path as FsPath

import pytest
from boxfiles import OWNER, errno_of, files, get, put, tree

from agentfs.checked import Checked
from agentfs.errors import error
from agentfs.providers.clock import ManualClock
from agentfs.providers.containers.files import HostFiles
from agentfs.record import RingLog
from agentfs.service import FileService
from agentfs.tree import At, Dir, Entry, Graft, Stream, Tree
from agentfs.types import OPERATOR, Mode, Path, Principal, Want
from conformance.bench import Bench
from conformance.drivers import ALL
from conformance.suite import violations


@pytest.fixture
def boxed(tmp_path: FsPath) -> FileService:
    """``s/files`` and ``s/other``, each over a directory of its own."""
    for name in ("files", "other"):
        (tmp_path / name / "sub").mkdir(parents=True)
    return Checked(tree(files=files(tmp_path / "files"), other=files(tmp_path / "other"))).attach(OPERATOR)


async def test_the_file_suite(tmp_path: FsPath) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a").write_text("x")
    service = Checked(tree(files=files(tmp_path, file_bytes=1 << 20))).attach(OPERATOR)
    found = await violations(Bench(service, ALL))
    assert {text.partition(" ")[0] for text in found} <= {"names_have_a_form", "a_handle_outlives_its_file"}, found


async def test_everything_below_is_the_services(boxed: FileService, tmp_path: FsPath) -> None:
    await put(boxed, "s/files/sub/f", b"abc")
    await boxed.mkdir(Path("s/files/new"))
    await boxed.rename(Path("s/files/sub/f"), Path("s/files/new/g"))
    assert (tmp_path / "files/new/g").read_bytes() == b"abc"
    assert await get(boxed, "s/files/new/g") == b"abc"
    assert [st.name for st in await boxed.list(Path("s"))] == ["files", "other", "status"]
    assert [st.name for st in await boxed.list(Path("s/files"))] == ["new", "sub"]
    assert [st.name for st in await boxed.list(Path("s/files"), "new", 1)] == ["sub"]
    await boxed.remove(Path("s/files/new/g"))
    await boxed.remove(Path("s/files/new"))
    assert await errno_of(boxed.stat(Path("s/files/new"))) == errno.ENOENT


async def test_the_graft_itself_is_fixed(boxed: FileService) -> None:
    here, there = Path("s/files"), Path("s/files/f")
    await put(boxed, there, b"")
    for call, code in (
        (boxed.open(here, Mode.READ), errno.EISDIR), (boxed.remove(here), errno.EACCES),
        (boxed.create(here, Mode.WRITE), errno.EISDIR), (boxed.mkdir(here), errno.EEXIST),
        (boxed.create(here, Mode.WRITE, want=Want(exclusive=True)), errno.EEXIST),
        (boxed.rename(here, Path("s/x")), errno.EACCES),
        (boxed.rename(there, here), errno.EXDEV), (boxed.rename(there, Path("s/other/f")), errno.EXDEV),
        (boxed.rename(there, Path("s/status")), errno.EXDEV), (boxed.rename(Path("s/status"), there), errno.EXDEV),
        (boxed.create(Path("s/new"), Mode.WRITE), errno.EACCES),
    ):  # fmt: skip
        assert await errno_of(call) == code


async def test_errors_name_the_trees_paths(boxed: FileService) -> None:
    await put(boxed, "s/files/f", b"")
    await put(boxed, "s/files/g", b"")
    handle = await boxed.open(Path("s/files/f"), Mode.READ | Mode.WRITE)
    for call, path in (
        (boxed.stat(Path("s/files/no")), "s/files/no"), (boxed.list(Path("s/files/f")), "s/files/f"),
        (boxed.open(Path("s/files/no/x"), Mode.READ), "s/files/no/x"), (boxed.mkdir(Path("s/files/f")), "s/files/f"),
        (boxed.remove(Path("s/files/no")), "s/files/no"), (handle.write(b"x", 1 << 63), "s/files/f"),
        (boxed.rename(Path("s/files/no"), Path("s/files/x")), "s/files/no"),
        (boxed.rename(Path("s/files/f"), Path("s/files/g"), want=Want(exclusive=True)), "s/files/g"),
    ):  # fmt: skip
        with pytest.raises(OSError) as caught:
            await call
        assert caught.value.filename == path
    await handle.aclose()


async def test_numbers_are_its_own(boxed: FileService, tmp_path: FsPath) -> None:
    """The same inode below two grafts is two files; nothing has the number of a file of the tree."""
    await put(boxed, "s/files/f", b"")
    (tmp_path / "other/f").hardlink_to(tmp_path / "files/f")
    paths = ["", "s", "s/status", "s/files", "s/other", "s/files/f", "s/other/f", "s/files/sub", "s/other/sub"]
    stats = [await boxed.stat(Path(path)) for path in paths]
    assert len({st.qid.path for st in stats}) == len(paths)
    assert all(0 < st.qid.path < 1 << 63 for st in stats)
    assert {st.name: st for st in await boxed.list(Path("s"))}["files"].qid.path == stats[3].qid.path
    assert list(await boxed.list(Path("s/files"))) == [stats[5], stats[7]]
    await boxed.rename(Path("s/files/f"), Path("s/files/sub/g"))
    assert (await boxed.stat(Path("s/files/sub/g"))).qid.path == stats[5].qid.path


async def test_below_a_graft_there_are_no_twins(tmp_path: FsPath) -> None:
    log = RingLog(ManualClock(), 1000)

    async def give(at: At) -> FileService:
        return files(tmp_path)

    async def the_log(at: At) -> RingLog:
        return log

    service = Tree(Stream(name="log", log=the_log), Graft(name="files", service=give))
    (tmp_path / "log").write_text("x")
    assert (await service.stat(Path("log@follow"))).name == "log@follow"
    for name in ("log@follow", "log@0", "log.1"):
        assert await errno_of(service.stat(Path(f"files/{name}"))) == errno.ENOENT
        await put(service, f"files/{name}", name.encode())
        assert await get(service, f"files/{name}") == name.encode()


async def test_each_key_has_its_own_for_whoever_asks(tmp_path: FsPath) -> None:
    asked: list[tuple[str, Principal]] = []

    class Noted(HostFiles):
        def attach(self, principal: Principal) -> HostFiles:
            asked.append((str(self._root).rpartition("/")[2], principal))
            return self

    async def give(at: At) -> FileService:
        if at["s"] == "away":
            raise error(errno.ENOTCONN, detail="no engine")
        return Noted(tmp_path / at["s"], OWNER)

    async def has(at: At, key: str) -> bool:
        return key in ("one", "two", "gone", "away")

    async def keys(at: At, after: str, limit: int) -> list[Entry]:
        return [Entry("one")]

    session = Dir(name="{s}", entries=(Graft(name="files", service=give),))
    agent = Principal("agent", "a1")
    service = Tree(Dir(name="sessions", each=session, has=has, keys=keys)).attach(agent)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        await put(service, f"sessions/{name}/files/f", name.encode())
    assert asked == [("one", agent), ("two", agent)]
    assert (tmp_path / "two/f").read_text() == "two"
    assert await errno_of(service.rename(Path("sessions/one/files/f"), Path("sessions/two/files/g"))) == errno.EXDEV
    assert await errno_of(service.stat(Path("sessions/three/files/f"))) == errno.ENOENT
    assert list(await service.list(Path("sessions/gone"))) == []
    assert await errno_of(service.stat(Path("sessions/away/files"))) == errno.ENOTCONN
    assert [st.name for st in await service.list(Path("sessions/away"))] == ["files"]


class Spent:
    """A purse that counts, and is empty after two."""

    def __init__(self) -> None:
        self.paid: list[tuple[Path, bytes]] = []

    @asynccontextmanager
    async def paying(self, path: Path, doc: bytes) -> AsyncIterator[None]:
        if len(self.paid) == 2:
            raise error(errno.EDQUOT, path)
        yield
        self.paid.append((path, doc))


async def test_a_budgeted_mount_is_paid_for_each_write(boxed: FileService, tmp_path: FsPath) -> None:
    purse, path = Spent(), Path("s/files/f")
    async with await boxed.create(path, Mode.WRITE, want=Want(purse=purse)) as handle:
        await handle.write(b"one", 0)
    async with await boxed.open(path, Mode.READ | Mode.WRITE, want=Want(purse=purse)) as handle:
        await handle.write(b"two", 3)
        assert await handle.read(10, 0) == b"onetwo"
        assert await errno_of(handle.write(b"x", 0)) == errno.EDQUOT
    assert purse.paid == [(path, b"one"), (path, b"two")]

    async def give(at: At) -> FileService:
        return files(tmp_path)

    pays = Tree(Graft(name="files", service=give, pays=True))
    async with await pays.create(Path("files/g"), Mode.WRITE, want=Want(purse=purse)) as handle:
        assert await handle.write(b"free", 0) == 4
