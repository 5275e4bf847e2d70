"""Taking mounts of ours off: dead ones where a new one is to be, and one that is to go. It makes no mount."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import Final

import trio

from agentfs.errors import error
from agentfs.faces.fuse.place import FSNAME, Mounted, claim, mounts, real_path, topmost

_PROBE: Final = "import os, sys\ntry: os.statvfs(sys.argv[1])\nexcept OSError as e: sys.exit(e.errno)"
_PROBE_S: Final = 2.0
_DEAD: Final = (errno.ENOTCONN, errno.ECONNABORTED)


async def prepare(at: str | os.PathLike[str]) -> str:
    """The real path of *at*, made an empty directory nothing is mounted on; a dead mount of ours is replaced.

    EBUSY for a live mount, ENOTEMPTY, ENOTDIR, or what making the directory fails with.
    """
    place = real_path(at)
    while (mounted := topmost(place)) is not None and mounted.source == FSNAME and await _is_dead(place):
        await unmount(place)
    return claim(place)


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
