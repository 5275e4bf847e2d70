"""Stopping the runtime of a state directory and taking away what it left: mount, link, ``runtime.json``.

It stops only the process that holds the state directory's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agentfs.cli import mounts, process
from agentfs.config import Config
from agentfs.state import StateDir


def stop(config: Config, say: Callable[[str], None], link: Path | None = None) -> bool:
    """Stop the runtime of *config*'s state directory; whether one ran. Says each thing done; safe to repeat.

    Waits for running ticks as long as the runtime itself does, then kills. Dead mounts it left, here or in an
    earlier life, are taken off; a mount that answers is another runtime's and stays. EPERM, EBUSY.
    """
    state = StateDir(config.state)
    if not state.path.is_dir():
        say(f"nothing is running: there is no state directory {state.path}")
        _sweep({config.mount}, say, link)
        return False
    with process.turn(state.turn, patience=90):
        places = {config.mount, _left(state)}  # read now: a runtime that ends takes runtime.json along
        done = process.end(state.lock, config.drain_seconds + 10.0)
        say(done or f"nothing is running in {state.path}")
        _sweep(places, say, link)
        state.forget()
    return bool(done)


def _left(state: StateDir) -> Path | None:
    running = state.running()
    return Path(running.mount) if running and running.mount else None


def _sweep(places: set[Path | None], say: Callable[[str], None], link: Path | None) -> None:
    for place in sorted(place for place in places if place):
        if mounts.clear(place):
            say(f"took a dead mount off {place}")
        if link and mounts.entry(place) is None and mounts.unlink(link, place):
            say(f"removed the link {link}")
