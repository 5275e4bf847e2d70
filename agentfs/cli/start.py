"""Starting a runtime and waiting until it answers, detached or in the foreground.

It decides nothing about options: they are passed on to ``agentfs serve`` as they were given.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from agentfs.cli import mounts, phrase, process
from agentfs.client import Trust, found
from agentfs.config import Config
from agentfs.errors import error, from_wire
from agentfs.state import Running, StateDir

POLL_SECONDS: Final = 0.05


class Foreground:
    """Within, the signals that ask this process to end reach its runtime instead, also while that is starting."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._pending: list[int] = []
        self._is_spawning = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Foreground:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_: object) -> None:
        for number, action in self._before.items():
            signal.signal(number, action)

    def spawn(
        self, command: Sequence[str], stdin: int = subprocess.DEVNULL, passed: Sequence[int] = ()
    ) -> subprocess.Popen[bytes]:
        """The runtime's process, on this process's standard output and error; at most once. It has *passed* too."""
        self._is_spawning = True
        self._child = subprocess.Popen(command, stdin=stdin, start_new_session=True, pass_fds=passed)
        for number in self._pending:
            self._child.send_signal(number)
        return self._child

    def _asked(self, number: int, _: object) -> None:
        if self._child:
            self._child.send_signal(number)
        elif self._is_spawning:
            self._pending.append(number)
        else:
            raise KeyboardInterrupt


@dataclass(frozen=True, slots=True)
class Start:
    """One start: the checked options, the same as words for ``agentfs serve``, and the seconds it may take.

    Detached unless there is a *foreground*.
    """

    config: Config
    words: Sequence[str]
    patience: float = 60.0
    foreground: Foreground | None = None

    @property
    def state(self) -> StateDir:
        """The state directory."""
        return StateDir(self.config.state)


@dataclass(frozen=True, slots=True)
class Started:
    """A ready runtime, and its process when this call started it."""

    running: Running
    child: subprocess.Popen[bytes] | None = None


def start(plan: Start, say: Callable[[str], None]) -> Started:
    """A ready runtime with *plan*'s options: the one that runs already, or a new one.

    EBUSY when one runs with another mount, store or listen address; EIO with the end of its log when a new one
    ends before it is ready; ETIMEDOUT, and it is ended, when it is not ready in time. Killed half-way, it leaves a
    runtime that can be used or stopped.
    """
    state = plan.state
    state.prepare()
    with process.turn(state.turn, plan.patience):
        pid = process.holder(state.lock)
        if pid is not None:
            return Started(_await(plan, pid, lambda: process.holder(state.lock) == pid))
        state.forget()
        if plan.config.mount is not None:
            ready_place(plan.config.mount, say)
        return _launch(plan)


def ready_place(place: Path, say: Callable[[str], None]) -> None:
    """Make *place* ready to be mounted on, and say what was in the way. EACCES, EBUSY, ENOENT, ENOTEMPTY, ENOTDIR."""
    mounts.check_fuse()
    if mounts.make_room(place):
        say(f"took a dead mount off {place}")


def _launch(plan: Start) -> Started:
    if plan.config.tls_cert:
        from agentfs.faces.http import tls  # here, so that every other command works without what a runtime needs

        tls.gate(plan.config.tls_cert, plan.config.tls_key, plan.config.tls_client_ca)  # refuses bad files here and now
    command = [sys.executable, "-m", "agentfs.cli", "serve", *plan.words]
    since, secret = None, phrase.descriptor()
    passed = [secret] if secret >= 0 else []
    if plan.foreground:
        child = plan.foreground.spawn(command, passed=passed)
    else:
        child, since = detached(plan.state, command, passed=passed)
    phrase.drop()
    try:
        return Started(_await(plan, child.pid, lambda: child.poll() is None, since), child)
    except BaseException:
        abandon(child)
        raise


def detached(
    state: StateDir, command: Sequence[str], stdin: int = subprocess.DEVNULL, passed: Sequence[int] = ()
) -> tuple[subprocess.Popen[bytes], int]:
    """A process in a session of its own that writes to *state*'s log and has *passed*, and the log's size before."""
    log = state.open_log()
    try:
        since = os.fstat(log).st_size
        child = subprocess.Popen(command, stdin=stdin, stdout=log, stderr=log, start_new_session=True, pass_fds=passed)
        return child, since
    finally:
        os.close(log)


