"""A mount table that is itself a `FileService`: longest prefix, bind, and union before, after or in place (Plan 9).

It knows no service by name and holds no policy; rights are the members' own and the views'.
"""

from __future__ import annotations

import errno
import shlex
import stat as _stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from typing import Final, TypeAlias, TypeVar

import msgspec

from agentfs.errors import error
from agentfs.mounts import Mount, Node, Place, Table, Way, flag_of, parts_of, place_of, placed, walk
from agentfs.service import FileHandle, FileService, Selective
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
)
from agentfs.views import NamedHandle, named

T = TypeVar("T")
Resolve: TypeAlias = Callable[[str, tuple[str, ...]], FileService]
"""What a script's NAME with options stands for. ENOENT for no such service, EINVAL for the options."""

MOUNTS_MAX: Final = 1 << 14  # ENOSPC: members of one table


@lru_cache(maxsize=1 << 16)
def _number(member: str, number: int) -> int:
    digest = blake2b(b"%d/%s" % (number, member.encode()), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _own(st: Stat, way: Way, name: str) -> Stat:
    """*st* with a number of its own among all members, under the name it was asked for."""
    qid = Qid(_number(way.label, st.qid.path), st.qid.version)
    return Stat(name, st.mode, st.size, st.mtime_ns, qid, st.kind, st.until, st.named, st.lists)


class Namespace(FileService):
    """Resolves a path to the members that may hold it, nearest first. Changes show at once in what was attached."""

    def __init__(self, table: Table | None = None, principal: Principal | None = None) -> None:
        self._table, self._principal = table or Table(), principal
        self._attached: dict[Mount, FileService] = {}
        self._written: tuple[Node | None, str] = None, ""  # the script, and the table that it is of

    def attach(self, principal: Principal) -> Namespace:
        return Namespace(self._table, principal)

    def fork(self) -> Namespace:
        """A copy that later mounts do not touch, nor does it touch this (rfork RFNAMEG)."""
        return Namespace(Table(self._table.root, dict(self._table.names)), self._principal)

    # -- the table -------------------------------------------------------------------------------------------------

    def mount(
        self, service: FileService, at: Path, flag: Bind = Bind.REPLACE, *, name: str, root: Path = ROOT,
        options: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        """Show *service*, or its subtree *root*, at *at*; *name* with *options* is what the script calls it.

        ``before`` and ``after`` add to what is *mounted* at *at*; what another service has there is hidden.
        EINVAL for the path or the name, EEXIST when *name* stands for another service, ELOOP for this namespace.
        """
        check_name(name)
        if isinstance(service, Namespace) and service._table is self._table:
            raise error(errno.ELOOP, at, "a namespace cannot be mounted in itself")
        known = self._table.names.get((name, options), service)
        if known is not service and any(m.service is known for _, ms in walk(self._table.root) for m in ms):
            raise error(errno.EEXIST, at, f"name {name!r} stands for another service")
        self._join(_checked(at), (Mount(service, clean(root), name, options),), flag)
        self._table.names[name, options] = service

    def bind(self, new: Path, old: Path, flag: Bind = Bind.REPLACE) -> None:
        """Make *old* show what *new* shows now, mounts beneath it included (those beneath *old* win where both are).

        ENOENT when *new* is below no mount, ENOSPC for a table of more than `MOUNTS_MAX` members.
        """
        _checked(old)
        found, point = (
            [Mount(m.service, inner, m.name, m.options) for _, m, inner, *_ in self._place(clean(new)).ways],
            self._node(new),
        )
        if not found and point is None:
            raise error(errno.ENOENT, new)
        draft = self.fork()  # all of it or nothing
        draft._join(old, tuple(found), flag)
        for at, members in list(walk(point or Node())):
            here = draft._node(_checked(join(old, at)))
            if at and (flag is Bind.REPLACE or here is None or not here.members):
                draft._join(join(old, at), tuple(replace(m) for m in members), Bind.REPLACE)
        self._table.root = draft._table.root

    def unmount(self, at: Path) -> None:
        """Undo every mount and bind at *at* itself. EINVAL when there is none."""
        node = self._node(_checked(at))
        if node is None or not node.members:
            raise error(errno.EINVAL, at, "nothing is mounted here")
        self._table.root = placed(self._table.root, parts_of(at), ())
        self._table.names = {(m.name, m.options): m.service for _, members in walk(self._table.root) for m in members}

    def script(self) -> str:
        """The table as lines that `replay` takes: ``mount NAME PATH [before|after] [OPTION...]``, ``bind ...``.

        A bind stands as ``bind '#NAME/PATH' OLD``: it shows the same whatever became of the place it was bound from.
        """
        if self._written[0] is not self._table.root:
            self._written = self._table.root, self._script()
        return self._written[1]

    def _script(self) -> str:
        lines: list[str] = []
        for at, members in walk(self._table.root):
            for i, m in enumerate(members):
                verb = ["bind", f"#{m.name}/{m.root}"] if m.root else ["mount", m.name]
                lines.append(shlex.join([*verb, f"/{at}", *(["after"] if i else []), *m.options]))
        return "".join(f"{line}\n" for line in lines)

    def replay(self, text: str, resolve: Resolve, *, is_whole: bool = False) -> None:
        """Apply a script on top of the table, or with *is_whole* in place of it; all of it or nothing.

        What stays mounted by the same name and options keeps its service, if *resolve* gives the same again.
        EINVAL naming the line and the reason.
        """
        draft = Namespace(None, self._principal) if is_whole else self.fork()
        for number, line in enumerate(text.split("\n"), 1):  # not splitlines: a name may hold U+2028
            try:
                draft._apply(shlex.split(line, comments=True), resolve)
            except (OSError, ValueError) as exc:
                raise error(errno.EINVAL, detail=f"line {number}: {exc}") from exc
        self._table.root, self._table.names = draft._table.root, draft._table.names

    def _apply(self, words: list[str], resolve: Resolve) -> None:
        match words:
            case []:
                return
            case ["mount", name, at, *rest]:
                flag, options = flag_of(rest)
                self.mount(resolve(name, options), Path(at.removeprefix("/")), flag, name=name, options=options)
            case ["bind", new, old, *rest] if new.startswith("#"):
                name, _, root = new[1:].partition("/")
                flag, options = flag_of(rest)
                at = Path(old.removeprefix("/"))
                self.mount(resolve(name, options), at, flag, name=name, root=Path(root), options=options)
            case ["bind", new, old, *rest] if len(rest) < 2:
                flag, options = flag_of(rest)
                if options:
                    raise error(errno.EINVAL, detail=f"flag {options[0][:40]!r}: want before, after or replace")
                self.bind(Path(new.removeprefix("/")), Path(old.removeprefix("/")), flag)
            case _:
                raise error(errno.EINVAL, detail=f"{' '.join(words)[:80]!r}: want mount NAME PATH or bind PATH PATH")

    def _join(self, at: Path, members: tuple[Mount, ...], flag: Bind) -> None:
        node = self._node(at)
        here = node.members if node else ()
        union = {Bind.REPLACE: members, Bind.BEFORE: (*members, *here), Bind.AFTER: (*here, *members)}[flag]
        root = placed(self._table.root, parts_of(at), union)
        if root.count > MOUNTS_MAX:
            raise error(errno.ENOSPC, at, f"limit {MOUNTS_MAX} mounts")
        self._table.root = root

    # -- resolving -------------------------------------------------------------------------------------------------

    def _place(self, path: Path) -> Place:
        return place_of(self._table.root, path)

    def _node(self, path: Path) -> Node | None:
        return self._place(path).node

    def _bound(self, member: Mount) -> FileService:
        if self._principal is None:
            return member.service
        if (found := self._attached.get(member)) is None:
            if len(self._attached) > self._table.root.count:  # some are mounted no more
                live = {m for _, members in walk(self._table.root) for m in members}
                self._attached = {m: s for m, s in self._attached.items() if m in live}
            found = self._attached[member] = member.service.attach(self._principal)
        return found

    async def _first(
        self, path: Path, act: Callable[[FileService, Path], Awaitable[T]], *, is_change: bool = False
    ) -> tuple[T, Way]:
        """What the first member that has *path* answers, and the way to it. ENOENT: none has."""
        absent: FileNotFoundError | None = None
        for way in self._place(path).ways:
            service = self._bound(way.member)
            if isinstance(service, Selective) and way.top and service.lacks(way.top, is_change=is_change):
                continue
            try:
                return await act(service, way.inner), way
            except FileNotFoundError as exc:
                absent = exc
            except NotADirectoryError as exc:
                if not await self._is_dir(split(path)[0]):
                    raise named(exc, path) from None
            except OSError as exc:
                raise named(exc, path) from None
        raise named(absent or error(errno.ENOENT), path)

    async def _is_dir(self, path: Path) -> bool:
        """Whether the union shows a directory at *path*, or nothing: what a later member has there does not count."""
        try:
            return (await self.stat(path)).is_dir
        except (FileNotFoundError, NotADirectoryError) as exc:
            return isinstance(exc, FileNotFoundError)

    def _is_point(self, path: Path) -> bool:
        """Whether *path* is the root, a mount point or above one: it cannot be removed or replaced."""
        return path == ROOT or self._node(path) is not None

    # -- files -----------------------------------------------------------------------------------------------------

    async def stat(self, path: Path) -> Stat:
        st, node = await self._nearest(path), self._node(path)
        return await self._union(path, st) if node is not None and len(node.members) > 1 and st.is_dir else st

    async def _nearest(self, path: Path) -> Stat:
        """*path* with the permissions of the first member that has it."""
        try:
            found, way = await self._first(path, lambda s, p: s.stat(p))
        except (FileNotFoundError, NotADirectoryError):
            if not self._is_point(path):
                raise
            return _synthetic(path, lasts=not self._place(path).ways)
        place = self._place(path)
        node = place.node
        if node is not None and not found.is_dir and (node.children or not node.members):
            return _synthetic(path)
        return self._promised(place, found, way)

    def _promised(self, place: Place, found: Stat, way: Way) -> Stat:
        """*found* at *place* by *way*, which promises no more than what is mounted beside that lets it."""
        st, node = _own(found, way, place.name), place.node
        if not self._is_settled(place.ways, way):
            st = msgspec.structs.replace(st, until=None, named=None)
        is_whole = len(place.ways) == 1 and (node is None or not node.children)
        return st if is_whole or not st.lists else msgspec.structs.replace(st, lists=False)

    def _is_settled(self, ways: Sequence[Way], found: Way) -> bool:
        """Whether no member before that of *found* can get what *found* has now."""
        for way in ways:
            if way is found:
                return True
            service = self._bound(way.member)
            if not (isinstance(service, Selective) and way.top and service.lacks(way.top, is_change=False)):
                return False
        return False

    async def _union(self, path: Path, first: Stat) -> Stat:
        """*first* with the permissions of every member: something can be created here if any of them lets it."""
        mode = first.mode
        for way in self._place(path).ways[1:]:
            try:
                st = await self._bound(way.member).stat(way.inner)
            except (FileNotFoundError, NotADirectoryError):
                continue
            mode |= st.mode & 0o777 if st.is_dir else 0
        return msgspec.structs.replace(first, mode=mode, until=None, lists=False)

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        root = self._table.root  # it may be replaced meanwhile
        _, node, ways = place_of(root, path)
        if not (await self._nearest(path)).is_dir:
            raise error(errno.ENOTDIR, path)
        is_alone = len(ways) == 1 and (node is None or not node.children)
        points = {name for name in node.children if name > after} if node else set()
        found: dict[str, Stat] = {}
        for i, way in enumerate(ways):
            for st in await self._pages(way, after, limit, is_alone):
                if is_alone:
                    found[st.name] = _own(st, way, st.name)
                elif st.name not in found and st.name not in points:
                    place = place_of(root, join(path, st.name))
                    found[st.name] = self._promised(place, st, place.ways[i])
        names = sorted(found.keys() | points)[:limit]
        return [await self._point(join(path, name)) if name in points else found[name] for name in names]

    async def _pages(self, way: Way, after: str, limit: int, is_alone: bool) -> Sequence[Stat]:
        """*limit* entries, or all there are: a short page is no end, and what it left out must not be passed over."""
        found: list[Stat] = []
        while len(found) < limit:
            try:
                page = await self._bound(way.member).list(way.inner, after, limit)
            except (FileNotFoundError, NotADirectoryError):
                break
            found += page
            if is_alone or not page or page[-1].name <= after:
                break
            after = page[-1].name
        return found

    async def _point(self, path: Path) -> Stat:
        """A mount point as its parent lists it: a member that fails is no reason to show nothing."""
        try:
            return await self.stat(path)
        except OSError:
            return _synthetic(path)

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        if self._is_point(path) and (await self.stat(path)).is_dir:
            raise error(errno.EISDIR, path)
        handle, way = await self._first(path, lambda s, p: s.open(p, mode, want=want), is_change=mode.is_change)
        return handle if way.inner == path else NamedHandle(handle, path)

    async def _make(self, path: Path, act: Callable[[FileService, Path], Awaitable[T]]) -> T:
        """Create in the first member that does not refuse with EACCES or EROFS; the last refusal is raised."""
        refusal, top = error(errno.EACCES, path, "nothing can be created here"), split(path)[0]
        if not await self._is_dir(top):
            raise error(errno.ENOTDIR, path)
        for way in self._place(path).ways:
            try:
                return await act(self._bound(way.member), way.inner)
            except OSError as exc:
                if exc.errno not in (errno.EACCES, errno.EROFS, errno.ENOENT, errno.ENOTDIR):
                    raise named(exc, path) from None
                if not isinstance(exc, FileNotFoundError) or not self._is_point(top):
                    refusal = exc
        raise named(refusal, path)

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        try:
            st = await self.stat(path)
        except FileNotFoundError:
            handle = await self._make(path, lambda s, p: s.create(p, mode, want=want))
            return NamedHandle(handle, path) if self._place(path).ways[0].inner != path else handle
        if want.exclusive or st.is_dir:
            raise error(errno.EEXIST, path)
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
        await self._first(path, lambda s, p: s.remove(p, want=want), is_change=True)

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        if self._is_point(old) or self._is_point(new):
            raise error(errno.EBUSY, old, "a mount point")
        way = (await self._first(old, lambda s, p: s.stat(p)))[1]
        member, inner = way.member, way.inner
        target = next((w.inner for w in self._place(new).ways if w.member is member), None)
        try:
            holder = (await self._first(new, lambda s, p: s.stat(p)))[1].member
        except FileNotFoundError:
            holder = member
        if target is None or holder is not member:
            raise error(errno.EXDEV, new)
        try:
            await self._bound(member).rename(inner, target, want=want)
        except OSError as exc:
            raise named(exc, new if exc.filename == target != inner else old) from None


def _checked(path: Path) -> Path:
    for part in parts_of(clean(path)):
        check_name(part, path)
    return path


def _synthetic(path: Path, *, lasts: bool = False) -> Stat:
    """A directory for what is mounted below *path*; *lasts*: nothing that is mounted could be there in its place."""
    number, until = _number("synthetic:" + path, 0), () if lasts else None
    return Stat(split(path)[1], _stat.S_IFDIR | 0o555, qid=Qid(number), kind=Kind.DIR, until=until, named=until)
