"""`agentctl chat` and `agentctl compute` as a person or a script has them, on a real runtime over a scripted model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_openai import FakeOpenAI
from llms import PRICES

from conformance.drivers import Runtime


@pytest.fixture
def runtime(tmp_path: Path, fake: FakeOpenAI) -> Iterator[Runtime]:
    places = json.dumps({"local": {"kind": "openai", "url": fake.url}})
    runtime = Runtime("memory", tmp_path, fuse=False, settings=[f"providers={places}"])
    runtime.start()
    try:
        assert agentctl(runtime, "write", "runtime/compute/prices", json.dumps(PRICES)) == ("", "")
        yield runtime
    finally:
        runtime.stop()


def agentctl(runtime: Runtime, *words: str, text: str = "", code: int = 0) -> tuple[str, str]:
    """What a command prints on standard output and on standard error."""
    argv = [sys.executable, "-m", "agentctl", "--url", runtime.url, "--token", runtime.token, *words]
    done = subprocess.run(argv, input=text.encode(), capture_output=True, timeout=60, check=False)
    assert done.returncode == code, done
    return done.stdout.decode(), done.stderr.decode()


def helper(runtime: Runtime, *more: str) -> None:
    """The agent of these tests, made as a person makes it."""
    words = ("--prompt", "You keep my notes", "--model", "local/script", *more)
    out, _ = agentctl(runtime, "create", "helper", *words, "-o", "jsonl")
    assert json.loads(out)["id"] == "helper"


def test_a_conversation(runtime: Runtime, fake: FakeOpenAI) -> None:
    helper(runtime)
    fake.script.extend(
        [
            [("write", {"path": "kv/milk", "text": "2"}), ("read", {"path": "kv/none"})], "Noted: \x1b[31mtwo milk.",
            "Two.",
        ]
    )  # fmt: skip
    out, err = agentctl(runtime, "chat", "helper", text="two milk please\n\nhow many?\n")
    assert out == "Noted: \\x1b[31mtwo milk. \nTwo. \n"
    assert re.sub(r"tokens \d+, \$0\.\d{6}", "tokens N, $COST", err).splitlines() == [
        "[write kv/milk: ok]", "[read kv/none: ENOENT]", "[steps 2, tokens N, $COST]", "[steps 1, tokens N, $COST]",
    ]  # fmt: skip
    assert agentctl(runtime, "read", "agents/helper/kv/milk")[0] == "2"
    config = json.loads(agentctl(runtime, "read", "agents/helper/config")[0])
    assert config["program"]["prompt"] == "You keep my notes" and config["tick_timeout_ms"] == 600_000


def test_a_conversation_of_scripts(runtime: Runtime, fake: FakeOpenAI) -> None:
    helper(runtime, "-c", "program.max_steps=1")
    fake.script.extend(["Well.", [("list", {})]])
    out, err = agentctl(runtime, "chat", "helper", "-o", "jsonl", text="one\ntwo\n")
    first, second = (json.loads(line) for line in out.splitlines())
    assert first["reply"].strip() == "Well." and first["steps"] == 1 and first["cost_usd"] > 0 and err == ""
    assert second["stopped"] == "max_steps: 1 model calls"


def test_a_conversation_with_an_agent_of_another_kind(runtime: Runtime) -> None:
    agentctl(runtime, "create", "echo", "--inline", "conformance.program:Echo")
    assert agentctl(runtime, "chat", "echo", text="hello\n{}\n") == ("hello\n{}\n", "")
    agentctl(runtime, "create", "mute", "--exec", "true")
    assert agentctl(runtime, "chat", "mute", text="hello\n") == ("", "[no reply]\n")


def test_what_ends_as_a_dead_letter_is_an_error(runtime: Runtime, fake: FakeOpenAI) -> None:
    helper(runtime, "-c", "retry.attempts=2", "-c", "retry.base_ms=1", "-c", "program.model=nobody")
    out, err = agentctl(runtime, "chat", "helper", text="hello\n", code=9)
    assert out == "" and "it is tried again" in err and "no provider has nobody" in err.splitlines()[-1]


def test_one_job(runtime: Runtime, fake: FakeOpenAI) -> None:
    helper(runtime)
    assert agentctl(runtime, "compute", "run", "helper", "one two", "-m", "echo") == ("one two \n", "")
    assert agentctl(runtime, "compute", "run", "helper", "--stream", "-m", "echo", text="a b\n") == ("a b \n", "")
    words = ("compute", "run", "helper", "x", "-m", "echo", "--idempotency-key", "k", "-o", "jsonl")
    first, again = (json.loads(agentctl(runtime, *words)[0]) for _ in range(2))
    assert first == again and first["output"]["content"] == "x " and len(fake.requests) == 3
    _, err = agentctl(runtime, "compute", "run", "helper", "x", "-m", "echo", "--max-cost", "9000000", code=7)
    assert "EDQUOT" in err
    agentctl(runtime, "compute", "run", "helper", "x", "-m", "broken", code=9)
    table = agentctl(runtime, "compute", "jobs", "helper", "-o", "table")[0].splitlines()
    assert table[0].split() == ["JOB_ID", "STATUS", "PROVIDER_ID", "MODEL", "COST_USD", "AT", "ERROR"]
    assert sorted(line.split()[1] for line in table[1:]) == ["complete"] * 3 + ["failed"]
    (day,) = json.loads(agentctl(runtime, "compute", "usage", "helper", "-o", "json")[0])["data"].values()
    assert day["reserved_usd"] == 0 < day["spent_usd"]
    shown = agentctl(runtime, "compute", "usage", "helper", "-o", "table")[0].splitlines()
    assert shown[0].split()[:2] == ["ACCOUNT", "PERIOD"] and shown[1].split()[0] == "day"
    assert json.loads(agentctl(runtime, "compute", "-o", "jsonl")[0])["models"]["*"]["input_usd"] == 1000