def _await(plan: Start, pid: int, is_alive: Callable[[], bool], since: int | None = None) -> Running:
    deadline, missing = time.monotonic() + plan.patience, "runtime.json"
    while time.monotonic() < deadline:
        if not is_alive():
            raise _failure(errno.EIO, plan, "the runtime ended before it was ready", since)
        running = plan.state.running()
        if running is not None and running.pid == pid:
            _agree(plan, running)
            missing = unready(running, plan.state)
            if not missing:
                return running
        time.sleep(POLL_SECONDS)
    raise _failure(errno.ETIMEDOUT, plan, f"not ready after {plan.patience:.0f} s: {missing}", since)


def _failure(code: int, plan: Start, text: str, since: int | None) -> OSError:
    """With the end of what a detached runtime has written behind the byte *since*."""
    if since is None:
        return error(code, str(plan.state.path), text)
    return error(code, str(plan.state.log), f"{text}\n{plan.state.tail(since)}")


def _agree(plan: Start, running: Running) -> None:
    """Refuse a runtime that serves something else than what was asked for."""
    wanted = str(plan.config.mount) if plan.config.mount else None
    port = plan.config.address[1]
    if running.mount != wanted:
        detail = f"a runtime has this state directory, mounted on {running.mount or 'nothing'}; stop it first"
        raise error(errno.EBUSY, str(plan.state.path), detail)
    if port and urlsplit(running.url).port != port:
        detail = f"a runtime has this state directory, listening at {running.url}; stop it first"
        raise error(errno.EBUSY, str(plan.state.path), detail)


def unready(running: Running, state: StateDir) -> str:
    """What of *running*, the runtime of *state*, does not answer yet, or "" when all does."""
    try:
        status, body = call(running.url, "GET", "/readyz", seconds=5.0, trust=_trust(state))
    except OSError as exc:
        return f"{running.url}/readyz: {exc}"
    if status != 200:
        return f"{running.url}/readyz: {status} {body.strip()[:200]}"
    place = Path(running.mount) if running.mount else None
    if place is None:
        return ""
    found = mounts.entry(place)
    if found is None:
        return f"{place}: nothing is mounted"
    return "" if mounts.probe(place / "agents") == 0 else f"{place}: the mount does not answer"


def _trust(state: StateDir) -> Trust:
    return found(os.environ, state.ca, is_operator=True)


def call(
    url: str, method: str, path: str, token: str = "", seconds: float = 10.0, trust: Trust | None = None,
    body: bytes | None = None,
) -> tuple[int, str]:  # fmt: skip
    """One HTTP request to a runtime on this machine, with *body*: status and body of the answer.

    ENOTCONN when it cannot be reached; ENOENT or EINVAL when the files of *trust*, for an https *url*, will not do.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)
    if parts.scheme == "https":
        context = (trust or Trust()).context()
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=seconds, context=context)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with contextlib.closing(connection):
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(64 << 10).decode(errors="replace")
        except (OSError, http.client.HTTPException) as exc:
            raise error(errno.ENOTCONN, url, str(exc) or type(exc).__name__) from exc


def order(state: StateDir, running: Running, path: str, line: bytes) -> None:
    """Write *line* to the control file at *path* as the operator. What the runtime refuses is raised as it says it."""
    token = state.token.read_text().strip()
    status, body = call(running.url, "POST", quote(f"/{path}"), token, trust=_trust(state), body=line)
    if status >= 300:
        raise from_wire(status, body.encode(), path)


def make_agent(state: StateDir, running: Running, name: str) -> bool:
    """Create the agent *name* if it is absent; whether it was. EIO with the runtime's words when refused."""
    token, path = state.token.read_text().strip(), f"/agents/{quote(name, safe='')}"
    status, body = call(running.url, "MKCOL", path, token, trust=_trust(state))
    if status not in (201, 409):
        raise error(errno.EIO, f"agents/{name}", f"the runtime answered {status}: {body.strip()[:300]}")
    return status == 201


def abandon(child: subprocess.Popen[bytes]) -> None:
    """End a process that did not become what it was started for."""
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
