"""Mount points: whether something is mounted there, whether it answers, and taking off what is dead.

Nothing here touches a mount from this process: a dead or stuck one would take it along.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from agentfs.errors import error
from agentfs.faces.fuse.place import FSNAME, Mounted, claim, topmost

_PROBE: Final = "import os, sys\ntry: getattr(os, sys.argv[2])(sys.argv[1])\nexcept OSError as exc: sys.exit(exc.errno)"
DEPTH: Final = 8  # mounts on top of each other that are taken off
DEVICE: Final = "/dev/fuse"


def entry(place: Path) -> Mounted | None:
    """What is mounted exactly at *place*, or where it links to; None when nothing is."""
    at = os.path.join(os.path.realpath(place.parent), place.name)  # noqa: PTH118 - the place itself is not resolved
    return topmost(at) or topmost(os.path.realpath(place))


def probe(place: Path, seconds: float = 5.0, *, ask: str = "stat") -> int | None:
    """Stat *place* in another process: 0, its errno, or None when there is no answer in *seconds*.

    *ask* ``statvfs``: of the mount, not of its root directory, which may be another machine's to answer for.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _PROBE, place, ask],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()  # not waited for: a process inside a stuck mount may not even be killed
        return None


def clear(place: Path) -> int:
    """Take off every mount of ours at *place* whose server is gone; how many. EBUSY when one cannot be taken off."""
    for count in range(DEPTH):
        found = entry(place)
        if found is None or found.source != FSNAME or probe(place, ask="statvfs") != errno.ENOTCONN:
            return count
        take_off(found)
    raise error(errno.EBUSY, str(place), f"more than {DEPTH} dead mounts on top of each other")


def make_room(place: Path) -> int:
    """Make *place* an empty directory to mount on, dead mounts of ours taken off first; how many those were.

    EBUSY when something else is mounted there, ENOTEMPTY or ENOTDIR when it holds anything else.
    """
    count = clear(place)
    if entry(place) is None:
        claim(place)
    else:
        import trio

        from agentfs.faces.fuse.removal import prepare  # here: hardly ever is something left to be looked at again

        trio.run(prepare, place)
    return count


def take_off(mounted: Mounted) -> None:
    """Take *mounted* out of sight, in use or not. EBUSY with the tool's words if that fails."""
    import trio

    from agentfs.faces.fuse.removal import unmount  # here: most commands find nothing to be taken off

    trio.run(unmount, mounted.at)


def check_fuse() -> None:
    """That this user can mount: EACCES, ENOENT with one line on what to do."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR))
    except FileNotFoundError as exc:
        raise error(errno.ENOENT, DEVICE, "this machine has no FUSE: run `modprobe fuse` or use --no-fuse") from exc
    except OSError as exc:
        advice = f"run as root, or let root run `chmod 666 {DEVICE}` once, or use --no-fuse"
        raise error(errno.EACCES, DEVICE, advice) from exc
    if os.geteuid() and not shutil.which("fusermount3"):
        raise error(errno.ENOENT, "fusermount3", "install the package fuse3 or use --no-fuse")


def link(name: Path, place: Path) -> bool:
    """Make *name* a symbolic link to *place*; False when *name* is something else, which is left alone."""
    if not name.is_symlink() and name.exists():
        return False
    if name.is_symlink() and str(name.readlink()) == str(place):
        return True
    draft = name.with_name(f".{name.name}.{os.getpid()}")
    draft.symlink_to(place)
    draft.replace(name)
    return True


def unlink(name: Path, place: Path) -> bool:
    """Remove *name* when it is a symbolic link to *place*; whether it was."""
    with contextlib.suppress(OSError):
        if str(name.readlink()) == str(place):
            name.unlink()
            return True
    return False
