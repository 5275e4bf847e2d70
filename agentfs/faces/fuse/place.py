"""Mount points: the mount table, and a free place made ready to be mounted on.

No place is looked into before the mount table has said what is there; what is mounted stays.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentfs.errors import error

FSNAME: Final = "agentfs"


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of the mount table; ``type`` is the file system's, ``fuse.SUBTYPE`` for one of ours."""

    id: int
    at: str
    source: str
    type: str


def mounts() -> list[Mounted]:
    """The mount table as this process sees it, lowest first. Touches no mount."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        kind, source = fields[fields.index(b"-") + 1 :][:2]
        found.append(Mounted(int(fields[0]), _unescape(fields[4]), _unescape(source), _unescape(kind)))
    return found


def _unescape(field: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), field))


def topmost(at: str) -> Mounted | None:
    """What is mounted at the real path *at*, the uppermost if several are."""
    return next((m for m in reversed(mounts()) if m.at == at), None)


def claim(at: str | os.PathLike[str]) -> str:
    """The real path of *at*, made an empty directory.

    EBUSY for anything that is mounted there, ENOTEMPTY, ENOTDIR, or what making the directory fails with.
    """
    place = real_path(at)
    if (mounted := topmost(place)) is not None:
        raise error(errno.EBUSY, place, f"{mounted.source} is mounted there")
    _make_empty(Path(place))
    return place


def real_path(at: str | os.PathLike[str]) -> str:
    """Where a mount on *at* would be: links before its last name are followed, and the last where nothing is on it."""
    path = Path(at).absolute()
    if path.name == "..":
        path = path.resolve()
    place = path.parent.resolve() / path.name
    if topmost(str(place)) is None and place.is_symlink():
        place = place.resolve()
    return str(place)


def _make_empty(place: Path) -> None:
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise error(errno.ENOTDIR, str(place), "a mount point must be a directory") from None
    if any(place.iterdir()):
        raise error(errno.ENOTEMPTY, str(place), "a mount point must be empty")
