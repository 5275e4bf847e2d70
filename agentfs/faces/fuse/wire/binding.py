"""The binding that speaks with the kernel itself. Any number of mounts a process; nothing to be compiled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from agentfs.faces.fuse.binding import Options, Serving
from agentfs.faces.fuse.core import Core
from agentfs.faces.fuse.place import topmost
from agentfs.faces.fuse.removal import clear
from agentfs.faces.fuse.wire.device import Device
from agentfs.faces.fuse.wire.mounting import mounted
from agentfs.faces.fuse.wire.session import Session


class Wire:
    """See `Binding`."""

    name = "wire"
    has_aliases = True

    @asynccontextmanager
    async def connected(self, core: Core, place: str, options: Options) -> AsyncIterator[Serving]:
        """See `Binding`."""
        device = Device(await mounted(place, options))
        session = Session(core, device)

        async def serve(on_ready: Callable[[], None]) -> None:
            on_ready()
            await session.run()

        try:
            await session.greet()
        except BaseException:
            device.close()
            with trio.CancelScope(shield=True):
                if (ours := topmost(place)) is not None:  # nobody else would take it off
                    await clear(ours)
            raise
        try:
            yield serve
        finally:
            device.close()
