"""``agentfs mount --token``: a mount of its own that shows what one token opens over HTTP, in a process of its own.

The token is handed to that process on its standard input: it is in no argument list, no environment and no file.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentfs.cli import mounts
from agentfs.cli.start import POLL_SECONDS, Foreground, abandon, detached, ready_place
from agentfs.client import Trust, found
from agentfs.config import Config
from agentfs.errors import error
from agentfs.faces.fuse.place import Mounted
from agentfs.state import StateDir

SUBTYPE: Final = "agentfs-token"
"""What the mount table calls such a mount: ``fuse.agentfs-token``."""


@dataclass(frozen=True, slots=True)
class Share:
    """One such mount: what is shown, where, the seconds it may take. Detached unless there is a *foreground*."""

    url: str
    token: str
    place: Path
    state: StateDir
    patience: float = 60.0
    foreground: Foreground | None = None
    trust: Trust = field(default_factory=Trust)
    binding: str = "auto"


def wanted(url: str | None, token: str | None, env: Mapping[str, str]) -> str | None:
    """The token to mount with, or None when a runtime is to be started. EINVAL for a URL without a token.

    The environment's token counts only for a URL that was named: a program's own must not be mounted by accident.
    """
    chosen = token or (env.get("AGENTFS_TOKEN") if url else None)
    if chosen is None and (url is not None or token is not None):
        raise error(errno.EINVAL, "flag token", "want a token: --token, or AGENTFS_TOKEN beside --url")
    return chosen


def shared(
    url: str | None, token: str, config: Config, patience: float, foreground: Foreground | None, **others: object
) -> Share:
    """The mount that was asked for. EINVAL without a place or with *others* (a runtime's); ENOENT without a URL."""
    for name, value in others.items():
        if value is not None:
            raise error(errno.EINVAL, f"flag {name}", "is for a runtime that is started; --token starts none")
    if config.mount is None:
        raise error(errno.EINVAL, "flag fuse", "--token is for a mount")
    state = StateDir(config.state)
    running = state.running() if url is None else None
    if url is None and running is None:
        raise error(errno.ENOENT, str(state.runtime), "no runtime has this state directory; name one with --url")
    trust = found(os.environ, None if url else state.ca)
    at = url or (running.url if running else "")
    return Share(at, token, config.mount, state, patience, foreground, trust, config.fuse_binding)


def start(share: Share, say: Callable[[str], None]) -> subprocess.Popen[bytes]:
    """Mount, and return when it answers. EACCES for a bad token, ENOTCONN; EBUSY ... for the place; EIO, ETIMEDOUT."""
    from agentfs.cli.opened import check  # here: only who mounts so waits for what a client needs

    check(share.url, share.token, share.trust)
    ready_place(share.place, say)
    child, since = _spawn(share)
    try:
        _await(share, child, since)
    except BaseException:
        abandon(child)
        mounts.clear(share.place)
        raise
    return child


def _spawn(share: Share) -> tuple[subprocess.Popen[bytes], int | None]:
    command = [sys.executable, "-m", "agentfs.cli", "serve-token", f"--url={share.url}", f"--mount={share.place}"]
    command.append(f"--fuse-binding={share.binding}")
    named = {"ca": share.trust.ca, "cert": share.trust.cert, "key": share.trust.key}
    command += [f"--{name}={file}" for name, file in named.items() if file]
    told, telling = os.pipe()
    try:
        os.write(telling, f"{share.token}\n".encode())  # far less than a pipe holds
        if share.foreground:
            return share.foreground.spawn(command, told), None
        share.state.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return detached(share.state, command, told)
    finally:
        os.close(telling)
        os.close(told)


def _await(share: Share, child: subprocess.Popen[bytes], since: int | None) -> None:
    deadline = time.monotonic() + share.patience
    while time.monotonic() < deadline:
        found = mounts.entry(share.place)
        if child.poll() is not None:
            raise error(errno.EIO, str(share.place), _with_log(share, "the mount's process ended", since))
        if found is not None and is_share(found) and mounts.probe(share.place) == 0:
            return
        time.sleep(POLL_SECONDS)
    text = f"the mount does not answer after {share.patience:.0f} s"
    raise error(errno.ETIMEDOUT, str(share.place), _with_log(share, text, since))


def _with_log(share: Share, text: str, since: int | None) -> str:
    return text if since is None else f"{text}\n{share.state.tail(since)}"


def is_share(found: Mounted) -> bool:
    """True for a mount that shows what a token opens."""
    return found.type == f"fuse.{SUBTYPE}"


def stop(place: Path, say: Callable[[str], None]) -> bool:
    """Take such a mount off *place*; its process then ends by itself. Whether there was one. EBUSY."""
    found = mounts.entry(place)
    if found is None or not is_share(found):
        return False
    mounts.take_off(found)
    say(f"unmounted {place}")
    return True
