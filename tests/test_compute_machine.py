"""Jobs of a whole runtime: the same chunks through every door, and kill -9 around a call to a model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_openai import FakeOpenAI
from llms import PRICES
from machine import Machine

CHAT = {"model": "echo", "input": {"messages": [{"role": "user", "content": "one two three"}]}}


@pytest.fixture
def machine(tmp_path: Path, fake: FakeOpenAI) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    places = json.dumps({"local": {"kind": "openai", "url": fake.url}})
    machine.env |= {"AGENTFS_DISCOVER": "false", "AGENTFS_PROVIDERS": places}
    yield machine
    machine.env.pop("AGENTFS_FAULT", None)
    machine.run("umount")
    machine.run("fsck")


def curl(machine: Machine, words: str) -> str:
    return machine.shell(f'curl -s -H "Authorization: Bearer $TOKEN" {words}').stdout


def prepared(machine: Machine) -> None:
    machine.run("mount", "--agent", "demo")
    assert curl(machine, f"-X PUT -d '{json.dumps(PRICES)}' $URL/runtime/compute/prices") == ""


def submitted(machine: Machine, **more: Any) -> str:
    """What the submit printed, if the runtime lived to say it."""
    return curl(machine, f"-d '{json.dumps({**CHAT, **more})}' $URL/agents/demo/compute/new")


def test_every_door_shows_the_same_chunks(machine: Machine, fake: FakeOpenAI) -> None:
    """Followed on the mount, over HTTP and by agentctl while it comes, and read by somebody late."""
    prepared(machine)
    job = json.loads(submitted(machine, model="slow", stream=True))["job_id"]
    stream = f"agents/demo/compute/jobs/{job}/stream"
    env = machine.env | {"AGENTFS_URL": f"http://127.0.0.1:{machine.port}"}
    env["AGENTFS_TOKEN"] = machine.state.token.read_text().strip()
    agentctl = [sys.executable, "-m", "agentctl", "watch", stream, "--since", "0", "--output", "jsonl"]
    web = f'curl -sN -H "Authorization: Bearer $AGENTFS_TOKEN" "$AGENTFS_URL/{stream}?watch=1&since=0"'
    commands = [["cat", f"{machine.place}/{stream}@follow"], ["bash", "-c", web], agentctl]
    followers = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for command in commands]
    try:
        first = [_line(follower) for follower in followers]
        fake.release()
        outs = [line + follower.communicate(timeout=30)[0] for line, follower in zip(first, followers, strict=True)]
    finally:
        for follower in followers:
            follower.kill()
    mount, http, ctl = ([chunk for line in out.splitlines() if (chunk := _chunk(line))] for out in outs)
    late = [json.loads(line) for line in machine.shell(f"cat $M/{stream}").stdout.splitlines()]
    assert mount == http == ctl == late
    assert [chunk["delta"] for chunk in late] == ["one ", "two ", "three ", ""] and late[-1]["usage"]


def _line(follower: subprocess.Popen[str]) -> str:
    """The first line with a chunk in it, with what came before."""
    assert follower.stdout is not None
    held = ""
    while not _chunk(line := follower.stdout.readline()):
        assert line, held
        held += line
    return held + line


def _chunk(line: str) -> dict[str, Any] | None:
    """The chunk in a line of any door: over HTTP it is an event's data."""
    found = json.loads(line[line.find("{") :]) if "{" in line else {}
    return found if "delta" in found else None


@pytest.mark.parametrize("point", ["job.submitted", "job.answered", "job.ended"])
def test_a_job_that_was_killed_is_asked_once_and_told_truly(machine: Machine, fake: FakeOpenAI, point: str) -> None:
    machine.env |= {"AGENTFS_FUSE": "false", "AGENTFS_FAULT": point}
    prepared(machine)
    pid = machine.pid()
    submitted(machine, max_cost_usd=500, idempotency_key="k")
    assert machine.shell(f"while kill -0 {pid} 2> /dev/null; do sleep 0.05; done").returncode == 0
    del machine.env["AGENTFS_FAULT"]
    machine.run("mount")
    job = json.loads(submitted(machine, max_cost_usd=500, idempotency_key="k"))
    assert not job["is_new"]
    top = f"$URL/agents/demo/compute/jobs/{job['job_id']}"
    rest = f'until curl -s -H "Authorization: Bearer $TOKEN" {top}/status | grep -qE "complete|failed"'
    assert machine.shell(f"{rest}; do sleep 0.1; done").returncode == 0
    status = json.loads(curl(machine, f"{top}/status"))
    is_lost = point == "job.answered"
    assert (status["status"], status["cost_usd"]) == (("failed", 500) if is_lost else ("complete", 9))
    assert len(fake.of("echo")) == 1
    day = json.loads(curl(machine, "$URL/agents/demo/compute/usage"))["day"]
    assert (day["reserved_usd"], day["spent_usd"]) == (0, status["cost_usd"])
