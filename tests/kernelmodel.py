"""A kernel that keeps as much of a mount as it may: names, attributes and listings, until it is told to ask anew."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Collection

from agentfs.faces.fuse.answers import Attr
from agentfs.faces.fuse.core import Core


class Kernel:
    """What it keeps, by number; what it looks at, by path."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.names: dict[tuple[int, bytes], int] = {}
        self.attrs: dict[int, Attr] = {}
        self.listings: dict[int, tuple[int, list[str]]] = {}
        self.lookups: dict[int, int] = {}
        core.keeping.recall = self._recall

    def _recall(self, nodes: Collection[int], names: bool) -> None:
        for node in nodes:
            self.attrs.pop(node, None)
        if names:
            self.names.clear()

    def _put(self, parent: int, name: bytes, attr: Attr) -> None:
        self.lookups[attr.node] = self.lookups.get(attr.node, 0) + 1
        if attr.keeps_name:
            self.names[parent, name] = attr.node
        else:
            self.names.pop((parent, name), None)
        self._keep(attr)

    def _keep(self, attr: Attr) -> None:
        if attr.keeps:
            self.attrs[attr.node] = attr
        else:
            self.attrs.pop(attr.node, None)

    async def walk(self, path: str) -> int:
        """The number of *path*. ENOENT, ENOTDIR."""
        ino = 1
        for name in path.encode().split(b"/"):
            if (ino, name) not in self.names:
                attr = await self.core.lookup(ino, name)
                self._put(ino, name, attr)
                ino = attr.node
            else:
                ino = self.names[ino, name]
        return ino

    async def _stat(self, ino: int) -> Attr:
        if ino not in self.attrs:
            attr = await self.core.getattr(ino)
            self._keep(attr)
            return attr
        return self.attrs[ino]

    async def look(self, path: str, chance: random.Random) -> tuple[object, ...]:
        """The mode of *path*, with its names, or with its size and what is in it."""
        ino = await self.walk(path)
        attr = await self._stat(ino)
        if stat.S_ISDIR(attr.mode):
            return attr.mode & 0o700, await self._list(ino, is_lookup=chance.random() < 0.5)
        opened = await self.core.open(ino, os.O_RDONLY, 0)
        try:
            return attr.mode & 0o700, attr.size, await self.core.read(opened.fh, 1 << 20, 0)
        finally:
            await self.core.release(opened.fh)

    async def _list(self, ino: int, *, is_lookup: bool) -> list[str]:
        directories, found = self.core.directories, list[str]()
        fh, keeps = await directories.open(ino, 0)
        mtime_ns = (await self._stat(ino)).mtime_ns
        if keeps and self.listings.get(ino, (None, ()))[0] == mtime_ns:
            directories.close(fh)
            return self.listings[ino][1]

        def emit(name: bytes, attr: Attr, following: int) -> bool:
            found.append(name.decode())
            if is_lookup and attr.node:
                self._put(ino, name, attr)
            return True

        await directories.read(fh, 0, emit, is_lookup=is_lookup)
        directories.close(fh)
        self.listings.pop(ino, None)
        if keeps:
            self.listings[ino] = mtime_ns, found
        return found

    async def write(self, path: str, data: bytes) -> None:
        """Create or replace *path*."""
        top, _, name = path.rpartition("/")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        opened, attr = await self.core.create(await self.walk(top), name.encode(), flags, 0)
        self.lookups[attr.node] = self.lookups.get(attr.node, 0) + 1
        await self.core.write(opened.fh, data, 0)
        await self.core.flush(opened.fh)
        await self.core.release(opened.fh)

    async def truncate(self, path: str, size: int) -> None:
        """Cut or lengthen *path*."""
        ino = await self.walk(path)
        await self.core.setattr(ino, None, size=size)
        self.attrs.pop(ino, None)

    async def remove(self, path: str) -> None:
        """Unlink *path*."""
        top, _, name = path.rpartition("/")
        parent = await self.walk(top)
        await self.core.remove(parent, name.encode(), 0)
        self.names.pop((parent, name.encode()), None)

    async def rename(self, old: str, new: str) -> None:
        """Move *old* onto *new*, which is beside it."""
        top, _, name = old.rpartition("/")
        parent, other = await self.walk(top), new.rpartition("/")[2]
        await self.core.rename(parent, name.encode(), parent, other.encode(), 0)
        for gone in (name, other):
            self.names.pop((parent, gone.encode()), None)

    def forget(self, inos: Collection[int]) -> None:
        """Know nothing of *inos* any more."""
        self.names = {key: ino for key, ino in self.names.items() if ino not in inos}
        for ino in inos:
            self.attrs.pop(ino, None)
            self.listings.pop(ino, None)
            self.core.forget(ino, self.lookups.pop(ino))
