"""Serving a tree at a mount point from start to end, through whichever binding.

The serving process never touches its own mount; how operations work is in the core.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from typing import TypeAlias

import trio

from agentfs.errors import error
from agentfs.faces.fuse.binding import Binding, Options, Serving
from agentfs.faces.fuse.core import Core, Usage
from agentfs.faces.fuse.place import FSNAME, Mounted, topmost
from agentfs.faces.fuse.removal import clear, prepare
from agentfs.faces.fuse.wire.binding import Wire
from agentfs.service import FileService
from agentfs.types import Facet

log = logging.getLogger(__name__)

Changes: TypeAlias = Callable[[Callable[[Facet], None]], AbstractContextManager[None]]
"""For its body, its argument is called at each change with its facet, before whoever made it goes on."""


def _bindings(name: str) -> Iterator[Binding]:
    """The bindings to try for *name*, each imported when it is its turn: pyfuse3 need not be installed."""
    if name in ("auto", "wire"):
        yield Wire()
    if name in ("auto", "pyfuse3"):
        try:
            from agentfs.faces.fuse.pyfuse import Pyfuse
        except ImportError as exc:
            raise error(errno.ENOENT, detail=f"binding pyfuse3: {exc}; install agentfs[fuse]") from exc
        yield Pyfuse()


async def serve(
    service: FileService,
    at: str | os.PathLike[str],
    *,
    usage: Usage | None = None,
    allow_other: bool | None = None,
    max_blocked: int = 4096,
    subtype: str = FSNAME,
    lent: tuple[int, int] | None = None,
    binding: str = "auto",
    changes: Changes | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve *service* at the directory *at* until cancelled (then unmounts) or unmounted from outside.

    *usage* gives bytes used and in all, for statfs. *allow_other* (default: when root) lets other users reach the
    mount, where the modes then refuse them. *subtype* tells kinds of mounts apart in the mount table. *lent*: the uid
    and gid whose the views of agents are, when not ours. *binding*: ``wire``, ``pyfuse3``, or ``auto``: the first of
    them that works. *changes* tells of changes, so that the kernel may keep what holds until then.
    Started with the real path once the kernel talks to us.
    Raises what `prepare` raises; EBUSY for a second mount in this process by pyfuse3; EACCES when mounting is not
    allowed.
    """
    place = await prepare(at)
    options = Options(subtype, os.geteuid() == 0 if allow_other is None else allow_other)

    def make(has_aliases: bool) -> Core:
        keeps = has_aliases and changes is not None
        return Core(service, usage=usage, max_blocked=max_blocked, lent=lent, aliases=has_aliases, keeps=keeps)

    async with AsyncExitStack() as stack:
        core, serving = await _connected(stack, make, binding, place, options)
        if changes is not None:
            stack.enter_context(changes(core.keeping.changed))
        async with trio.open_nursery() as nursery:
            core.start(nursery)
            await serving(lambda: task_status.started(place))
            nursery.cancel_scope.cancel()


async def _connected(
    stack: AsyncExitStack, make: Callable[[bool], Core], name: str, place: str, options: Options
) -> tuple[Core, Serving]:
    for binding in _bindings(name):
        core = make(binding.has_aliases)
        try:
            serving = await stack.enter_async_context(_mounted(binding, core, place, options))
        except OSError as exc:
            if name != "auto" or binding.name == "pyfuse3":
                raise
            log.warning("binding %s does not work here, pyfuse3 is used: %s", binding.name, exc)
        else:
            return core, serving
    raise error(errno.EINVAL, detail=f"binding {name!r}: want auto, wire or pyfuse3")


@asynccontextmanager
async def _mounted(binding: Binding, core: Core, place: str, options: Options) -> AsyncIterator[Serving]:
    """*binding*'s connection; at its end all that was open is closed, and nothing is mounted any more."""
    mounted: Mounted | None = None
    try:
        async with binding.connected(core, place, options) as serving:
            mounted = topmost(place)
            yield serving
    finally:
        with trio.CancelScope(shield=True):
            await core.aclose()
            if mounted is not None:
                await clear(mounted)
