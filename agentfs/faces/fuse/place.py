"""Mount points: the mount table, and making a place ready to be mounted on or free again.

No place is looked into before the mount table has said what is there; nothing of the tree that is served.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from agentfs.errors import error

FSNAME: Final = "agentfs"
_PROBE: Final = "import os, sys\ntry: os.statvfs(sys.argv[1])\nexcept OSError as e: sys.exit(e.errno)"
_PROBE_S: Final = 2.0
_DEAD: Final = (errno.ENOTCONN, errno.ECONNABORTED)


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


async def prepare(at: str | os.PathLike[str]) -> str:
    """The real path of *at*, made an empty directory nothing is mounted on; a dead mount of ours is replaced.

    EBUSY for a live mount, ENOTEMPTY, ENOTDIR, or what making the directory fails with.
    """
    place = _real_path(at)
    while (mounted := topmost(place)) is not None:
        if mounted.source != FSNAME or not await _is_dead(place):
            raise error(errno.EBUSY, place, f"{mounted.source} is mounted there")
        await unmount(place)
    _make_empty(Path(place))
    return place


def _real_path(at: str | os.PathLike[str]) -> str:
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


async def _is_dead(place: str) -> bool:
    """True when the server of the mount at *place* is gone; asked from another process, since a live one may hang."""
    argv = [sys.executable, "-I", "-S", "-c", _PROBE, place]
    probe = await trio.lowlevel.open_process(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with trio.move_on_after(_PROBE_S):
        await probe.wait()
    if probe.returncode is None:
        probe.kill()
    return probe.returncode in _DEAD


async def unmount(place: str) -> None:
    """Take what is mounted at *place* out of sight, in use or not. EBUSY with the tool's words if that fails."""
    is_root = os.geteuid() == 0
    argv = ["umount", "--lazy", "--internal-only", place] if is_root else ["fusermount3", "-u", "-z", place]
    done = await trio.run_process(argv, capture_stderr=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise error(errno.EBUSY, place, done.stderr.decode(errors="replace").strip())


async def clear(mounted: Mounted) -> None:
    """Unmount exactly *mounted* if it is still there: a severed connection stays mounted."""
    if mounted in mounts():
        await unmount(mounted.at)
