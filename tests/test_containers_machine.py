"""Sandboxes of a whole runtime: what code inside can reach, and kill -9 of the runtime around and in a session."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import Machine

from agentfs.providers.containers.cgroup import name_of

PLACES = {"bubblewrap": {"kind": "bubblewrap", "usd_per_hour": 3600}}
LIMITS = {"max_time_secs": 100}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    machine.env |= {"AGENTFS_DISCOVER": "false", "AGENTFS_SANDBOXES": json.dumps(PLACES)}
    yield machine
    machine.env.pop("AGENTFS_FAULT", None)
    machine.run("umount")
    machine.run("fsck")
    assert processes(machine) == [] and groups(machine) == []


def sleeper(machine: Machine) -> str:
    """A program that runs long, known by its words."""
    return f"sleep 600.{machine.port}"


def processes(machine: Machine) -> list[str]:
    """Its processes that run."""
    every = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True, timeout=20).stdout
    return [line for line in every.splitlines() if f"600.{machine.port}" in line]


def groups(machine: Machine) -> list[Path]:
    """Control groups of its sandboxes."""
    name = name_of(machine.state.sandboxes / "bubblewrap")
    return [Path(top, entry) for top, names, _ in os.walk("/sys/fs/cgroup") for entry in names if name in entry]


def waited(machine: Machine, condition: str) -> None:
    """Until *condition*, a command of the shell, holds."""
    assert machine.shell(f"until {condition}; do sleep 0.1; done").returncode == 0


def curl(machine: Machine, words: str) -> str:
    return machine.shell(f'curl -s -H "Authorization: Bearer $TOKEN" {words}').stdout


def post(machine: Machine, path: str, **doc: Any) -> str:
    """What the submit answered, if the runtime lived to say it."""
    file = machine.state.path.parent / "doc"
    file.write_text(json.dumps(doc))
    return curl(machine, f"-d @{file} $URL/agents/demo/containers/{path}")


def new(machine: Machine, **doc: Any) -> str:
    return post(machine, "new", limits=LIMITS, idempotency_key="k", **doc)


def load(machine: Machine, path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(curl(machine, f"$URL/agents/demo/containers/{path}"))
    return found


def ended(machine: Machine, path: str) -> dict[str, Any]:
    """The status of a session or exec once it has ended."""
    rest = f'curl -s -H "Authorization: Bearer $TOKEN" $URL/agents/demo/containers/{path}/status'
    waited(machine, f'{rest} | grep -qE \'"status": ?"(complete|failed|cancelled)\'')
    return load(machine, f"{path}/status")


def died(machine: Machine, pid: int) -> None:
    """Wait for its end, and start it again."""
    waited(machine, f"! kill -0 {pid} 2> /dev/null")
    machine.env.pop("AGENTFS_FAULT", None)
    machine.run("mount")


def settled(machine: Machine, cost_usd: int) -> None:
    """The money is where it belongs."""
    day = load(machine, "usage")["day"]
    assert (day["reserved_usd"], day["spent_usd"]) == (0, cost_usd)


@pytest.mark.parametrize("point", ["sandbox.submitted", "sandbox.made", "sandbox.ended"])
def test_a_session_that_was_killed_is_run_to_its_end_once(machine: Machine, point: str) -> None:
    has_view = point == "sandbox.submitted"  # it is begun again before there is a mount again
    machine.env |= {"AGENTFS_FAULT": point, "AGENTFS_FUSE": str(has_view).lower()}
    machine.run("mount", "--agent", "demo")
    command = "cat /agent/status" if has_view else "echo '\"demo\"'"
    pid, doc = machine.pid(), {"commands": [f"echo ran >> log; {command}"]}
    new(machine, **doc)
    died(machine, pid)
    again = json.loads(new(machine, **doc))
    top = f"sessions/{again['session_id']}"
    status = ended(machine, top)
    assert not again["is_new"] and (status["status"], status["exit_code"]) == ("complete", 0)
    output = [json.loads(line) for line in curl(machine, f"$URL/agents/demo/containers/{top}/output").splitlines()]
    assert '"demo"' in output[0]["data"] and output[-1]["done"] and sum(bool(one.get("done")) for one in output) == 1
    assert curl(machine, f"$URL/agents/demo/containers/{top}/files/log") == "ran\n"
    settled(machine, status["cost_usd"])


def test_a_command_that_was_cut_off_is_told_as_lost(machine: Machine) -> None:
    machine.run("mount", "--agent", "demo")
    made = json.loads(new(machine, commands=[f"echo on; {sleeper(machine)}"]))
    top = f"sessions/{made['session_id']}"
    live = json.loads(post(machine, "new", kind="interactive", limits=LIMITS))["session_id"]
    post(machine, f"sessions/{live}/exec/new", command="echo kept > file")
    lost = json.loads(post(machine, f"sessions/{live}/exec/new", command=f"echo on; {sleeper(machine)}"))["exec_id"]
    for path in (top, f"sessions/{live}/exec/{lost}"):
        waited(machine, f"grep -q on $M/agents/demo/containers/{path}/output")
    pid = machine.pid()
    machine.kill()
    died(machine, pid)
    status = ended(machine, top)
    assert (status["status"], status["errno"], status["error"]) == ("failed", "EREMOTEIO", "failed: unknown_outcome")
    assert (ended(machine, f"sessions/{live}/exec/{lost}")["status"], processes(machine)) == ("failed", [])
    assert load(machine, f"sessions/{live}/status")["status"] == "running"
    said = json.loads(post(machine, f"sessions/{live}/exec/new", command="cat file /agent/status"))["exec_id"]
    assert ended(machine, f"sessions/{live}/exec/{said}")["status"] == "complete"
    assert load(machine, f"sessions/{live}/exec/{said}/result")["stdout"].startswith("kept\n")
    curl(machine, f"-d stop $URL/agents/demo/containers/sessions/{live}/ctl")
    settled(machine, status["cost_usd"] + ended(machine, f"sessions/{live}")["cost_usd"])
    here = {entry.name for entry in (machine.state.sandboxes / "bubblewrap").iterdir()} - {"cgroups"}
    assert {name.removesuffix(".json") for name in here} == {made["session_id"], live}, here


def test_an_exec_that_was_killed_is_not_run_again(machine: Machine) -> None:
    machine.env |= {"AGENTFS_FAULT": "exec.submitted", "AGENTFS_FUSE": "false"}
    machine.run("mount", "--agent", "demo")
    live = json.loads(new(machine, kind="interactive"))["session_id"]
    pid = machine.pid()
    doc = {"command": "echo ran >> log", "idempotency_key": "e"}
    post(machine, f"sessions/{live}/exec/new", **doc)
    died(machine, pid)
    again = json.loads(post(machine, f"sessions/{live}/exec/new", **doc))
    status = ended(machine, f"sessions/{live}/exec/{again['exec_id']}")
    assert not again["is_new"] and (status["status"], status["errno"]) == ("failed", "EREMOTEIO")
    curl(machine, f"-d stop $URL/agents/demo/containers/sessions/{live}/ctl")
    settled(machine, ended(machine, f"sessions/{live}")["cost_usd"])


INSIDE = r"""
grep -o '"demo"' /agent/status | head -1; echo '{"n":1}' > /agent/kv/x && cat /agent/kv/x
cat /agent/outbox > /dev/null && echo outbox
(cat /agent/effects/new) 2>&1 | grep -o 'No such file.*'
(echo '{}' > /agent/containers/policy) 2>&1 | grep -o 'Permission denied'
ls /agent/../agents /views PLACE 2>&1 | grep -c 'No such file'
cat PLACE/views/other/status 2>&1 | grep -o 'No such file.*'
echo '{"commands":["echo nested"]}' > /agent/containers/new && ls /agent/containers/sessions | wc -l
web() { curl -s --unix-socket $AGENTFS_SOCKET "$@"; }
own() { web -H "Authorization: Bearer $AGENTFS_TOKEN" "$@"; }
own $AGENTFS_URL/kv/x; code="-o /dev/null -w %{http_code}\n"
web $code $AGENTFS_URL/kv/x; own $code $AGENTFS_URL/agents/other/status; own $code $AGENTFS_URL/views/other/status
"""


def test_code_inside_reaches_its_agents_namespace_and_nothing_else(machine: Machine) -> None:
    machine.run("mount", "--agent", "demo")
    curl(machine, """-d '{"name":"other"}' $URL/agents/new""")
    lines = machine.shell("cat $M/agents/demo/ns").stdout.splitlines()
    less = "".join(f"{line}\n" for line in lines if line.split()[1] != "effects")
    machine.shell(f"cat > $M/agents/demo/ns <<'EOF'\n{less}EOF")
    script = INSIDE.replace("PLACE", str(machine.place))
    done = json.loads(new(machine, commands=[script]))
    ended(machine, f"sessions/{done['session_id']}")
    result = load(machine, f"sessions/{done['session_id']}/result")
    assert result["stdout"].splitlines() == [
        '"demo"', '{"n":1}', "outbox", "No such file or directory", "Permission denied", "3",
        "No such file or directory", "2", '{"n":1}', "401", "404", "404",
    ], result  # fmt: skip


FOLLOWED = "cat /agent/containers/sessions/$id/output@follow"
WATCHED = (
    'curl -sN --unix-socket $AGENTFS_SOCKET -H "Authorization: Bearer $AGENTFS_TOKEN"'
    ' "$AGENTFS_URL/containers/sessions/$id/output?watch=1&since=0"'
)


PATIENT = """
import sys
if "serve" in sys.orig_argv:
    import agentfs.faces.http
    sys.modules["agentfs.faces.http.serve"].GRACE_SECONDS = 1000.0
