"""What an editor such as ``sed -i`` writes beside a document before it renames it onto that. It is never stored."""

from __future__ import annotations

from typing import Final

from agentfs.tree.nodes import At, Data
from agentfs.types import Path, Principal, split

MOST: Final = 16


class Scratches:
    """The scratch files of one tree; each principal's are nobody else's: they become what may be theirs."""

    def __init__(self) -> None:
        self._held: dict[Principal, dict[Path, bytes]] = {}

    def __len__(self) -> int:
        """How many principals have any."""
        return len(self._held)

    def of(self, principal: Principal) -> dict[Path, bytes]:
        """Those of *principal*."""
        return self._held.get(principal, {}) if self._held else {}

    def keep(self, principal: Principal, path: Path, value: bytes) -> None:
        """Put one; who never comes back for its own loses it to others in the end."""
        if principal not in self._held and len(self._held) >= MOST:
            del self._held[next(iter(self._held))]
        mine = self._held.setdefault(principal, {})
        if path not in mine and len(mine) >= MOST:
            del mine[next(iter(mine))]
        mine[path] = value

    def node(self, principal: Principal, path: Path, limit: int) -> Data:
        """The file at *path*, of at most *limit* bytes."""

        async def read(at: At) -> bytes:
            return self.of(principal).get(path, b"")

        async def write(at: At, value: bytes) -> None:
            self.keep(principal, path, value)

        async def remove(at: At) -> None:
            self.of(principal).pop(path, None)

        return Data(name=split(path)[1], read=read, write=write, remove=remove, limit=limit)
