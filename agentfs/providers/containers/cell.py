"""`Cell`: one bwrap with one program in it: started, held, let go, read as it speaks, ended with all it began.

It knows pipes and processes, and nothing of sessions or limits.
"""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import anyio
import msgspec

from agentfs.containers.port import Cause, Output
from agentfs.errors import error
from agentfs.providers.containers.rootfs import PATH

PIECE: Final = 65_536
_SAID_MAX: Final = 4096
_OWN: Final = b"bwrap: "  # how its own words begin
_EXEC: Final = re.compile(rb"bwrap: execvp (.*): ([^:]*)\n?\Z", re.DOTALL)
Name = Literal["stdout", "stderr"]


@dataclass(frozen=True, slots=True)
class Launch:
    """What is started: *bwrap* with *options* by the words *before* it.

    *files*: what they hold, by where they are inside. *env* goes in unseen by other processes, and to no program outside.
    """

    bwrap: str
    options: Sequence[str]
    argv: Sequence[str]
    before: Sequence[str] = ()
    env: Mapping[str, str] | None = None
    files: Mapping[str, bytes] | None = None
    seccomp: bytes = b""


class Cell:
    """Made in the thread that outlives it: the kernel ends a bwrap with the thread that began it."""

    def __init__(self, launch: Launch, stdin: bytes = b"") -> None:
        """Start it; it stays before the first step of its program until `go`. EREMOTEIO."""
        self.cause: Cause = ""
        self.cpu_ms = self.peak_memory_bytes = 0
        self.code: int | None = None  # what the program ended with; None: none ran, or nobody saw its end
        self.pid = 0
        self._inside = -1  # a descriptor of the first process in its name space
        self._lock = threading.Lock()  # held where it is used from any thread, and closed
        self._left, self._said, self._told = stdin, b"", b""
        self._is_held = True
        self._poll = select.epoll()
        self._streams: dict[int, Name | Literal["status", "stdin"]] = {}
        self._status, status = os.pipe()
        block, self._block = os.pipe()
        passed = [status, block]
        try:
            self._process = self._begun(launch, passed)
        except OSError as exc:
            for descriptor in (self._status, self._block):
                os.close(descriptor)
            self._poll.close()
            raise error(errno.EREMOTEIO, detail=f"cannot start {launch.bwrap}: {exc.strerror}") from exc
        finally:
            for descriptor in passed:
                os.close(descriptor)
        self._take()

    def _begun(self, launch: Launch, passed: list[int]) -> subprocess.Popen[bytes]:
        """Start it; descriptors that it is given are added to *passed*. Environment and paths are in no argv."""
        words = [*launch.options, "--json-status-fd", str(passed[0]), "--block-fd", str(passed[1])]
        for name, value in (launch.env or {}).items():
            words += ["--setenv", name, value]
        for inside, data in (launch.files or {}).items():
            words += ["--perms", "0444", "--ro-bind-data", _held(data, passed), inside]
        if launch.seccomp:
            words += ["--seccomp", _held(launch.seccomp, passed)]
        words += ["--remount-ro", "/dev", "--remount-ro", "/"]
        given = _held(b"".join(word.encode(errors="surrogateescape") + b"\0" for word in words), passed)
        return subprocess.Popen(
            [*launch.before, launch.bwrap, "--args", given, "--", *launch.argv],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, pass_fds=passed,
            env={"PATH": PATH}, cwd="/", start_new_session=True,
        )  # fmt: skip

    def _take(self) -> None:
        process = self._process
        assert process.stdin and process.stdout and process.stderr
        self._streams = {
            process.stdout.fileno(): "stdout", process.stderr.fileno(): "stderr", self._status: "status",
            process.stdin.fileno(): "stdin",
        }  # fmt: skip
        for descriptor, name in self._streams.items():
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.EPOLLOUT if name == "stdin" else select.EPOLLIN)
        if not self._left:
            self._forget(process.stdin.fileno())

    async def ready(self) -> int:
        """Wait until it stands before its program; the process id of the first inside. EREMOTEIO with its words."""
        while not self.pid and self._status in self._streams:
            await anyio.wait_readable(self._status)
            self._hear(self._status)
        if not self.pid:
            raise error(errno.EREMOTEIO, detail=f"bwrap: {await self._last_words()}")
        return self.pid

    def go(self) -> None:
        """Let the program begin."""
        os.write(self._block, b"\n")

    async def read(self) -> list[Output] | None:
        """What came out meanwhile, at least one piece; None: it has ended, and all was read."""
        found: list[Output] = []
        while self._is_open() and not found:
            await anyio.wait_readable(self._poll.fileno())
            for descriptor, _ in self._poll.poll(0):
                name = self._streams[descriptor]
                if name == "stdin":
                    self._feed(descriptor)
                elif name == "status":
                    self._hear(descriptor)
                elif data := self._spoken(descriptor, name):
                    found.append(Output(name, data))
        if not found and self._said and self._is_held and self.code is not None:
            self._is_held = False  # the program's own words after all
            found.append(Output("stderr", self._said))
        return found or None

    def kill(self, cause: Cause = "") -> None:
        """End everything in it now. From any thread; *cause* counts when nothing else ended it before."""
        with self._lock:
            if self._inside < 0:
                return
            self.cause = self.cause or cause
            try:
                signal.pidfd_send_signal(self._inside, signal.SIGKILL)
            except ProcessLookupError:
                return

    async def end(self) -> None:
        """End everything in it, wait until it is gone, and give all back. Idempotent; not to be cancelled."""
        if self._process.returncode is not None:
            return
        with anyio.CancelScope(shield=True):
            while not self.pid and self._status in self._streams:  # killed now, it would leave its child behind
                await anyio.wait_readable(self._status)
                self._hear(self._status)
            self.kill()
            if self._inside >= 0:
                await anyio.wait_readable(self._inside)
            await self._reap()
        for descriptor in (*list(self._streams), self._block):
            self._forget(descriptor)
        self._poll.close()

    async def gone(self) -> None:
        """Return when nothing in it runs any more; whoever reads it may not have noticed yet."""
        if self._inside >= 0:
            own = os.dup(self._inside)
            try:
                await anyio.wait_readable(own)
            finally:
                os.close(own)

    def failure(self) -> tuple[str, str]:
        """Why no program ran: ("exec", the reason) or ("bwrap", its words); ("", "") when one did."""
        if self.code is not None or not self._is_held or not self._said:
            return "", ""
        if found := _EXEC.fullmatch(self._said):
            return "exec", found[2].decode(errors="replace")
        return "bwrap", self._said.decode(errors="replace").strip()

    async def _reap(self) -> None:
        watched = os.pidfd_open(self._process.pid)
        try:
            await anyio.wait_readable(watched)
        finally:
            os.close(watched)
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_ms = round((used.ru_utime + used.ru_stime) * 1000)
        self.peak_memory_bytes = used.ru_maxrss * 1024
        with self._lock:
            if self._inside >= 0:
                os.close(self._inside)
                self._inside = -1

    def _is_open(self) -> bool:
        return any(name != "stdin" for name in self._streams.values())

    def _hear(self, descriptor: int) -> None:
        """One reading of what bwrap tells: a line of JSON at the start and one at the end."""
        data = os.read(descriptor, PIECE)
        self._told += data
        *lines, self._told = self._told.split(b"\n")
        for line in lines:
            told = msgspec.json.decode(line)
            if "child-pid" in told:
                self._inside = os.pidfd_open(told["child-pid"])
                self.pid = told["child-pid"]
            self.code = told.get("exit-code", self.code)
        if not data:
            self._forget(descriptor)

    def _spoken(self, descriptor: int, name: Name) -> bytes:
        data = os.read(descriptor, PIECE)
        if not data:
            self._forget(descriptor)
        if name == "stdout" or not self._is_held:
            return data
        self._said += data
        if _OWN.startswith(self._said[: len(_OWN)]) and len(self._said) < _SAID_MAX:
            return b""  # it may be bwrap that speaks: the end will tell
        self._is_held = False
        return self._said

    def _feed(self, descriptor: int) -> None:
        try:
            self._left = self._left[os.write(descriptor, self._left[:PIECE]) :]
        except BrokenPipeError:
            self._left = b""
        if not self._left:
            self._forget(descriptor)

    def _forget(self, descriptor: int) -> None:
        if self._streams.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)
        process = self._process
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None and not pipe.closed and pipe.fileno() == descriptor:
                pipe.close()
                return
        if descriptor == self._status or descriptor == self._block:
            os.close(descriptor)

    async def _last_words(self) -> str:
        """All of its standard error, of which it says little before its end."""
        assert self._process.stderr is not None
        descriptor = self._process.stderr.fileno()
        while descriptor in self._streams and len(self._said) < _SAID_MAX:
            await anyio.wait_readable(descriptor)
            self._spoken(descriptor, "stderr")
        return self._said.decode(errors="replace").removeprefix("bwrap: ").strip() or "ended without a word"


def _held(data: bytes, passed: list[int]) -> str:
    """A descriptor that *data* can be read from."""
    descriptor = os.memfd_create("agentfs")
    passed.append(descriptor)
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return str(descriptor)
