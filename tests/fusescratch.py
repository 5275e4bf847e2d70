"""A small tree for the FUSE face's tests, written against the interface alone: real files, a ctl, streams and bugs."""

from __future__ import annotations

import errno
import itertools
import stat
import time
from collections.abc import Sequence

import trio

from agentfs.errors import error
from agentfs.service import FileHandle, FileService
from agentfs.types import NO_WANT, ROOT, Kind, Mode, Path, Principal, Qid, Stat, Want, check_name, join, split

SCRATCH = "fusescratch:Scratch"
DIR = stat.S_IFDIR | 0o777
FILE = stat.S_IFREG | 0o666


def _text(mode: Mode) -> str:
    return "+".join(flag.name or "" for flag in mode)


class Item:
    """A file or (with ``data`` None) a directory kept in memory."""

    ids = itertools.count(1)

    def __init__(self, data: bytes | None = b"", mode: int = FILE) -> None:
        self.data, self.mode = data, DIR if data is None else mode
        self.id, self.version, self.at_ns = next(self.ids), 0, time.time_ns()

    def stat(self, name: str) -> Stat:
        return Stat(name, self.mode, len(self.data or b""), self.at_ns, Qid(self.id, self.version), Kind.DATA)

    def put(self, data: bytes) -> None:
        self.data, self.version, self.at_ns = data, self.version + 1, time.time_ns()


class ItemHandle(FileHandle):
    """Random access on a copy, put back when flushed or closed."""

    def __init__(self, item: Item, mode: Mode, owner: Scratch, path: Path) -> None:
        self.item, self.mode, self.owner, self.path = item, mode, owner, path
        self.copy = bytearray(b"" if Mode.TRUNCATE in mode else item.data or b"")
        self.dirty = Mode.TRUNCATE in mode

    async def read(self, size: int, offset: int) -> bytes:
        return bytes(self.copy[offset : offset + size])

    async def write(self, data: bytes, offset: int) -> int:
        if Mode.APPEND in self.mode:
            offset = len(self.copy)
        self.copy[offset : offset + len(data)] = data
        self.dirty = True
        return len(data)

    async def truncate(self, size: int) -> None:
        self.owner.calls.append(f"truncate {self.path} {size}")
        self.copy = self.copy[:size].ljust(size, b"\0")
        self.dirty = True

    async def flush(self, *, final: bool = False) -> None:
        if self.dirty:
            if self.path.startswith("late/"):
                self.owner.items.setdefault(self.path, self.item)
            elif self.owner.items.get(self.path) is not self.item and self.item not in self.owner.items.values():
                raise error(errno.ESTALE, self.path)
            self.item.put(bytes(self.copy))
            self.dirty = False

    async def aclose(self) -> None:
        try:
            await self.flush(final=True)
        except OSError:
            self.owner.calls.append(f"lost {self.path}")


class CtlHandle(FileHandle):
    """``bad`` is refused, ``emit TEXT`` feeds the stream, ``replace PATH`` swaps a file behind the mount's back."""

    def __init__(self, owner: Scratch) -> None:
        self.owner, self.rest = owner, b""

    async def read(self, size: int, offset: int) -> bytes:
        return b"bad\nemit\n"[offset : offset + size]

    async def write(self, data: bytes, offset: int) -> int:
        self.rest += data
        while b"\n" in self.rest:
            line, _, self.rest = self.rest.partition(b"\n")
            verb, _, argument = line.decode().partition(" ")
            if verb == "emit":
                self.owner.emit(argument.encode() + b"\n")
            elif verb == "replace":
                self.owner.items[Path(argument)] = Item(b"replaced\n")
            elif verb == "finish":
                self.owner.is_finished = True
                self.owner.pulse()
            else:
                raise error(errno.EINVAL, "ctl", f"verb {verb!r}")
        return len(data)


class FollowHandle(FileHandle):
    """Blocks for the next bytes of the stream; a cancelled read has taken nothing."""

    def __init__(self, owner: Scratch) -> None:
        self.owner, self.at, self.is_closed = owner, len(owner.stream), False

    async def read(self, size: int, offset: int) -> bytes:
        while not self.is_ready():
            await self.wait_ready()
        if self.is_closed:
            raise error(errno.EBADF)
        data = bytes(self.owner.stream[self.at : self.at + size])
        self.at += len(data)
        return data

    def is_ready(self) -> bool:
        return self.is_closed or self.at < len(self.owner.stream) or self.owner.is_finished

    async def wait_ready(self) -> None:
        await self.owner.changed.wait()

    async def aclose(self) -> None:
        self.is_closed = True
        self.owner.pulse()


class LogHandle(FileHandle):
    """What the stream holds; grows while open."""

    def __init__(self, owner: Scratch) -> None:
        self.owner = owner

    async def read(self, size: int, offset: int) -> bytes:
        return bytes(self.owner.stream[offset : offset + size])


