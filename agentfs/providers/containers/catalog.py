"""Every engine of sandboxes by its name, and those that this machine has. It makes no sandbox."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentfs.containers.port import ContainerProvider
from agentfs.providers.containers.bubblewrap import Bubblewrap
from agentfs.providers.containers.workdir import Owner

DOCKER_SOCKET: Final = "/var/run/docker.sock"
SOCKETS: Final = {"docker": DOCKER_SOCKET, "podman": "/run/podman/podman.sock"}
"""Where engines are looked for. Podman's may be under both names."""
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


def bubblewrap(name: str, place: Place) -> ContainerProvider:
    """Sandboxes without a daemon."""
    return Bubblewrap(place.top / name, place.owner, place.images)


def docker(
    name: str, place: Place, socket: str = DOCKER_SOCKET, *, pull: bool = False, network: str = "bridge"
) -> ContainerProvider:
    """Sandboxes of an engine that speaks Docker's protocol, by its *socket*."""
    from agentfs.providers.containers.docker import Docker  # its client takes a while to import: only who has an engine

    cloner = Bubblewrap(place.top / f".git-{name}", place.owner, place.images)
    return Docker(place.top / name, place.owner, place.runtime, socket, pull=pull, network=network, cloner=cloner)


async def found(place: Place) -> Mapping[str, ContainerProvider]:
    """What works on this machine, by name: the one without a daemon first."""
    asked = [("bubblewrap", bubblewrap("bubblewrap", place))]
    asked += [(name, docker(name, place, path)) for name, path in _engines()]
    able: dict[str, ContainerProvider] = {}
    for name, provider in asked:
        if await provider.health():
            await provider.aclose()
        else:
            able[name] = provider
    return able


def _engines() -> Sequence[tuple[str, str]]:
    """Name and socket of each engine that may be asked, under the first of its names."""
    able = [(name, path) for name, path in SOCKETS.items() if os.access(path, os.W_OK)]
    firsts = {os.path.realpath(path): (name, path) for name, path in reversed(able)}
    return [one for one in able if one in firsts.values()]
