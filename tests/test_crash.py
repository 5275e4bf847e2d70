"""A whole runtime killed, stopped and crowded: what was acknowledged is done once, and it still answers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from machine import Machine

from agentctl.client import Client

SLEEPER = """
import json, sys, time
json.load(sys.stdin)
time.sleep(600)
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.run("umount")
    assert machine.mounted() == 0


def client(machine: Machine) -> Client:
    return Client(f"http://127.0.0.1:{machine.port}", machine.state.token.read_text().strip())


def until(machine: Machine, check: str, timeout: float = 60) -> None:
    done = machine.shell(f"until {check}; do sleep 0.1; done", timeout)
    assert done.returncode == 0


def test_crash_recovery(machine: Machine) -> None:
    """kill -9 in the middle of many sends: every acknowledged message has exactly one reply, none is lost."""
    machine.run("mount", "--agent", "demo")
    acknowledged: list[str] = []
    url, token = f"http://127.0.0.1:{machine.port}", machine.state.token.read_text().strip()

    def submit(numbers: range) -> None:
        with contextlib.suppress(httpx.HTTPError), httpx.Client(headers={"Authorization": f"Bearer {token}"}) as http:
            for number in numbers:
                body = {"id": f"m{number}", "payload": f"p{number}"}
                http.post(f"{url}/agents/demo/inbox", json=body).raise_for_status()
                acknowledged.append(f"m{number}")

    with ThreadPoolExecutor(4) as pool:
        for first in range(4):
            pool.submit(submit, range(first, 1_000_000, 4))  # more than there is time for: the kill ends them
        while len(acknowledged) < 80:
            time.sleep(0.01)
        machine.kill()
    assert len(acknowledged) >= 80
    machine.run("mount")
    until(machine, "grep -q '\"queue_depth\": 0' $M/agents/demo/status")
    replies = [json.loads(line) for line in machine.shell("cat $M/agents/demo/outbox").stdout.splitlines()]
    answered = [reply["metadata"]["reply_to"] for reply in replies]
    assert len(answered) == len(set(answered))
    assert set(acknowledged) <= set(answered)
    state = {json.dumps(reply["payload"]) for reply in replies}
    assert len(state) == len(replies)  # the counter in the state went up once a message
    assert machine.shell("cat $M/agents/demo/deadletter/count").stdout == "0\n"
    machine.run("umount")
    machine.run("fsck")