class Text(FileHandle):
    """A snapshot whose size only the handle knows, or a bug."""

    def __init__(self, text: bytes, bug: str = "") -> None:
        self.text, self.bug = text, bug

    async def read(self, size: int, offset: int) -> bytes:
        if self.bug == "bug-read":
            raise ZeroDivisionError(self.bug)
        if self.bug == "bug-type":
            return "text"  # type: ignore[return-value]
        return bytes(size + 1) if self.bug == "bug-long" else self.text[offset : offset + size]

    async def write(self, data: bytes, offset: int) -> int:
        if self.bug == "bug-group":
            raise ExceptionGroup("several", [ValueError("a"), OSError(errno.EINVAL, "b")])
        return -1

    @property
    def size(self) -> int | None:
        return len(self.text)


class Scratch(FileService):
    """The tree itself."""

    def __init__(self) -> None:
        self.items: dict[Path, Item] = {ROOT: Item(None), Path("d"): Item(None), Path("d/sub"): Item(None)}
        self.items |= {Path("late"): Item(None), Path("d/one"): Item(b"one\n"), Path("d/sub/two"): Item(b"two\n")}
        self.items[Path("fixed")] = Item(b"fixed\n", stat.S_IFREG | 0o444)
        for name in ("ctl", "snap", "calls", "bug-read", "bug-type", "bug-long", "bug-group", "bug-open", "bug-size"):
            self.items[Path(name)] = Item()
        self.big = dict.fromkeys(f"{i:05}" for i in range(10_000))
        self.stream, self.changed, self.is_finished = bytearray(), trio.Event(), False
        self.calls: list[str] = []

    def pulse(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def emit(self, data: bytes) -> None:
        self.stream += data
        self.pulse()

    def attach(self, principal: Principal) -> FileService:
        return self

    def _item(self, path: Path) -> Item:
        if path not in self.items:
            raise error(errno.ENOENT, path)
        return self.items[path]

    async def stat(self, path: Path) -> Stat:
        name = path.rpartition("/")[2]
        if path == "bug-stat":
            raise KeyError(path)
        if path == "bug-size":
            return Stat(name, FILE, -5)
        if path in ("log", "log@follow"):
            return Stat(name, stat.S_IFREG | 0o444, len(self.stream) if path == "log" else 0, kind=Kind.STREAM)
        if path == "big":
            return Stat("big", stat.S_IFDIR | 0o555)
        if path.startswith("big/") and name in self.big:
            return Stat(name, FILE)
        return self._item(path).stat(name)

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        if path == "big":
            return [Stat(name, FILE) for name in self.big if name > after][:limit]
        below = [split(at) for at in self.items if at != ROOT]
        names = {name for top, name in below if top == path} | ({"big", "log"} if path == ROOT else set())
        kept = sorted(name for name in names if name > after and not name.startswith("bug"))
        return [await self.stat(join(path, name)) for name in kept[:limit]]

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        if path != "calls":
            self.calls.append(f"open {path} {_text(mode)}")
        if path == "ctl":
            return CtlHandle(self)
        if path == "log":
            return LogHandle(self)
        if path == "log@follow":
            return FollowHandle(self)
        if path == "bug-open":
            raise ValueError("not an OSError")
        if path == "calls":
            return Text("".join(f"{call}\n" for call in self.calls).encode())
        if path == "snap" or path.startswith("bug"):
            return Text(b"0123456789" * 100, path)
        item = Item() if path.startswith("big/") else self._item(path)
        if Mode.WRITE in mode and not item.mode & 0o222:
            raise error(errno.EACCES, path, "read only")
        return ItemHandle(item, mode, self, path)

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        top, name = split(path)
        if top == "d" or top.startswith("d/"):  # stands for files/, which takes any name
            self._item(top)
        elif top != "late":
            raise error(errno.EACCES, path)
        else:
            check_name(name, path)
        if path in self.items:
            if want.exclusive:
                raise error(errno.EEXIST, path)
            return await self.open(path, mode)
        self.calls.append(f"create {path} {_text(mode)}")
        item = Item()
        if top != "late":
            self.items[path] = item
        return ItemHandle(item, mode & ~Mode.TRUNCATE, self, path)

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> None:
        if path in self.items:
            raise error(errno.EEXIST, path)
        self.items[path] = Item(None)

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> None:
        self._item(path)
        if any(at.startswith(f"{path}/") for at in self.items):
            raise error(errno.ENOTEMPTY, path)
        del self.items[path]

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        self._item(old)
        if want.exclusive and new in self.items:
            raise error(errno.EEXIST, new)
        moved = [at for at in self.items if at == old or at.startswith(f"{old}/")]
        for at in moved:
            self.items[Path(new + at[len(old) :])] = self.items.pop(at)
