"""`Owners`: whose each node of a mount is, and what its mode shows: only an owner has access, group and others never.

Where root serves, code in sandboxes is another user: the views of agents are that user's.
"""

from __future__ import annotations

import os
import stat as _stat
from typing import Final

from agentfs.types import Path

VIEWS: Final = Path("views")


class Owners:
    """*lent*: the uid and gid whose the views are; None: ours, like all else."""

    def __init__(self, lent: tuple[int, int] | None = None) -> None:
        self._own = (os.geteuid(), os.getegid())
        self._lent = lent if lent != self._own else None

    def of(self, path: Path) -> tuple[int, int]:
        """The uid and gid of the node at *path*."""
        is_lent = self._lent is not None and path.startswith(f"{VIEWS}/")
        return self._lent if is_lent and self._lent else self._own


def shown(mode: int) -> int:
    """*mode* without what group and others might do."""
    mode &= ~0o077
    return mode | 0o100 if _stat.S_ISDIR(mode) and mode & 0o400 else mode
