"""`Grafted`: another service as it shows below a name of a tree. Which service that is, is the author's to say."""

from __future__ import annotations

import errno
import stat as _stat
from collections.abc import Sequence
from hashlib import blake2b

from msgspec.structs import replace

from agentfs.errors import error
from agentfs.service import FileHandle, FileService
from agentfs.tree.nodes import At, Dir, Graft, Node
from agentfs.types import NO_WANT, Kind, Mode, Path, Purse, Qid, Stat, Want, split
from agentfs.views import Below, ViewHandle


async def graft(node: Graft, at: At) -> Grafted:
    """The service of *node*, which is at *at*, for whoever asks."""
    return Grafted((await node.service(at)).attach(at.principal), at.path, pays=node.pays)


def has_graft(node: Node) -> bool:
    """Whether a graft is at or below *node*."""
    below = (*node.entries, *([node.each] if node.each else [])) if isinstance(node, Dir) else ()
    return isinstance(node, Graft) or any(has_graft(entry) for entry in below)


def unreachable(path: Path) -> Stat:
    """The entry of a graft whose service fails now: no reason for its directory to show nothing."""
    return Stat(split(path)[1], _stat.S_IFDIR | 0o555, qid=Qid(_number(path, None)), kind=Kind.DIR)


def _number(root: Path, number: int | None) -> int:
    """A qid's path of its own for each *number* below *root*, None for the root; below 2**63, as all of a tree's."""
    seed = f"{root}\0{'' if number is None else number}".encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(seed, digest_size=8).digest()) >> 1


class Grafted(Below):
    """*service* at *root*: paths and errors are the tree's, qids are no other file's of it."""

    def __init__(self, service: FileService, root: Path, *, pays: bool) -> None:
        super().__init__(service, root)
        self.root, self._pays = self._root, pays

    def _inner(self, path: Path) -> Path:
        return Path(path[len(self._root) + 1 :])

    def _refuse_root(self, path: Path) -> None:
        if path == self._root:
            raise error(errno.EACCES, path, "names here are fixed")

    def _own(self, found: Stat, path: Path) -> Stat:
        number = _number(self._root, None if path == self._root else found.qid.path)
        return replace(found, name=split(path)[1], qid=Qid(number, found.qid.version))

    async def stat(self, path: Path) -> Stat:
        return self._own(await super().stat(path), path)

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        return [self._own(entry, Path(f"{path}/{entry.name}")) for entry in await super().list(path, after, limit)]

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        return self._paying(await super().open(path, mode, want=want), path, want)

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        return self._paying(await super().create(path, mode, want=want), path, want)

    def _paying(self, handle: FileHandle, path: Path, want: Want) -> FileHandle:
        return handle if want.purse is None or self._pays else _PayingHandle(handle, path, want.purse)


class _PayingHandle(ViewHandle):
    """A handle on a budgeted mount: each write is one unit. EDQUOT, EPERM."""

    def __init__(self, handle: FileHandle, path: Path, purse: Purse) -> None:
        super().__init__(handle)
        self._path, self._purse = path, purse

    async def write(self, data: bytes, offset: int) -> int:
        async with self._purse.paying(self._path, data):
            return await self._handle.write(data, offset)

    def write_nowait(self, data: bytes, offset: int) -> bool:
        return False
