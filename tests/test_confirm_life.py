"""A whole runtime with a call that waits: it stops at once, and what nobody reads cannot be allowed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path as FsPath

import httpx
import pytest
from fusemount import is_waiting, wait_for

from conformance.drivers import PROGRAM, Runtime


@pytest.fixture
def runtime(tmp_path: FsPath) -> Iterator[Runtime]:
    runtime = Runtime("sqlite", tmp_path)
    runtime.start()
    yield runtime
    runtime.stop()


PATIENT = """
import importlib, runpy
importlib.import_module("agentfs.faces.http.serve").GRACE_SECONDS = 1000.0
runpy.run_module("agentfs.cli", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def patient(tmp_path: FsPath) -> Iterator[Runtime]:
    """A runtime that lets what it is asked go on for ever when it stops, if it does not end it."""
    runtime = Runtime("sqlite", tmp_path, settings=["drain_seconds=1000"])
    runtime._argv[1:3] = ["-c", PATIENT]
    runtime.start()
    yield runtime
    runtime.stop()


def client(runtime: Runtime) -> httpx.Client:
    headers = {"Authorization": f"Bearer {runtime.token}"}
    return httpx.Client(base_url=runtime.url, headers=headers, timeout=60, trust_env=False)


def states(http: httpx.Client) -> list[tuple[str, str]]:
    """Id and state of every request there is."""
    names = [entry["name"] for entry in http.get("/agents/a/approvals/").json()["entries"] if entry["name"] != "events"]
    found = [http.get(f"/agents/a/approvals/{name}/status").json() for name in names]
    return [(row["id"], row["state"]) for row in found]


def ask(runtime: Runtime, http: httpx.Client) -> list[subprocess.Popen[str]]:
    """An agent with a held identity and two who wait for it: a reader on the mount, and a client over HTTP."""
    http.post("/agents/new", json={"name": "a", "program": PROGRAM}).raise_for_status()
    table = http.get("/agents/a/ns").text.replace("identity sign_only", "identity sign_only confirm=operator")
    http.put("/agents/a/ns", content=table).raise_for_status()
    script = f"exec 3<>{runtime.place}/views/a/identity/sign; printf hello >&3; cat <&3; echo $?"
    url = f"{runtime.url}/views/a/identity/sign"
    curl = ["curl", "-sS", "-H", f"Authorization: Bearer {runtime.token}", "--data-binary", "hello", url]
    waiting = [
        subprocess.Popen(argv, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for argv in (["bash", "-c", script], curl)
    ]
    wait_for(lambda: len(states(http)) == 2)
    return waiting


def test_a_runtime_that_stops_does_not_wait_for_the_operator(patient: Runtime) -> None:
    with client(patient) as http:
        waiting = ask(patient, http)
    assert patient.stop() == 0
    said = [process.communicate(timeout=60)[0] for process in waiting]
    assert "ENOTCONN" in said[1] and not any("hello" in text for text in said)
    assert '"level":"error"' not in patient.log.read_text()


def test_after_a_kill_what_waited_is_withdrawn(runtime: Runtime) -> None:
    with client(runtime) as http:
        waiting = ask(runtime, http)
    runtime.process.kill()
    runtime.stop()
    for process in waiting:
        process.communicate(timeout=60)
    runtime.start()
    with client(runtime) as http:
        assert [state for _, state in states(http)] == ["withdrawn"] * 2
        id = states(http)[0][0]
        assert http.post(f"/agents/a/approvals/{id}/ctl", content="allow\n").json()["errno"] == "EEXIST"


def test_the_shell_waits_for_the_operators_echo(runtime: Runtime) -> None:
    """Also a reader that is killed while its shell, which opened the file, lives on."""
    with client(runtime) as http:
        shell, curl = ask(runtime, http)
        place = runtime.place
        children = subprocess.run(["pgrep", "-P", str(shell.pid)], text=True, capture_output=True, check=True)
        reader = int(children.stdout)
        wait_for(lambda: is_waiting(reader))
        os.kill(reader, 9)
        assert shell.communicate(timeout=60)[0].endswith("137\n")
        wait_for(lambda: [state for _, state in states(http)].count("withdrawn") == 1)
        (id,) = (id for id, state in states(http) if state == "pending")
        assert (place / f"agents/a/approvals/{id}/request").read_text() == "hello\n"
        denied = subprocess.run(
            ["bash", "-c", f"echo allow > {place}/views/a/approvals/{id}/ctl"],
            text=True,
            capture_output=True,
            check=False,
        )
        assert "Operation not permitted" in denied.stderr and curl.poll() is None
        subprocess.run(["bash", "-c", f"echo allow > {place}/agents/a/approvals/{id}/ctl"], check=True)
        assert len(curl.communicate(timeout=60)[0]) == 129