"""


def made_patient(machine: Machine) -> None:
    """Have its runtime wait long for whoever does not read, and for what runs, if it has to wait for them at a stop."""
    place = machine.state.path.parent / "patient"
    place.mkdir()
    (place / "sitecustomize.py").write_text(PATIENT)
    machine.env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(place), machine.env.get("PYTHONPATH")]))
    machine.env["AGENTFS_DRAIN_SECONDS"] = "1000"


@pytest.mark.parametrize("is_read", [True, False])
def test_a_session_that_follows_its_own_output_is_bounded_and_stops(machine: Machine, *, is_read: bool) -> None:
    machine.env["AGENTFS_LIMITS_LOG_BYTES"] = str(1 << 20)
    made_patient(machine)
    machine.run("mount", "--agent", "demo")
    command = FOLLOWED if is_read else f"seq 1000000; {WATCHED} | (head -c 9 > taken; {sleeper(machine)})"
    made = json.loads(new(machine, commands=[f"id=$(ls /agent/containers/sessions); echo begin; {command}"]))
    top = f"sessions/{made['session_id']}"
    there = f"$M/agents/demo/containers/{top}"
    waited(machine, f"[ $(head -c 9 {there}/output | grep -c seq.:1,) = 0 ]")  # it goes round
    for _ in range(10):
        assert (
            int(machine.shell(f"stat -c %s {there}/output").stdout) <= 4 << 20
        )  # two logs, and what one commit brings
    if is_read:
        curl(machine, f"-d stop $URL/agents/demo/containers/{top}/ctl")
        assert ended(machine, top)["error"] == "stopped"
    else:
        waited(machine, f"[ -s {there}/files/taken ]")
    machine.run("umount")  # within its minute
