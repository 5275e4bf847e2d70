"""The views: every one forwards everything it does not change, and `Checked` holds the contract for any service."""

from __future__ import annotations

import errno
import inspect
import logging
from collections.abc import Sequence

import anyio
import pytest
from dictfs import DictService

from agentfs.checked import Checked, CheckedHandle
from agentfs.errors import error
from agentfs.limits import Limits
from agentfs.service import FileHandle, FileService
from agentfs.types import OPERATOR, ROOT, Mode, Path, Principal, Record, Stat, Want
from agentfs.views import Below, NamedHandle, ReadOnly, View, ViewHandle

WANT = Want(match=7, key="k", trace="t", exclusive=True)
AGENT = Principal("agent", "x")
F, G = Path("f"), Path("g")
RDWR = Mode.READ | Mode.WRITE


class Notes(FileHandle):
    """A handle that notes every call with its arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    async def read(self, size: int, offset: int) -> bytes:
        self.calls.append(("read", size, offset))
        return b"r" * size

    async def write(self, data: bytes, offset: int) -> int:
        self.calls.append(("write", data, offset))
        return len(data)

    def write_nowait(self, data: bytes, offset: int) -> bool:
        self.calls.append(("write_nowait", data, offset))
        return True

    async def truncate(self, size: int) -> None:
        self.calls.append(("truncate", size))

    async def flush(self, *, final: bool = False) -> None:
        self.calls.append(("flush", final))

    def discard(self) -> None:
        self.calls.append(("discard",))

    async def aclose(self) -> None:
        self.calls.append(("aclose",))

    async def next(self) -> Record | None:
        self.calls.append(("next",))
        return Record("e-1", b"{}\n")

    def is_ready(self) -> bool:
        self.calls.append(("is_ready",))
        return False

    async def wait_ready(self) -> None:
        self.calls.append(("wait_ready",))

    @property
    def size(self) -> int | None:
        self.calls.append(("size",))
        return 42

    @property
    def content(self) -> bytes | None:
        self.calls.append(("content",))
        return b"all"

    @property
    def descriptor(self) -> int | None:
        self.calls.append(("descriptor",))
        return 3


class Book(DictService):
    """A service that notes every call with its arguments, and gives `Notes` as handles."""

    def __init__(self) -> None:
        super().__init__({"f": b"text"})
        self.calls: list[tuple[object, ...]] = []
        self.handle = Notes()

    def attach(self, principal: Principal) -> Book:
        self.calls.append(("attach", principal))
        return self

    async def stat(self, path: Path) -> Stat:
        self.calls.append(("stat", path))
        return await super().stat(path)

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        self.calls.append(("list", path, after, limit))
        return ()

    async def open(self, path: Path, mode: Mode, *, want: Want = WANT) -> FileHandle:
        self.calls.append(("open", path, mode, want))
        return self.handle

    async def create(self, path: Path, mode: Mode, *, want: Want = WANT) -> FileHandle:
        self.calls.append(("create", path, mode, want))
        return self.handle

    async def mkdir(self, path: Path, *, want: Want = WANT) -> None:
        self.calls.append(("mkdir", path, want))

    async def remove(self, path: Path, *, want: Want = WANT) -> None:
        self.calls.append(("remove", path, want))

    async def rename(self, old: Path, new: Path, *, want: Want = WANT) -> None:
        self.calls.append(("rename", old, new, want))


def public(kind: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}


def test_forwarders_define_every_method_of_the_interface() -> None:
    for view, interface in ((View, FileService), (ViewHandle, FileHandle), (Notes, FileHandle), (Book, FileService)):
        assert public(interface) <= set(vars(view)), view


@pytest.mark.parametrize("wrap", [View, Checked, lambda s: Below(s, ROOT), lambda s: View(Checked(Below(s, ROOT)))])
async def test_views_forward_everything(wrap: type[View]) -> None:
    book = Book()
    view = wrap(book)
    attached = view.attach(AGENT)
    assert type(attached) is type(view)
    await attached.stat(F)
    await attached.list(F, "after", 5)
    await attached.open(F, RDWR, want=WANT)
    await attached.create(G, Mode.WRITE, want=WANT)
    await attached.mkdir(G, want=WANT)
    await attached.remove(F, want=WANT)
    await attached.rename(F, G, want=WANT)
    assert book.calls == [
        ("attach", AGENT), ("stat", F), ("list", F, "after", 5), ("open", F, RDWR, WANT),
        ("create", G, Mode.WRITE, WANT), ("mkdir", G, WANT), ("remove", F, WANT), ("rename", F, G, WANT),
    ]  # fmt: skip
    assert {str(call[0]) for call in book.calls} == public(FileService)


@pytest.mark.parametrize(
    "wrap",
    [ViewHandle, lambda h: NamedHandle(h, F), lambda h: CheckedHandle(h, F, RDWR, lambda: None)],
)
async def test_handles_forward_everything(wrap: type[ViewHandle]) -> None:
    notes = Notes()
    handle = wrap(notes)
    assert await handle.read(3, 4) == b"rrr"
    assert await handle.write(b"data", 9) == 4
    assert handle.write_nowait(b"more", 13)
    await handle.truncate(2)
    await handle.flush(final=True)
    handle.discard()
    assert await handle.next() == Record("e-1", b"{}\n")
    assert handle.is_ready() is False
    await handle.wait_ready()
    assert handle.size == 42
    assert handle.content == b"all"
    assert handle.descriptor == 3
    await handle.aclose()
    assert notes.calls == [
        ("read", 3, 4), ("write", b"data", 9), ("write_nowait", b"more", 13), ("truncate", 2), ("flush", True),
        ("discard",), ("next",),
        ("is_ready",), ("wait_ready",), ("size",), ("content",), ("descriptor",),
        ("aclose",),
    ]  # fmt: skip
    assert {str(call[0]) for call in notes.calls} == public(FileHandle)


async def fails(code: int, call: object) -> OSError:
    with pytest.raises(OSError, match=r".") as caught:
        await call  # type: ignore[misc]
    assert caught.value.errno == code
    return caught.value


async def test_read_only() -> None:
    book = Book()
    view = ReadOnly(book).attach(AGENT)
    assert not (await view.stat(F)).mode & 0o222
    assert not any(entry.mode & 0o222 for entry in await ReadOnly(DictService({"d/f": b""})).list(ROOT))
    for mode in (Mode.WRITE, RDWR, Mode.READ | Mode.TRUNCATE, Mode.READ | Mode.APPEND):
        await fails(errno.EROFS, view.open(F, mode))
    for call in (view.create(G, Mode.READ), view.mkdir(G), view.remove(F), view.rename(F, G)):
        await fails(errno.EROFS, call)
    handle = await view.open(F, Mode.READ, want=WANT)
    await fails(errno.EROFS, handle.write(b"x", 0))
    await fails(errno.EROFS, handle.truncate(0))
    assert await handle.read(1, 0) == b"r"
    assert [call[0] for call in book.calls] == ["attach", "stat", "open"]
    assert [call[0] for call in book.handle.calls] == ["read"]


async def test_below_shows_and_names_only_its_subtree() -> None:
    inner = DictService({"a/b/f": b"in", "a/out": b"out"})
    view = Below(inner, Path("a/b"))
    assert [entry.name for entry in await view.list(ROOT)] == ["f"]
    assert (await view.stat(ROOT)).name == ""
    for call in (view.stat(Path("out")), view.open(Path("x"), Mode.READ), view.remove(Path("x"))):
        exc = await fails(errno.ENOENT, call)
        assert "a/b" not in str(exc)
    assert (await fails(errno.ENOENT, view.rename(F, Path("no/g")))).filename in (F, "no/g")
    for call in (view.remove(ROOT), view.mkdir(ROOT), view.rename(ROOT, G), view.rename(F, ROOT)):
        await fails(errno.EBUSY, call)
    await view.rename(F, G)
    assert Path("a/b/g") in inner.files
    handle = await view.open(G, RDWR)
    del inner.files[Path("a/b/g")]
    for late in (handle.read(1, 0), handle.write(b"", 0), handle.truncate(0)):
        with pytest.raises(OSError, match="'g'"):
            await late


@pytest.mark.parametrize("path", ["/f", "f/", "a//b", "..", "a/../b", ".", "a\0b", 3, None, b"f"])
async def test_checked_refuses_paths_that_are_not_clean(path: Path) -> None:
    book = Book()
    view = Checked(book)
    for call in (
        view.stat(path), view.list(path), view.open(path, RDWR), view.create(path, RDWR), view.mkdir(path),
        view.remove(path), view.rename(path, F), view.rename(F, path),
    ):  # fmt: skip
        await fails(errno.EINVAL, call)
    assert book.calls == []
    assert view._count.open == {False: 0, True: 0}


async def test_checked_refuses_modes_numbers_and_closed_handles() -> None:
    view = Checked(DictService({"f": b"text"}))
    for mode in (Mode(0), Mode.TRUNCATE, Mode.READ | Mode.TRUNCATE, Mode.READ | Mode.APPEND):
        await fails(errno.EINVAL, view.open(F, mode))
    await fails(errno.EINVAL, view.list(ROOT, "", -1))
    reader, writer = await view.open(F, Mode.READ), await view.open(F, Mode.WRITE)
    for call in (reader.write(b"", 0), reader.truncate(0), writer.read(1, 0), writer.next()):
        await fails(errno.EBADF, call)
    for call in (reader.read(-1, 0), reader.read(1, -1), writer.write(b"", -1), writer.truncate(-1)):
        await fails(errno.EINVAL, call)
    await reader.aclose()
    await reader.aclose()
    for call in (reader.read(1, 0), reader.write(b"", 0), reader.truncate(0), reader.flush(), reader.next()):
        await fails(errno.EBADF, call)
    await fails(errno.EBADF, reader.wait_ready())
    assert (reader.is_ready(), reader.size) == (True, None)


async def test_checked_counts_handles_and_follow_streams_apart() -> None:
    book = Book()
    view = Checked(book, Limits(handles=2, blocked_readers=1))
    held = [await view.open(F, Mode.READ), await view.create(G, Mode.WRITE)]
    await fails(errno.EMFILE, view.open(F, Mode.READ))
    follow = await view.open(Path("log@follow"), Mode.READ)
    await fails(errno.EMFILE, view.open(Path("log@e-1"), Mode.READ))
    await view.attach(AGENT).open(F, Mode.READ)  # has a count of its own
    for handle in (*held, held[0], follow):
        await handle.aclose()
    for _ in range(5):
        await (await view.open(F, Mode.READ)).aclose()
    assert view._count.open == {False: 0, True: 0}


class Faulty(DictService):
    """Fails in ways that the error table does not know."""

    def __init__(self, exc: BaseException) -> None:
        super().__init__({"f": b""})
        self.exc = exc

    async def stat(self, path: Path) -> Stat:
        raise self.exc

    async def open(self, path: Path, mode: Mode, *, want: Want = WANT) -> FileHandle:
        raise self.exc


class Liar(Notes):
    """Breaks the contract of reads and writes, and fails to close."""

    async def read(self, size: int, offset: int) -> bytes:
        return b"x" * (size + 1)

    async def write(self, data: bytes, offset: int) -> int:
        return len(data) + 1

    async def aclose(self) -> None:
        raise RuntimeError("secret")


@pytest.mark.parametrize(
    "exc", [ValueError("secret"), TimeoutError(), OSError(errno.ECONNREFUSED, "secret"), KeyError()]
)
async def test_unknown_failures_are_eio_and_logged(exc: Exception, caplog: pytest.LogCaptureFixture) -> None:
    view = Checked(Faulty(exc))
    with caplog.at_level(logging.ERROR):
        found = [await fails(errno.EIO, view.stat(F)), await fails(errno.EIO, view.open(F, Mode.READ))]
    assert not any("secret" in str(e) for e in found)
    assert [record.exc_info and record.exc_info[1] for record in caplog.records] == [exc, exc]
    assert view._count.open == {False: 0, True: 0}
    known = error(errno.EDQUOT, F, "spent")
    assert await fails(errno.EDQUOT, Checked(Faulty(known)).stat(F)) is known


async def test_a_handle_that_breaks_the_contract(caplog: pytest.LogCaptureFixture) -> None:
    book = Book()
    book.handle = Liar()
    view = Checked(book)
    handle = await view.open(F, RDWR)
    with caplog.at_level(logging.ERROR):
        await fails(errno.EIO, handle.read(1, 0))
        await fails(errno.EIO, handle.write(b"x", 0))
        await handle.aclose()
    assert len(caplog.records) == 3
    assert view._count.open[False] == 0


class Waiting(Book):
    """Opens never end, reads of its handles neither."""

    async def open(self, path: Path, mode: Mode, *, want: Want = WANT) -> FileHandle:
        await anyio.sleep_forever()
        raise AssertionError

    async def create(self, path: Path, mode: Mode, *, want: Want = WANT) -> FileHandle:
        return WaitingHandle()


class WaitingHandle(Notes):
    async def read(self, size: int, offset: int) -> bytes:
        await anyio.sleep_forever()
        raise AssertionError


async def test_cancellation_passes_and_leaves_no_count(caplog: pytest.LogCaptureFixture) -> None:
    view = Checked(Waiting())
    with anyio.move_on_after(0) as opening:
        await view.open(F, Mode.READ)
    async with await view.create(F, Mode.READ) as handle:
        with anyio.move_on_after(0) as reading:
            await handle.read(1, 0)
    assert opening.cancelled_caught
    assert reading.cancelled_caught
    assert view._count.open == {False: 0, True: 0}
    assert not caplog.records


def test_attach_that_fails_is_eio(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(Book):
        def attach(self, principal: Principal) -> Book:
            raise ValueError("secret")

    with caplog.at_level(logging.ERROR), pytest.raises(OSError, match="internal error"):
        Checked(Refusing()).attach(OPERATOR)
    assert len(caplog.records) == 1
