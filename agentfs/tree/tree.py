"""`Tree`: a `FileService` from a table of nodes: walking, listing, opening, creating.

It knows nothing of agents, stores or faces; every effect is a function the author gave.
"""

from __future__ import annotations

import copy
import errno
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from stat import S_ISVTX

import msgspec

from agentfs.errors import error
from agentfs.limits import Limits
from agentfs.ports import LogHead
from agentfs.service import FileHandle, FileService, Selective
from agentfs.tree.grafts import Grafted, graft, has_graft, unreachable
from agentfs.tree.handles import Errors, Opening
from agentfs.tree.nodes import At, Data, Dir, Entry, File, Graft, Info, Leaf, Node, Stream
from agentfs.tree.opening import open_leaf, open_twin
from agentfs.tree.scratch import Scratches
from agentfs.types import (
    NO_WANT,
    OPERATOR,
    ROOT,
    Facet,
    Kind,
    Mode,
    Path,
    Principal,
    Qid,
    Stat,
    Want,
    check_name,
    join,
    split,
)  # fmt: skip

_SCRATCH = re.compile(r"sed[A-Za-z0-9]{6}\Z")
_FOR_EVER: tuple[Facet, ...] | None = ()


@lru_cache(maxsize=1 << 16)
def _number(path: str) -> int:
    return int.from_bytes(blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest()) >> 1


def _may_be_twin(path: Path) -> bool:
    return "@" in path or path.endswith(".1")


def _within(until: tuple[Facet, ...] | None, top: Dir, name: str) -> tuple[Facet, ...] | None:
    """Until when *name* is in *top*, which is there until *until*."""
    if until is None or name in top.fixed:
        return until
    return None if top.facets is None else (*until, *top.facets)