def test_stop_ends_a_running_tick_while_a_tick_is_written(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    machine.run("mount")
    program = json.dumps({"name": "slow", "program": {"kind": "exec", "argv": ["python3", f"{tmp_path}/sleeper.py"]}})
    machine.shell(f"cat > $AGENTFS_STATE/doc <<< '{program}'; cat $AGENTFS_STATE/doc > $M/agents/new")
    machine.shell("echo tick > $M/agents/slow/ctl")
    until(machine, "grep -q '\"is_ticking\": true' $M/agents/slow/status")
    done = machine.shell(
        "for i in 1 2 3 4; do echo tick > $M/agents/slow/ctl & done; echo stop > $M/agents/slow/ctl; wait"
    )
    assert done.returncode == 0, done
    until(machine, "grep -q ECANCELED $M/agents/slow/logs/ticks")
    assert machine.shell("pgrep -f '[s]leeper.py' | wc -l").stdout.strip() in {"0", "1", "2"}
    machine.shell("echo pause > $M/agents/slow/ctl; echo stop > $M/agents/slow/ctl")
    until(machine, "! pgrep -f '[s]leeper.py' > /dev/null")


def test_exec_program_has_its_own_view_url_and_token(machine: Machine) -> None:
    machine.run("mount")
    script = (
        'cat > /dev/null; cat "$AGENTFS_ROOT/status" > "$AGENTFS_ROOT/kv/seen"; '
        'curl -sS -f -H "Authorization: Bearer $AGENTFS_TOKEN" "$AGENTFS_URL/status" > status.json && '
        'cp status.json "$AGENTFS_ROOT/kv/over_http"; '
        'curl -sS -o /dev/null -w "%{http_code}" -H "Authorization: Bearer $AGENTFS_TOKEN" "$AGENTFS_URL/agents" '
        '> "$AGENTFS_ROOT/kv/others"; echo to the log >&2; env | cut -d= -f1 > "$AGENTFS_ROOT/kv/env"'
    )
    with client(machine) as control:
        body = {"name": "own", "program": {"kind": "exec", "argv": ["bash", "-c", script]}}
        control.call("agents/new", json.dumps(body).encode())
        control.call("agents/own/inbox", b"go")
    until(machine, "grep -q outcome $M/agents/own/logs/ticks")
    assert '"ok"' in machine.shell("cat $M/agents/own/logs/ticks").stdout
    assert json.loads(machine.shell("cat $M/agents/own/kv/seen").stdout)["is_ticking"] is True
    assert json.loads(machine.shell("cat $M/agents/own/kv/over_http").stdout)["id"] == "own"
    assert machine.shell("cat $M/agents/own/kv/others").stdout == "404"
    assert "to the log" in machine.shell("cat $M/agents/own/logs/recent").stdout
    names = machine.shell("cat $M/agents/own/kv/env").stdout.split()
    assert {n for n in names if n.startswith("AGENTFS")} == {
        "AGENTFS_AGENT", "AGENTFS_ROOT", "AGENTFS_TOKEN", "AGENTFS_URL",
    }  # fmt: skip


def test_a_thousand_agents(machine: Machine) -> None:
    """Created, ticked, hibernated: every one answers, and the runtime holds nothing for them but rows."""
    machine.run("mount")
    echo = {"kind": "exec", "argv": ["true"]}
    with client(machine) as control:

        def make(first: int) -> None:
            with client(machine) as own:
                for number in range(first, 1000, 8):
                    body = {"name": f"a{number:04}", "program": echo}
                    own.call("agents/new", json.dumps(body).encode())
                    own.call(f"agents/a{number:04}/inbox", b"tick")

        threads = [threading.Thread(target=make, args=(first,)) for first in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while json.loads(control.read("runtime/status"))["awake"]:
            time.sleep(0.1)
        assert json.loads(control.read("runtime/status"))["agents"] == 1000
        for number in (0, 500, 999):
            status = json.loads(control.read(f"agents/a{number:04}/status"))
            assert status["tick_count"] == 1 and status["state"] == "dormant"
    assert len(machine.shell("ls $M/agents").stdout.split()) == 1001


def test_a_thousand_blocked_readers(machine: Machine) -> None:
    machine.run("mount", "--agent", "demo")
    path = machine.place / "agents/demo/outbox@follow"
    code = (
        "import os, sys, threading\n"
        "def read():\n fd = os.open(sys.argv[1], os.O_RDONLY)\n os.read(fd, 100)\n"
        "for _ in range(250): threading.Thread(target=read, daemon=True).start()\n"
        "print('up', flush=True); sys.stdin.read()"
    )
    readers = [
        subprocess.Popen(["python3", "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    try:
        for reader in readers:
            assert reader.stdout is not None and reader.stdout.readline() == b"up\n"
            until(machine, f"(( $(cat /proc/{reader.pid}/task/*/syscall | grep -c '^0 ') > 250 ))")  # all in read(2)
        for _ in range(5):
            assert machine.shell("timeout 50 cat $M/agents/demo/status").returncode == 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            blocked = subprocess.Popen(["cat", str(path)], stdout=subprocess.DEVNULL)
            until(machine, f"grep -q '^0 ' /proc/{blocked.pid}/syscall")  # in read(2)
            os.kill(blocked.pid, number)
            assert blocked.wait(timeout=60) == -number
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate(timeout=60)
