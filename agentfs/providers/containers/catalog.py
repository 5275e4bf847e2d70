"""Every engine of sandboxes by its name, and those that this machine has. It makes no sandbox."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentfs.containers.port import ContainerProvider
from agentfs.errors import error
from agentfs.providers.containers.bubblewrap import Bubblewrap
from agentfs.providers.containers.workdir import Owner

DOCKER_SOCKET: Final = "/var/run/docker.sock"
_NONROOT: Final = 65532  # as the images called distroless have it: nobody's uid but that of what is in sandboxes


@dataclass(frozen=True, slots=True)
class Place:
    """What every engine needs: where sessions' files and images are, whose they are, and the runtime's own name."""

    top: Path
    images: Path
    owner: Owner
    runtime: str


def owner() -> Owner:
    """Who code in sandboxes is: a user without any rights where root runs the runtime, else the runtime's own."""
    return Owner(_NONROOT, _NONROOT) if os.geteuid() == 0 else Owner(os.geteuid(), os.getegid())


def make(kind: str, place: Place, socket: str = "") -> ContainerProvider:
    """The engine of *kind*, which the configuration has checked. ENOENT: its package is missing."""
    if kind == "docker":
        try:
            from agentfs.providers.containers.docker import Docker
        except ImportError as exc:
            raise error(errno.ENOENT, detail=f"docker: install agentfs[docker]: {exc.name} is missing") from exc
        return Docker(place.top / kind, place.owner, place.runtime, socket or DOCKER_SOCKET)
    return Bubblewrap(place.top, place.owner, place.images)


async def found(place: Place) -> Mapping[str, ContainerProvider]:
    """What works on this machine, by name: the one without a daemon first."""
    able: dict[str, ContainerProvider] = {}
    for name in ("bubblewrap", "docker"):
        if name == "docker" and not os.access(DOCKER_SOCKET, os.W_OK):
            continue
        provider = make(name, place)
        if await provider.health():
            await provider.aclose()
        else:
            able[name] = provider
    return able
