"""Sandboxes of a whole runtime in a real container engine: kill -9 of the runtime, of a container, of the engine."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from dockerkit import BUSYBOX, Engine, an_engine
from machine import Machine
from test_containers_machine import curl, died, ended, load, new, post, settled, waited


@pytest.fixture
def engine() -> Iterator[Engine]:
    """One for this test alone: it is killed."""
    with an_engine() as engine:
        yield engine


@pytest.fixture
def machine(tmp_path: Path, engine: Engine) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    places = {"docker": {"kind": "docker", "socket": str(engine.socket), "image": BUSYBOX, "usd_per_hour": 3600}}
    machine.env |= {
        "AGENTFS_DISCOVER": "false", "AGENTFS_FUSE": "false", "AGENTFS_SANDBOXES": json.dumps(places)
    }  # fmt: skip
    yield machine
    machine.run("umount")
    machine.run("fsck")
    assert engine.docker("ps", "-aq").stdout == ""


def begun(machine: Machine, session: str, command: str) -> str:
    """An exec that runs: its path."""
    made = json.loads(post(machine, f"{session}/exec/new", command=command))
    where = f"{session}/exec/{made['exec_id']}"
    auth = 'curl -s -H "Authorization: Bearer $TOKEN"'
    waited(machine, f"{auth} $URL/agents/demo/containers/{where}/output | grep -q on")
    return where


def test_whatever_is_killed_is_told_truly(machine: Machine, engine: Engine) -> None:
    machine.run("mount", "--agent", "demo")
    first, second = (
        f"sessions/{json.loads(post(machine, 'new', kind='interactive', limits={'max_time_secs': 100}))['session_id']}"
        for _ in range(2)
    )
    lost = begun(machine, first, "echo kept > file; echo on; sleep 1000")
    begun(machine, second, "echo on")
    containers = engine.docker("ps", "-q").stdout.split()
    pid = machine.pid()
    machine.kill()
    died(machine, pid)
    assert (ended(machine, lost)["status"], load(machine, f"{first}/status")["status"]) == ("failed", "running")
    said = begun(machine, first, "cat file; echo on; ps")
    ended(machine, said)
    shown = load(machine, f"{said}/result")["stdout"]
    assert shown.startswith("kept\non\n") and "1000" not in shown
    assert engine.docker("ps", "-q").stdout.split() == containers
    cut = begun(machine, first, "echo on; sleep 1000")
    name = next(one for one in containers if first.removeprefix("sessions/") in engine.docker("inspect", one).stdout)
    engine.docker("kill", "-s", "KILL", name)
    assert ended(machine, cut)["status"] == "failed"
    status = ended(machine, first)
    assert (status["status"], status["errno"], status["error"]) == ("failed", "EREMOTEIO", "its sandbox was taken away")
    running = begun(machine, second, "echo on; sleep 1000")
    engine.stop(signal.SIGKILL)
    assert ended(machine, running)["status"] == "failed"
    assert load(machine, "providers/docker/health")["status"] == "away"
    curl(machine, f"-d stop $URL/agents/demo/containers/{second}/ctl")
    settled(machine, status["cost_usd"] + ended(machine, second)["cost_usd"])
    again = json.loads(new(machine, commands=["true"]))
    assert ended(machine, f"sessions/{again['session_id']}")["errno"] == "ENOTCONN"
    engine.start()
    machine.run("umount")
    machine.run("mount")  # it is reaped at the start
    docker = f"docker -H {engine.address} ps -aq"
    waited(machine, f'[ -z "$({docker})" ]')