class Tree(Selective, FileService):
    """A service declared as a table of *entries*, or as one directory *root*. Safe for concurrent use."""

    def __init__(
        self, *entries: Node, root: Dir | None = None, errors: Errors | None = None, limits: Limits | None = None,
        changed: Callable[[Sequence[Facet]], int] = lambda facets: 0,
    ) -> None:  # fmt: skip
        """*changed*: when any of some facets changed last, as ns that rise; the mtime of a directory that has any."""
        self._root, self._changed = root or Dir(entries=entries), changed
        self._has_graft = has_graft(self._root)
        self._limits = limits or Limits()
        self._errors = errors or Errors()
        self._principal = OPERATOR
        self._pending: dict[Path, int] = {}  # created, its document not written yet: how many handles
        self._scratches = Scratches()

    def attach(self, principal: Principal) -> Tree:
        attached = copy.copy(self)  # shares what is pending, the errors and the nodes
        attached._principal = principal
        return attached

    @property
    def _scratch(self) -> dict[Path, bytes]:
        return self._scratches.of(self._principal)

    # -- walking ---------------------------------------------------------------------------------------------------

    def _at(
        self, path: Path, params: dict[str, str], want: Want = NO_WANT, until: tuple[Facet, ...] | None = None
    ) -> At:
        return At(path, params, self._principal, want, until)

    async def _walk(self, path: Path, want: Want = NO_WANT) -> tuple[Node, At]:
        """The node of *path* and where it is; a `Graft`, wherever below it the path leads."""
        node: Node = self._root
        params: dict[str, str] = {}
        top, until = ROOT, _FOR_EVER
        for name in path.split("/") if path != ROOT else ():
            if isinstance(node, Graft):
                return node, self._at(top, params, want)
            if not isinstance(node, Dir):
                raise error(errno.ENOTDIR, path)
            child = await self._child(node, top, params, name)
            top = join(top, name)
            if child is None:
                if top != path or (top not in self._pending and top not in self._scratch):
                    raise error(errno.ENOENT, path)
                child, until = self._template(node, top, params, name), None
            until = _within(until, node, name)
            node = child
        return node, self._at(path, params, want, until)

    async def _child(self, top: Dir, path: Path, params: dict[str, str], name: str) -> Node | None:
        """What *name* is in the directory *top*, which is at *path*; *params* gets its key."""
        if (entry := top.fixed.get(name)) is not None:
            return entry
        key = top.key_of(name)
        if key is None or top.has is None or not await top.has(self._at(path, params), key):
            return None
        params[top.slot[1]] = key
        return top.each

    async def _below(self, path: Path, want: Want) -> Grafted | None:
        """What *path* is in, where that is a graft; the graft itself is in its directory."""
        if not self._has_graft:
            return None
        node, at = await self._walk(split(path)[0], want)
        return await graft(node, at) if isinstance(node, Graft) else None

    async def _is_new(self, path: Path) -> bool:
        """Whether *path* was created and its document is not written yet."""
        if path not in self._pending:
            return False
        top, name = split(path)
        node, at = await self._walk(top)
        return isinstance(node, Dir) and await self._child(node, top, dict(at.params), name) is None

    def _template(self, top: Dir, path: Path, params: dict[str, str], name: str) -> Node:
        key = top.key_of(name)
        if path in self._scratch or key is None or top.each is None:
            return self._scratches.node(self._principal, path, self._limits.document_bytes)
        params[top.slot[1]] = key
        return top.each

    def lacks(self, name: str, *, is_change: bool) -> bool:
        top = self._root
        is_fixed = top.each is None and not self._pending and not self._scratches
        return is_fixed and name not in top.fixed and not _may_be_twin(Path(name))

    # -- stat and list ---------------------------------------------------------------------------------------------

    async def stat(self, path: Path) -> Stat:
        if _may_be_twin(path) and (twin := await self._twin(path)) is not None:
            return twin
        node, at = await self._walk(path)
        return await ((await graft(node, at)).stat(path) if isinstance(node, Graft) else self._stat(node, at, None))

    async def _stat(self, node: Node, at: At, info: Info | None) -> Stat:
        name, number = split(at.path)[1], _number(at.path)
        if isinstance(node, Graft):
            return msgspec.structs.replace(await (await graft(node, at)).stat(at.path), named=at.until)
        if isinstance(node, Dir):
            mode = node.mode(self._principal) | (S_ISVTX if node.is_protected and await node.is_protected(at) else 0)
            at_ns = self._changed(node.facets) if node.facets else 0
            until = at.until if at.until is None or node.facets is None else (*at.until, *node.facets)
            lists = (node.each is None or node.facets is not None) and not node.has_logs  # of which X.1 comes and goes
            return Stat(name, mode, 0, at_ns, Qid(number, at_ns), Kind.DIR, until, at.until, lists)
        if isinstance(node, Stream):
            heads = await (await node.log(at)).heads()
            return self._stat_log(node, at, heads[-1] if heads else None)
        if at.path in self._scratch:
            info, at = Info(size=len(self._scratch[at.path])), self._at(at.path, {})
        elif info is None and (not self._pending or not await self._is_new(at.path)):
            info = await node.info(at) if node.info else Info()
        info = info or Info()
        qid = Qid(number, info.version)
        return Stat(name, node.mode(self._principal), info.size, info.mtime_ns, qid, node.kind, info.until, at.until)

    def _stat_log(self, node: Stream, at: At, head: LogHead | None) -> Stat:
        name, mode = split(at.path)[1], node.mode(self._principal)
        where = join(split(at.path)[0], node.name)
        if head is None:  # the file that its first record will be in
            return Stat(name, mode, qid=Qid(_number(f"1/{where}")), kind=Kind.STREAM)
        qid = Qid(_number(f"{head.generation}/{where}"), head.next)
        return Stat(name, mode, head.size, head.changed_at_ns, qid, Kind.STREAM)

    async def _twin(self, path: Path) -> Stat | None:
        """The stat of ``X@...`` or ``X.1``; None when *path* is not such a name."""
        found = await self._stream(path)
        if found is None:
            return None
        node, at, cursor = found
        if cursor != ".1":
            return Stat(split(path)[1], node.mode(self._principal), qid=Qid(_number(path)), kind=Kind.STREAM)
        heads = await (await node.log(at)).heads()
        if len(heads) < 2:
            raise error(errno.ENOENT, path)
        return self._stat_log(node, At(path, at.params, at.principal), heads[0])

    async def _stream(self, path: Path) -> tuple[Stream, At, str] | None:
        top, name = split(path)
        base, mark, cursor = name.partition("@")
        if not mark and name.endswith(".1"):
            base, cursor = name[:-2], ".1"
        if not base or not cursor:
            return None
        try:
            node, at = await self._walk(join(top, base))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return (node, at, cursor) if isinstance(node, Stream) else None

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        node, at = await self._walk(path)
        if isinstance(node, Graft):
            return await (await graft(node, at)).list(path, after, limit)
        if not isinstance(node, Dir):
            raise error(errno.ENOTDIR, path)
        children: dict[str, tuple[Node, Entry | None]] = {}
        if node.each is not None:
            prefix, _, suffix = node.slot
            children = {f"{prefix}{e.key}{suffix}": (node.each, e) for e in await node.keys(at, after, limit)}
        children |= {name: (child, None) for name, child in node.fixed.items()}
        least, found = after.removesuffix(".1"), list[Stat]()
        for name in sorted(children):
            if len(found) < limit and name >= least:
                listed = await self._listed(at, node, name, *children[name])
                found += [st for st in listed if st.name > after]
        return sorted(found, key=lambda st: st.name)[:limit]

    async def _listed(self, at: At, top: Dir, name: str, child: Node, entry: Entry | None) -> Sequence[Stat]:
        params = {**at.params, top.slot[1]: entry.key} if entry else dict(at.params)
        here = self._at(join(at.path, name), params, until=_within(at.until, top, name))
        try:
            stats = [await self._stat(child, here, entry.info if entry else None)]
        except FileNotFoundError:  # removed since it was listed
            return ()
        except OSError:
            if not isinstance(child, Graft):
                raise
            return [unreachable(here.path)]
        if isinstance(child, Stream) and len(heads := await (await child.log(here)).heads()) > 1:
            older = At(join(at.path, f"{name}.1"), params, self._principal)
            stats.append(self._stat_log(child, older, heads[0]))
        return stats

    # -- open ------------------------------------------------------------------------------------------------------

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        if _may_be_twin(path) and (found := await self._stream(path)) is not None:
            node, at, cursor = found
            self._permit(node, path, mode)
            return await open_twin(node, cursor, self._opening(at, mode, node))
        leaf, at = await self._walk(path, want)
        if isinstance(leaf, Graft):
            return await (await graft(leaf, at)).open(path, mode, want=want)
        if isinstance(leaf, Dir):
            raise error(errno.EISDIR, path)
        self._permit(leaf, path, mode)
        return await open_leaf(leaf, self._opening(at, mode, leaf), is_new=await self._is_new(path))

    def _permit(self, node: Leaf, path: Path, mode: Mode) -> None:
        if Mode.READ in mode and not node.is_readable:
            raise error(errno.EACCES, path, "write-only")
        if Mode.WRITE in mode and not node.may_write(self._principal):
            raise error(errno.EACCES, path, "for the operator to write" if node.is_writable else "read-only")

    def _opening(self, at: At, mode: Mode, node: Leaf) -> Opening:
        release = self._hold(at.path) if at.path in self._pending else None
        return Opening(at, mode, self._errors, self._limits, release, node.pays)

    def _hold(self, path: Path) -> Callable[[], None]:
        """Keep the created name *path* visible until the returned function has run."""
        self._pending[path] = self._pending.get(path, 0) + 1

        def release() -> None:
            left = self._pending.get(path, 0) - 1
            self._pending.update({path: left}) if left > 0 else self._pending.pop(path, None)

        return release

    # -- changing names --------------------------------------------------------------------------------------------

    async def _parent(self, path: Path, want: Want) -> tuple[Dir, At]:
        top, name = split(path)
        node, at = await self._walk(top, want)
        if not isinstance(node, Dir):
            raise error(errno.ENOTDIR, path)
        key = node.key_of(name)
        params = {**at.params, node.slot[1]: key} if key is not None else dict(at.params)
        return node, self._at(path, params, want)

    async def _exists(self, path: Path) -> bool:
        try:
            await self._walk(path)
        except FileNotFoundError:
            return False
        return True

    def _may_change(self, top: Dir, at: At) -> None:
        name = split(at.path)[1]
        check_name(name, at.path)
        if not top.may_change(self._principal):
            raise error(errno.EACCES, at.path, "names here are fixed")
        if top.key_of(name) is None or name in top.fixed:
            want = top.each.name if top.each else "no new names"
            raise error(errno.EINVAL, at.path, f"name {name!r}: want {want}")

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        if (below := await self._below(path, want)) is not None:
            return await below.create(path, mode, want=want)
        top, at = await self._parent(path, want)
        if await self._exists(path):
            if want.exclusive:
                raise error(errno.EEXIST, path)
            return await self.open(path, mode, want=want)
        if self._is_scratch(top, split(path)[1]):
            self._scratches.keep(self._principal, path, b"")
            return await self.open(path, mode, want=want)
        if top.create is None:
            raise error(errno.EACCES, path, "no file can be created here")
        self._may_change(top, at)
        await top.create(at)
        release = self._hold(path) if isinstance(top.each, File) else None
        try:
            return await self.open(path, mode, want=want)
        finally:
            if release is not None:
                release()

    def _is_scratch(self, top: Dir, name: str) -> bool:
        files = [*top.entries, top.each] if top.each else top.entries
        fits = _SCRATCH.match(name) and not isinstance(top.each, Data)
        return bool(fits) and any(isinstance(e, File) and e.may_write(self._principal) for e in files)

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> None:
        if (below := await self._below(path, want)) is not None:
            await below.mkdir(path, want=want)
            return
        top, at = await self._parent(path, want)
        if await self._exists(path):
            raise error(errno.EEXIST, path)
        if top.mkdir is None:
            raise error(errno.EACCES, path, "no directory can be made here")
        self._may_change(top, at)
        await top.mkdir(at)

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> None:
        node, at = await self._walk(path, want)
        if isinstance(node, Graft):
            await (await graft(node, at)).remove(path, want=want)
            return
        if path in self._scratch:
            del self._scratch[path]
        elif await self._is_new(path):
            del self._pending[path]
        elif node.remove is None or (node.operator and not self._principal.is_operator):
            raise error(errno.EACCES, path, "cannot be removed")
        else:
            await node.remove(at)
            self._pending.pop(path, None)

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        below, target_below = await self._below(old, want), await self._below(new, want)
        if below is not None and target_below is not None and below.root == target_below.root:
            await below.rename(old, new, want=want)
            return
        if below is not None or target_below is not None:
            raise error(errno.EXDEV, new)
        await self._walk(old)
        exists = await self._exists(new)
        if exists and want.exclusive:
            raise error(errno.EEXIST, new)
        if old in self._scratch:
            await self._rename_scratch(old, new, want)
            return
        source, old_at = await self._parent(old, want)
        target, new_at = await self._parent(new, want)
        if source.rename is None or not source.may_change(self._principal):
            raise error(errno.EACCES, old, "cannot be renamed")
        self._may_change(target, new_at)
        if old != new:
            await source.rename(old_at, new_at)

    async def _rename_scratch(self, old: Path, new: Path, want: Want) -> None:
        node, at = await self._walk(new, want)
        if not isinstance(node, File) or node.write is None or not node.may_write(self._principal):
            raise error(errno.EACCES, new, "cannot be replaced")
        await node.write(at, self._scratch[old])
        self._scratch.pop(old, None)
