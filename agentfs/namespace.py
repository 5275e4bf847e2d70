"""A mount table that is itself a `FileService`: longest prefix, bind, and union before, after or in place (Plan 9).

It knows no service by name and holds no policy; rights are the members' own and the views'.
"""

from __future__ import annotations

import errno
import shlex
import stat as _stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from typing import TypeVar

from agentfs.errors import error
from agentfs.service import FileHandle, FileService
from agentfs.types import (
    NO_WANT,
    ROOT,
    Bind,
    Kind,
    Mode,
    Path,
    Principal,
    Qid,
    Stat,
    Want,
    check_name,
    clean,
    join,
    split,
)  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mount:
    """One member of a union: *service*, of which the subtree *root* is seen; ``line`` is its line in the script."""

    service: FileService
    root: Path
    name: str
    line: str


@dataclass(frozen=True, slots=True)
class _Node:
    """A place in the trie; never changed, so that a fork is a reference."""

    members: tuple[Mount, ...] = ()
    children: Mapping[str, _Node] = field(default_factory=dict)


@dataclass(slots=True)
class _Table:
    """The mount table that a namespace and everything attached to it share."""

    root: _Node = field(default_factory=_Node)
    lines: tuple[str, ...] = ()


@lru_cache(maxsize=1 << 16)
def _number(member: str, number: int) -> int:
    digest = blake2b(b"%d/%s" % (number, member.encode()), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _own(st: Stat, at: Path, member: Mount, name: str) -> Stat:
    """*st* with a number of its own among all members, under the name it was asked for."""
    number = _number(f"{member.name}:{at}", st.qid.path)
    return replace(st, name=name, qid=Qid(number, st.qid.version))


class Namespace(FileService):
    """Resolves a path to the members that may hold it, nearest first. Changes show at once in what was attached."""

    def __init__(self, table: _Table | None = None, principal: Principal | None = None) -> None:
        self._table, self._principal = table or _Table(), principal

    def attach(self, principal: Principal) -> Namespace:
        return Namespace(self._table, principal)

    def fork(self) -> Namespace:
        """A copy that later mounts do not touch, nor does it touch this (rfork RFNAMEG)."""
        return Namespace(_Table(self._table.root, self._table.lines), self._principal)

    # -- the table -------------------------------------------------------------------------------------------------

    def mount(self, service: FileService, at: Path, flag: Bind = Bind.REPLACE, *, name: str) -> None:
        """Show *service* at *at*; *name* is what the script calls it. EINVAL for the path or the name."""
        check_name(name)
        line = _line("mount", name, f"/{_checked(at)}", flag)
        self._join(at, (Mount(service, ROOT, name, line),), flag, line)

    def bind(self, new: Path, old: Path, flag: Bind = Bind.REPLACE) -> None:
        """Make *old* show what *new* shows now. ENOENT when *new* is below no mount."""
        found = self._members(_checked(new))
        if not found:
            raise error(errno.ENOENT, new)
        line = _line("bind", f"/{new}", f"/{_checked(old)}", flag)
        self._join(old, tuple(Mount(m.service, join(m.root, rest), m.name, line) for _, m, rest in found), flag, line)

    def unmount(self, at: Path) -> None:
        """Undo every mount and bind at *at* itself. EINVAL when there is none."""
        node = self._node(_checked(at))
        if node is None or not node.members:
            raise error(errno.EINVAL, at, "nothing is mounted here")
        dropped = {m.line for m in node.members}
        self._table.root = _with(self._table.root, _parts(at), ())
        self._table.lines = tuple(line for line in self._table.lines if line not in dropped)

    def script(self) -> str:
        """The table as lines that `replay` takes: ``mount NAME PATH [before|after]``, ``bind PATH PATH [...]``."""
        return "".join(f"{line}\n" for line in self._table.lines)

    def replay(self, text: str, services: Mapping[str, FileService]) -> None:
        """Apply a script on top of the table, all of it or nothing. EINVAL naming the line, ENOENT for a service."""
        draft = self.fork()
        for number, line in enumerate(text.splitlines(), 1):
            try:
                draft._apply(shlex.split(line, comments=True), services)
            except (OSError, ValueError) as exc:
                raise error(errno.EINVAL, detail=f"line {number}: {exc}") from exc
        self._table.root, self._table.lines = draft._table.root, draft._table.lines

    def _apply(self, words: list[str], services: Mapping[str, FileService]) -> None:
        match words:
            case []:
                return
            case ["mount", name, at, *flag] if name in services:
                self.mount(services[name], Path(at.lstrip("/")), _flag(flag), name=name)
            case ["mount", name, *_] if name not in services:
                raise error(errno.ENOENT, detail=f"no service {name!r}")
            case ["bind", new, old, *flag]:
                self.bind(Path(new.lstrip("/")), Path(old.lstrip("/")), _flag(flag))
            case _:
                raise error(errno.EINVAL, detail=f"{' '.join(words)[:80]!r}: want mount NAME PATH or bind PATH PATH")

    def _join(self, at: Path, members: tuple[Mount, ...], flag: Bind, line: str) -> None:
        node = self._node(at)
        here = node.members if node else ()
        gone: set[str] = {m.line for m in here} if flag is Bind.REPLACE else set()
        union = {Bind.REPLACE: members, Bind.BEFORE: (*members, *here), Bind.AFTER: (*here, *members)}[flag]
        self._table.root = _with(self._table.root, _parts(at), union)
        self._table.lines = (*(old for old in self._table.lines if old not in gone), line)

    # -- resolving -------------------------------------------------------------------------------------------------

    def _node(self, path: Path) -> _Node | None:
        node: _Node | None = self._table.root
        for part in _parts(path):
            node = node.children.get(part) if node else None
        return node

    def _members(self, path: Path) -> list[tuple[Path, Mount, Path]]:
        """(mount point, member, path within the member's service): the union nearest to *path*."""
        node, parts = self._table.root, _parts(path)
        nearest, depth = node.members, 0
        for i, part in enumerate(parts, 1):
            below = node.children.get(part)
            if below is None:
                break
            node = below
            if node.members:
                nearest, depth = node.members, i
        at, rest = Path("/".join(parts[:depth])), "/".join(parts[depth:])
        return [(at, m, join(m.root, rest)) for m in nearest]

    def _bound(self, member: Mount) -> FileService:
        return member.service if self._principal is None else member.service.attach(self._principal)

    async def _first(self, path: Path, act: Callable[[FileService, Path], Awaitable[T]]) -> tuple[T, Path, Mount]:
        """What the first member that has *path* answers. ENOENT when none has it."""
        for at, member, inner in self._members(path):
            try:
                return await act(self._bound(member), inner), at, member
            except FileNotFoundError:
                continue
        raise error(errno.ENOENT, path)

    def _is_point(self, path: Path) -> bool:
        """Whether *path* is the root, a mount point or above one: it cannot be removed or replaced."""
        return path == ROOT or self._node(path) is not None

    # -- files -----------------------------------------------------------------------------------------------------

    async def stat(self, path: Path) -> Stat:
        try:
            found, at, member = await self._first(path, lambda s, p: s.stat(p))
        except FileNotFoundError:
            if not self._is_point(path):
                raise
            return _synthetic(path)
        return _own(found, at, member, split(path)[1])

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        node, is_there = self._node(path), self._is_point(path)
        found: dict[str, Stat] = {}
        for at, member, inner in self._members(path):
            try:
                page = await self._bound(member).list(inner, after, limit)
            except (FileNotFoundError, NotADirectoryError) as exc:
                if isinstance(exc, NotADirectoryError) and not is_there:
                    raise
                continue
            is_there = True
            for st in page:
                found.setdefault(st.name, _own(st, at, member, st.name))
        if not is_there:
            raise error(errno.ENOENT, path)
        for name in node.children if node else ():
            if name > after:
                found[name] = await self.stat(join(path, name))
        return [found[name] for name in sorted(found)[:limit]]

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        try:
            return (await self._first(path, lambda s, p: s.open(p, mode, want=want)))[0]
        except FileNotFoundError:
            if self._is_point(path):
                raise error(errno.EISDIR, path) from None
            raise

    async def _make(self, path: Path, act: Callable[[FileService, Path], Awaitable[T]]) -> T:
        """Create in the first member that does not refuse with EACCES; the last refusal is raised."""
        refusal: OSError = error(errno.EACCES, path, "nothing can be created here")
        for _, member, inner in self._members(path):
            try:
                return await act(self._bound(member), inner)
            except (PermissionError, FileNotFoundError) as exc:
                if exc.errno == errno.EPERM:
                    raise
                refusal = exc
        raise refusal

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        if self._is_point(path):
            raise error(errno.EISDIR, path)
        try:
            st = await self.stat(path)
        except FileNotFoundError:
            return await self._make(path, lambda s, p: s.create(p, mode, want=want))
        if want.exclusive:
            raise error(errno.EEXIST, path)
        if st.kind is Kind.DIR:
            raise error(errno.EISDIR, path)
        return await self.open(path, mode, want=want)

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> None:
        try:
            await self.stat(path)
        except FileNotFoundError:
            await self._make(path, lambda s, p: s.mkdir(p, want=want))
            return
        raise error(errno.EEXIST, path)

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> None:
        if self._is_point(path):
            raise error(errno.EBUSY, path, "a mount point")
        await self._first(path, lambda s, p: s.remove(p, want=want))

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        if self._is_point(old) or self._is_point(new):
            raise error(errno.EBUSY, old, "a mount point")
        _, _, member = await self._first(old, lambda s, p: s.stat(p))
        inner = next(p for _, m, p in self._members(old) if m is member)
        target = next((p for _, m, p in self._members(new) if m is member), None)
        if target is None:
            raise error(errno.EXDEV, new)
        await self._bound(member).rename(inner, target, want=want)


def _checked(path: Path) -> Path:
    for part in _parts(clean(path)):
        check_name(part, path)
    return path


def _parts(path: Path) -> list[str]:
    return path.split("/") if path else []


def _with(node: _Node, parts: Sequence[str], members: tuple[Mount, ...]) -> _Node:
    """*node* with the union *members* at *parts*; places that hold nothing are dropped."""
    if not parts:
        return replace(node, members=members)
    child = _with(node.children.get(parts[0], _Node()), parts[1:], members)
    children = {**node.children, parts[0]: child}
    if not child.members and not child.children:
        del children[parts[0]]
    return replace(node, children=children)


def _line(verb: str, what: str, at: str, flag: Bind) -> str:
    return shlex.join([verb, what, at, *([] if flag is Bind.REPLACE else [flag.value])])


def _flag(words: Sequence[str]) -> Bind:
    if not words:
        return Bind.REPLACE
    if len(words) > 1 or words[0] not in ("before", "after", "replace"):
        raise error(errno.EINVAL, detail=f"flag {' '.join(words)[:40]!r}: want before, after or replace")
    return Bind(words[0])


def _synthetic(path: Path) -> Stat:
    return Stat(split(path)[1], _stat.S_IFDIR | 0o555, qid=Qid(_number("synthetic:" + path, 0)), kind=Kind.DIR)
