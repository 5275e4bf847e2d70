"""Programs and models that run code in a whole runtime: its mount inside the sandbox, and kill -9 around it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_openai import FakeOpenAI
from llms import PRICES
from machine import Machine

SCRIPT = """if grep -q stay; then echo x >> /agent/kv/stayed; sleep 1000; fi
echo "{\\"type\\": \\"reply\\", \\"payload\\": $(tr -d '\\n' < /agent/status)}"
"""


@pytest.fixture
def machine(tmp_path: Path, fake: FakeOpenAI) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    machine.env |= {
        "AGENTFS_DISCOVER": "false", "AGENTFS_KEEPER": "inline",
        "AGENTFS_SANDBOXES": '{"here": {"kind": "bubblewrap"}}',
        "AGENTFS_PROVIDERS": json.dumps({"local": {"kind": "openai", "url": fake.url}}),
    }  # fmt: skip
    yield machine
    machine.env.pop("AGENTFS_FAULT", None)
    machine.run("umount")
    machine.run("fsck")


def curl(machine: Machine, words: str) -> str:
    return machine.shell(f'curl -s -H "Authorization: Bearer $TOKEN" {words}').stdout


def created(machine: Machine, **config: Any) -> None:
    doc = json.dumps({"name": "alice", "retry": {"base_ms": 10, "attempts": 3}, **config}).replace("'", "'\\''")
    assert '"alice"' in curl(machine, f"-d '{doc}' $URL/agents/new")


def until(machine: Machine, test: str) -> None:
    """Wait for the shell's *test*."""
    assert machine.shell(f"until {test}; do sleep 0.05; done").returncode == 0, test


def sandboxes(machine: Machine) -> list[str]:
    return sorted(path.name for path in (machine.state.sandboxes / "here").glob("tick-*") if path.is_dir())


def program(script: str) -> dict[str, Any]:
    return {"kind": "exec", "argv": ["/bin/sh", "-c", script], "sandbox": {}}


def test_a_tick_sees_its_namespace_and_neither_end_nor_crash_leaves_a_sandbox(machine: Machine) -> None:
    machine.run("mount")
    created(machine, program=program(SCRIPT))
    curl(machine, """-d '{"id": "m1", "payload": "go"}' $URL/agents/alice/inbox""")
    until(machine, "grep -q m1 $M/agents/alice/outbox")
    (reply,) = [json.loads(line) for line in curl(machine, "$URL/agents/alice/outbox").splitlines()]
    assert reply["payload"]["id"] == "alice" and reply["payload"]["is_ticking"]
    (first,) = sandboxes(machine)
    curl(machine, """-d '{"id": "m2", "payload": "stay"}' $URL/agents/alice/inbox""")
    until(machine, "test -s $M/agents/alice/kv/stayed")
    assert sandboxes(machine) == [first]
    machine.kill()
    machine.run("mount")
    until(machine, 'test "$(wc -l < $M/agents/alice/kv/stayed)" = 2')  # the tick is tried again, in a new one
    until(machine, f"test ! -e {machine.state.sandboxes}/here/{first}")
    (second,) = sandboxes(machine)
    assert second != first
    curl(machine, "-d 'pause' $URL/agents/alice/ctl")
    curl(machine, "-d 'stop' $URL/agents/alice/ctl")
    until(machine, f"test ! -e {machine.state.sandboxes}/here/{second}")


@pytest.mark.parametrize("point", ["sandbox.submitted", "sandbox.ended"])
def test_a_run_is_neither_repeated_nor_lost(machine: Machine, fake: FakeOpenAI, point: str) -> None:
    fake.script.extend([[("run", {"command": "echo ran >> /agent/kv/ran; echo told"})], "Done."])
    machine.env["AGENTFS_FAULT"] = point
    machine.run("mount")
    created(machine, program={"kind": "llm", "prompt": "You run code.", "model": "script"})
    curl(machine, f"-X PUT -d '{json.dumps(PRICES)}' $URL/runtime/compute/prices")
    pid = machine.pid()
    curl(machine, """-d '{"id": "m1", "payload": "go"}' $URL/agents/alice/inbox""")
    until(machine, f"! kill -0 {pid} 2> /dev/null")
    del machine.env["AGENTFS_FAULT"]
    machine.run("mount")
    until(machine, "grep -q m1 $M/agents/alice/outbox")
    (tool,) = [m["content"] for m in fake.requests[-1]["messages"] if m["role"] == "tool"]
    assert tool == "[exit 0]\ntold" and len(fake.requests) == 2
    assert (machine.place / "agents/alice/kv/ran").read_text() == "ran\n"
    listed = json.loads(curl(machine, "$URL/agents/alice/containers/sessions/"))["entries"]
    assert len(listed) == 1
