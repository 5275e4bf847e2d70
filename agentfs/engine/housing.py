"""What the engine is told of the sandboxes of one runtime: who makes them, and what is inside. It runs nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from agentfs.containers.port import Inside, Offer

Prepare = Callable[[str], Awaitable[Inside]]
"""What every sandbox of an agent gets."""
Ready = Callable[[], Awaitable[None]]
"""Returns once what a sandbox is given is there: no code runs before."""


async def bare(agent: str) -> Inside:
    """Nothing of the agent's."""
    return Inside()


async def at_once() -> None:
    """Nothing is waited for."""


@dataclass(frozen=True, slots=True)
class Housing:
    """The providers of sandboxes by name, the first one first, and what every sandbox of an agent gets."""

    offers: Mapping[str, Offer]
    inside: Prepare = bare
    ready: Ready = at_once
