"""Serves a `FileService` on a FUSE mount from a child process, so that a test can use it with ordinary tools.

Run as a script it is that child: ``fusemount.py MODULE:FACTORY MOUNTPOINT``. The factory gives the service.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import trio

from agentfs.faces.fuse.mount import serve

TESTS = Path(__file__).parent
TIMEOUT_S = 60
BINDING = "FUSEMOUNT_BINDING"
READS = {"x86_64": ("0", "17"), "aarch64": ("63", "67")}[os.uname().machine]  # the numbers of read and pread


class Mount:
    """A mount served by a child process. Every access goes through another process, with a timeout."""

    def __init__(self, spec: str, at: Path, *options: str) -> None:
        self.at = at
        self._log, self._said = os.memfd_create("log"), ""
        self._argv = [sys.executable, "-W", "error", str(TESTS / "fusemount.py"), *options, spec, str(at)]
        self._spawned: list[subprocess.Popen[str]] = []
        self.start()

    def start(self) -> None:
        """Start the serving child and wait until the kernel talks to it."""
        self.server = subprocess.Popen(self._argv, stdout=subprocess.PIPE, stderr=self._log, cwd=TESTS.parent)
        assert self.server.stdout is not None
        is_told, _, _ = select.select([self.server.stdout], [], [], TIMEOUT_S)
        line = self.server.stdout.readline() if is_told else b""
        if not line:
            self.server.kill()
            self.server.communicate()
            raise RuntimeError(f"the mount did not start: {self._end_log()}")

    @property
    def log(self) -> str:
        """What the server has written to stderr."""
        return self._said or os.pread(self._log, 1 << 20, 0).decode()

    def run(self, *argv: str, stdin: str | bytes = b"", timeout: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Run a tool in the mount's directory; its output as text."""
        return subprocess.run(
            argv,
            input=stdin if isinstance(stdin, str) else stdin.decode(),
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd="/",
            check=False,
        )

    def sh(self, script: str, stdin: str = "", timeout: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Run a bash script with ``$M`` as the mount point."""
        return self.run("bash", "-c", f"M={self.at}; {script}", stdin=stdin, timeout=timeout)

    def out(self, script: str) -> str:
        """Output of a bash script that must succeed."""
        done = self.sh(script)
        assert done.returncode == 0, (script, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def python(self, code: str, timeout: float = TIMEOUT_S) -> str:
        """Output of a Python program in which ``M`` is the mount point; it must succeed."""
        done = self.run(sys.executable, "-c", f"M={str(self.at)!r}\n{code}", timeout=timeout)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def spawn(self, *argv: str) -> subprocess.Popen[str]:
        """Start a tool that goes on, at the longest until the mount ends."""
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/")
        self._spawned.append(process)
        return process

    def is_mounted(self) -> bool:
        """Whether the mount table has it."""
        escaped = str(self.at).replace(" ", "\\040")
        return f" {escaped} " in Path("/proc/self/mountinfo").read_text()

    def terminate(self) -> int:
        """SIGTERM and the exit status."""
        self.server.send_signal(signal.SIGTERM)
        return self.server.wait(TIMEOUT_S)

    def kill(self) -> None:
        """Leave nothing: no server, no mount, no tool."""
        self.server.kill()
        while self.is_mounted():
            subprocess.run(["umount", "-l", str(self.at)], timeout=TIMEOUT_S, check=True)
        self.server.wait(TIMEOUT_S)
        if self.server.stdout is not None:
            self.server.stdout.close()
        for process in self._spawned:
            process.kill()
        for process in self._spawned:
            process.communicate(timeout=TIMEOUT_S)
        self._end_log()

    def _end_log(self) -> str:
        self._said = self.log or " "
        os.close(self._log)
        return self._said


@contextmanager
def mounted(spec: str, at: Path, *options: str) -> Iterator[Mount]:
    """A mount for the body of a test, which fails if the server had anything to complain about."""
    mount = Mount(spec, at, *options)
    try:
        yield mount
        if mount.server.poll() is None:
            assert mount.terminate() == 0, mount.log
            assert not mount.is_mounted()
    finally:
        mount.kill()
    assert "Traceback" not in mount.log, mount.log


def wait_for(check: object, timeout: float = TIMEOUT_S) -> float:
    """Seconds until *check()* is true; fails after *timeout*."""
    assert callable(check)
    begin = time.monotonic()
    while not check():
        assert time.monotonic() - begin < timeout, "did not happen in time"
        select.select([], [], [], 0.005)
    return time.monotonic() - begin


def ends(process: subprocess.Popen[str]) -> None:
    """Return once *process* has ended, which one that waits for the mount would never do by itself."""
    process.wait(TIMEOUT_S)


def follow(mount: Mount, *argv: str) -> subprocess.Popen[str]:
    """A reader of the stream, waiting in its read."""
    reader = mount.spawn(*(argv or ("cat", f"{mount.at}/log@follow")))
    wait_for(lambda: is_waiting(reader.pid))
    return reader


def is_waiting(pid: int) -> bool:
    """Whether a thread of *pid* waits for a mount's answer to a read, and not to the look-up and open before it."""
    return any(_reads(task) for task in Path(f"/proc/{pid}/task").glob("*"))


def _reads(task: Path) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        is_asked = (task / "wchan").read_text() == "request_wait_answer"
        return is_asked and (task / "syscall").read_text().split()[0] in READS
    return False


async def busy() -> None:
    """Keep the loop late, and tell that it goes on."""
    while True:
        time.sleep(0.03)  # noqa: ASYNC251 - that is the point
        os.write(1, b".")
        await trio.lowlevel.checkpoint()


async def usage() -> tuple[int, int]:
    """1 MiB of 1 GiB."""
    return 1 << 20, 1 << 30


async def run(args: argparse.Namespace) -> None:
    """Serve until SIGTERM or unmount."""
    module, _, factory = args.spec.partition(":")
    service = getattr(importlib.import_module(module), factory)()

    async def stop_when_told(nursery: trio.Nursery) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            await anext(aiter(signals))
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_when_told, nursery)
        async with trio.open_nursery() as inner:
            options = {"usage": usage, "max_blocked": args.max_blocked, "binding": args.binding}
            await inner.start(partial(serve, service, args.at, **options))
            os.write(1, b"serving\n")
            if args.busy:
                nursery.start_soon(busy)
        nursery.cancel_scope.cancel()


def main() -> None:
    """The child's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-blocked", type=int, default=4096)
    parser.add_argument("--binding", default=os.environ.get(BINDING, "auto"))
    parser.add_argument("--busy", action="store_true", help="keep the loop busy and say so")
    parser.add_argument("spec")
    parser.add_argument("at")
    logging.basicConfig(level=logging.INFO)
    trio.run(run, parser.parse_args())


if __name__ == "__main__":
    main()
