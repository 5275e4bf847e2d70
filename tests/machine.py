"""A whole runtime as a user has it: a state directory, a mount, an address, and the commands run with them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from agentfs.cli import process
from agentfs.state import StateDir

BIN = Path(sys.executable).parent
_FIRST, _EACH, _SHARES = 12_000, 290, 70  # behind those of servers of models, before those that the kernel gives away
_PORTS = itertools.cycle(range(_FIRST + os.getpid() % _SHARES * _EACH, _FIRST + (os.getpid() % _SHARES + 1) * _EACH))


def free_port() -> int:
    """A port that stays free until it is used: none that the kernel gives away, and of this process alone."""
    while True:
        port = next(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


class Machine:
    """A state directory, a place to mount on, an address, and `agentfs` run with them."""

    def __init__(self, top: Path) -> None:
        self.state = StateDir(top / "state")
        self.place = top / "mnt"
        self.port = free_port()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENTFS_")}
        self.env = kept | {
            "AGENTFS_STATE": str(self.state.path),
            "AGENTFS_MOUNT": str(self.place),
            "AGENTFS_LISTEN": f"127.0.0.1:{self.port}",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }

    def spawn(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "agentfs.cli", *words]
        return subprocess.Popen(command, env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def spawn_with(self, text: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `agentfs` with *text* on its standard input."""
        command = [sys.executable, "-m", "agentfs.cli", *words]
        return subprocess.run(
            command, env=self.env, input=text, text=True, capture_output=True, timeout=60, check=False
        )

    def run(self, *words: str, code: int = 0) -> str:
        child = self.spawn(*words)
        out, err = child.communicate(timeout=60)
        assert child.returncode == code, (words, out, err)
        return out + err

    def shell(self, script: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run *script* with bash in the mount; ``$URL`` and ``$TOKEN`` are the HTTP face's."""
        token = self.state.token.read_text().strip() if self.state.token.exists() else ""
        names = {"URL": f"http://127.0.0.1:{self.port}", "TOKEN": token, "M": str(self.place)}
        child = subprocess.Popen(
            ["bash", "-c", script], env=self.env | names, text=True, errors="replace", start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            out, err = child.communicate(timeout=timeout)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.communicate()
        return subprocess.CompletedProcess(script, child.returncode, out, err)

    def look(self) -> dict[str, object]:
        with self.spawn("status", "-o", "jsonl") as child:
            out, _ = child.communicate(timeout=60)
        found: dict[str, object] = json.loads(out)
        return found

    def pid(self) -> int:
        pid = process.holder(self.state.lock)
        assert pid is not None
        return pid

    def mounted(self) -> int:
        return Path("/proc/self/mountinfo").read_text().count(f" {self.place} ")

    def kill(self) -> None:
        descriptor = os.pidfd_open(self.pid())
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        process.is_gone(descriptor, 60)
        os.close(descriptor)
