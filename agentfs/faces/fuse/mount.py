"""Serving a tree at a mount point from start to end through the pyfuse3 binding.

The serving process never touches its own mount; how operations work is in the core.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from agentfs.errors import error
from agentfs.faces.fuse.binding import Operations
from agentfs.faces.fuse.core import Core, Usage
from agentfs.faces.fuse.place import FSNAME, Mounted, topmost
from agentfs.faces.fuse.removal import clear, prepare
from agentfs.service import FileService

_SPARE_TASKS: Final = 256
_serving: set[str] = set()


def _devices() -> set[int]:
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            if fd.readlink() == Path("/dev/fuse"):
                found.add(int(fd.name))
        except FileNotFoundError:
            continue
    return found


@contextmanager
def _session(operations: Operations, place: str, *, subtype: str, allow_other: bool) -> Iterator[Callable[[], bool]]:
    """A kernel session for the body; gives a function that tells whether the kernel still is at its other end."""
    if _serving:
        raise error(errno.EBUSY, place, f"this process already serves {', '.join(_serving)}")
    options = {"default_permissions", f"fsname={FSNAME}", f"subtype={subtype}"}
    before = _devices()
    try:
        pyfuse3.init(operations, place, options | ({"allow_other"} if allow_other else set()))
    except RuntimeError as exc:
        raise error(errno.EACCES, place, f"{exc}; is /dev/fuse open to this user?") from exc
    _serving.add(place)
    poller = select.poll()
    for fd in _devices() - before:
        os.set_blocking(fd, False)
        poller.register(fd, 0)
    try:
        yield lambda: not poller.poll(0)
    finally:
        pyfuse3.close(unmount=True)
        _serving.discard(place)


async def _announce(ready: trio.Event, place: str, task_status: trio.TaskStatus[str]) -> None:
    await ready.wait()
    task_status.started(place)


async def serve(
    service: FileService,
    at: str | os.PathLike[str],
    *,
    usage: Usage | None = None,
    allow_other: bool | None = None,
    max_blocked: int = 4096,
    subtype: str = FSNAME,
    lent: tuple[int, int] | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve *service* at the directory *at* until cancelled (then unmounts) or unmounted from outside.

    *usage* gives bytes used and in all, for statfs. *allow_other* (default: when root) lets other users reach the
    mount, where the modes then refuse them. *subtype* tells kinds of mounts apart in the mount table. *lent*: the uid
    and gid whose the views of agents are, when not ours.
    Started with the real path once the kernel talks to us.
    Raises what `prepare` raises; EBUSY for a second mount in this process; EACCES when mounting is not allowed.
    """
    place = await prepare(at)
    is_shared = os.geteuid() == 0 if allow_other is None else allow_other
    ready = trio.Event()
    core = Core(service, usage=usage, max_blocked=max_blocked, lent=lent)
    mounted: Mounted | None = None
    try:
        with _session(Operations(core, ready.set), place, subtype=subtype, allow_other=is_shared) as is_connected:
            mounted = topmost(place)
            async with trio.open_nursery() as nursery:
                core.start(nursery, is_connected)
                nursery.start_soon(_announce, ready, place, task_status)
                await pyfuse3.main(max_tasks=max_blocked + _SPARE_TASKS)
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await core.aclose()
            if mounted is not None:
                await clear(mounted)
