"""kill -9 in a loop of tools: no model is asked twice, nothing is done twice, one reply, all of it remembered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_openai import FakeOpenAI
from llms import PRICES
from machine import Machine

ECHO = {"model": "echo", "input": {"messages": [{"role": "user", "content": "hi"}]}, "max_cost_usd": 700}
UNKNOWN = "EREMOTEIO: failed: unknown_outcome"


@pytest.fixture
def machine(tmp_path: Path, fake: FakeOpenAI) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    places = json.dumps({"local": {"kind": "openai", "url": fake.url}})
    machine.env |= {"AGENTFS_FUSE": "false", "AGENTFS_DISCOVER": "false", "AGENTFS_PROVIDERS": places}
    yield machine
    machine.env.pop("AGENTFS_FAULT", None)
    machine.run("umount")
    machine.run("fsck")


def curl(machine: Machine, words: str) -> str:
    return machine.shell(f'curl -s -H "Authorization: Bearer $TOKEN" {words}').stdout


def lines(machine: Machine, path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in curl(machine, f"$URL/agents/helper/{path}").splitlines()]


def crashed(machine: Machine, fake: FakeOpenAI, point: str) -> dict[str, Any]:
    """Have the runtime die at *point* of a message's loop, start it again; the one reply."""
    ask = ("call", {"path": "compute/new", "text": json.dumps(ECHO)})
    fake.script.extend([[ask], [("write", {"path": "kv/note", "text": "x"})], "Done."])
    machine.env["AGENTFS_FAULT"] = point
    machine.run("mount")
    program = {"kind": "llm", "prompt": "You keep notes.", "model": "script"}
    doc = json.dumps({"name": "helper", "program": program, "retry": {"base_ms": 10, "attempts": 3}})
    assert '"helper"' in curl(machine, f"-d '{doc}' $URL/agents/new")
    curl(machine, f"-X PUT -d '{json.dumps(PRICES)}' $URL/runtime/compute/prices")
    pid = machine.pid()
    curl(machine, """-d '{"id": "m1", "payload": "go"}' $URL/agents/helper/inbox""")
    assert machine.shell(f"while kill -0 {pid} 2> /dev/null; do sleep 0.05; done").returncode == 0
    del machine.env["AGENTFS_FAULT"]
    machine.run("mount")
    rest = 'until curl -s -H "Authorization: Bearer $TOKEN" $URL/agents/helper/status | grep -q \'"queue_depth": 0\''
    assert machine.shell(f"{rest}; do sleep 0.1; done").returncode == 0
    assert curl(machine, "$URL/agents/helper/deadletter/count") == "0\n"
    (reply,) = lines(machine, "outbox")
    return reply


@pytest.mark.parametrize(
    "point", ["job.submitted", "job.ended", "job.ended:3", "llm.answered:2", "effect.finished", "effect.finished:2"]
)
def test_what_has_an_outcome_is_not_done_again(machine: Machine, fake: FakeOpenAI, point: str) -> None:
    reply = crashed(machine, fake, point)
    assert reply["payload"].strip() == "Done." and reply["metadata"]["extra"]["steps"] == 3
    assert len(fake.of("script")) == 3 and len(fake.of("echo")) <= 1
    said = lines(machine, "memory/conversations/operator")
    assert [line["role"] for line in said] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert json.loads(said[2]["content"])["is_new"] and said[4]["content"] == "[wrote 1 bytes]"
    assert [job for job in jobs(machine) if job["model"] == "echo" or '"echo"' in json.dumps(job["request"])][1:] == []


@pytest.mark.parametrize("point", ["effect.reserved", "effect.called", "effect.called:2"])
def test_a_call_without_an_outcome_is_told_and_not_repeated(machine: Machine, fake: FakeOpenAI, point: str) -> None:
    reply = crashed(machine, fake, point)
    assert reply["payload"].strip() == "Done." and len(fake.of("script")) == 3
    tools = [line["content"] for line in lines(machine, "memory/conversations/operator") if line["role"] == "tool"]
    assert [told.startswith(UNKNOWN) for told in tools] == ([False, True] if point.endswith("2") else [True, False])
    submitted = [job for job in jobs(machine) if '"echo"' in json.dumps(job["request"])]
    assert len(submitted) == (0 if point == "effect.reserved" else 1) and len(fake.of("echo")) <= len(submitted)
    assert curl(machine, "$URL/agents/helper/kv/note") == "x"


def test_an_answer_that_was_lost_ends_the_loop(machine: Machine, fake: FakeOpenAI) -> None:
    """The model was asked and may have to be paid: it is not asked again, and the sender is told."""
    reply = crashed(machine, fake, "job.answered")
    assert reply["payload"].startswith("[stopped: EREMOTEIO") and "unknown_outcome" in reply["payload"]
    assert len(fake.of("script")) == 1
    said = lines(machine, "memory/conversations/operator")
    assert [line["role"] for line in said] == ["user", "assistant"] and said[1]["content"] == reply["payload"]
    (job,) = jobs(machine)
    day = json.loads(curl(machine, "$URL/agents/helper/compute/usage"))["day"]
    assert (day["reserved_usd"], day["spent_usd"]) == (0, job["reserved_usd"])


def jobs(machine: Machine) -> list[dict[str, Any]]:
    """The status of every job."""
    found = json.loads(curl(machine, "$URL/agents/helper/compute/jobs/"))["entries"]
    return [json.loads(curl(machine, f"$URL/agents/helper/compute/jobs/{entry['name']}/status")) for entry in found]
