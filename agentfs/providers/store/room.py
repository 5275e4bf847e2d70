"""How much room a store takes on its disk and how much is left.

Measures only; who is refused for it is `writer`'s to say.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from agentfs.ports import Append, Insert, Put, Unit

AMPLE: Final = 1 << 30
"""More than one group of units can ever take: with so much free nothing need be weighed."""
_PAGES: Final = 4 * 4096


def free_bytes(path: Path) -> int:
    """Bytes this user may still write to the disk of *path*."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def log_bytes(path: Path) -> int:
    """Bytes of the write-ahead log of the store at *path*."""
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size
    except FileNotFoundError:
        return 0


def weight(unit: Unit) -> int:
    """About how many bytes *unit* adds to the log: its values, and the pages each change may touch."""
    total = _PAGES * len(unit.changes)
    for change in unit.changes:
        if isinstance(change, Insert | Put):
            values = msgspec.structs.astuple(change.row)
            total += sum(len(value) for value in values if isinstance(value, str | bytes))
        elif isinstance(change, Append):
            total += len(change.doc)
    return total
