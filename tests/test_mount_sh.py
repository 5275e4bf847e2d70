"""`./mount.sh` itself: up, up again, status, down, down again, and what it refuses."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine

HERE = Path(__file__).parent.parent


class Script:
    """``mount.sh`` run for one machine, as a user would: it may know nothing of the tests' environment."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.where = ["--state", str(machine.state.path)]

    def run(self, *words: str, code: int = 0) -> str:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        done = subprocess.run(
            [HERE / "mount.sh", *words], env=kept, text=True, capture_output=True, timeout=300, check=False
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    script = Script(Machine(tmp_path))
    yield script
    script.run("down", *script.where)
    assert script.machine.mounted() == 0


@pytest.mark.timeout(400)
def test_up_status_down(script: Script) -> None:
    machine = script.machine
    words = ["--mount", str(machine.place), "--listen", f"127.0.0.1:{machine.port}", *script.where]
    first = script.run(*words)
    assert "created the agent demo" in first and "next: ls" in first
    assert "inbox" in machine.shell("ls $M/agents/demo").stdout
    assert machine.shell("echo 'remind me in 0 seconds to stop' > $M/agents/demo/inbox").returncode == 0
    assert machine.shell("until grep -q reminder $M/agents/demo/outbox; do sleep 0.1; done").returncode == 0
    assert "already running" in script.run("up", *words)
    assert "is_ready    true" in script.run("status", *script.where)
    assert "stopped process" in script.run("down", *script.where)
    assert machine.mounted() == 0
    script.run("down", *script.where)
    script.run("status", *script.where, code=3)


def test_wrong_words(script: Script) -> None:
    assert "unknown argument --colour" in script.run("--colour", code=2)
    assert "needs a value" in script.run("--state", code=2)
    assert "usage: mount.sh" in script.run("--help")
