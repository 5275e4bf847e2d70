"""`agentfs` as it is typed: a runtime started, found again, stopped, killed; options and their errors."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from machine import Machine, free_port


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.run("umount")
    assert machine.mounted() == 0


def test_start_and_stop_are_each_done_once(machine: Machine, tmp_path: Path) -> None:
    link = tmp_path / "link"
    words = ("mount", "--agent", "demo", f"--link={link}")
    assert "created the agent demo" in machine.run(*words)
    again = machine.run(*words)
    assert "already running" in again
    assert "created" not in again
    assert link.readlink() == machine.place
    assert machine.look()["is_ready"] is True
    assert machine.mounted() == 1
    listing = subprocess.run(["ls", link / "agents"], capture_output=True, timeout=60, check=True)
    assert listing.stdout == b"demo\nnew\n"
    assert "stopped process" in machine.run("umount", f"--link={link}")
    assert not link.is_symlink()
    assert machine.mounted() == 0
    assert not machine.state.runtime.exists()
    assert "nothing is running" in machine.run("umount", f"--link={link}")
    assert machine.look()["is_running"] is False


def test_two_starts_at_once_make_one_runtime(machine: Machine) -> None:
    children = [machine.spawn("mount", "--no-fuse") for _ in range(4)]
    said = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0] * 4
    assert sorted(text.split(":")[0] for text in said) == ["already running"] * 3 + ["started"]


def test_a_killed_runtime_is_replaced_and_its_dead_mount_taken_off(machine: Machine) -> None:
    machine.run("mount")
    machine.kill()
    assert machine.mounted() == 1
    assert machine.look()["is_running"] is False
    assert "took a dead mount off" in machine.run("mount")
    assert machine.mounted() == 1
    machine.kill()
    assert "took a dead mount off" in machine.run("umount")
    assert machine.mounted() == 0


def test_a_stale_runtime_json_never_gets_its_process_stopped(machine: Machine) -> None:
    machine.run("init")
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as bystander:
        stale = {"url": "http://127.0.0.1:9", "pid": bystander.pid, "mount": str(machine.place), "version": "0"}
        machine.state.runtime.write_text(json.dumps(stale))
        assert machine.look()["is_running"] is False
        assert "nothing is running" in machine.run("umount")
        assert bystander.poll() is None
        bystander.kill()


def test_another_wish_is_refused_while_one_runs(machine: Machine, tmp_path: Path) -> None:
    machine.run("mount", "--no-fuse")
    assert "EBUSY" in machine.run("mount", code=1)
    assert "EBUSY" in machine.run("mount", "--no-fuse", f"--listen=127.0.0.1:{free_port()}", code=1)
    assert str(machine.pid()) in machine.run("serve", "--no-fuse", code=1)
    assert "EBUSY" in machine.run("fsck", f"--store={machine.state.store}", code=2)


def test_a_runtime_that_cannot_start_shows_its_log(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", machine.port)):
        said = machine.run("mount", "--no-fuse", code=1)
    assert said.startswith("agentfs: EIO: ")
    assert str(machine.state.log) in said
    assert len(said.splitlines()) > 1
    assert machine.look()["is_running"] is False


def test_a_stranger_on_the_port_is_not_taken_for_the_runtime(machine: Machine) -> None:
    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", machine.port), Stranger) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            assert "EIO" in machine.run("mount", "--no-fuse", code=1)
        finally:
            server.shutdown()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_foreground_stays_until_it_is_asked_to_end(machine: Machine, tmp_path: Path, sign: signal.Signals) -> None:
    link = tmp_path / "link"
    child = machine.spawn("mount", "--foreground", f"--link={link}")
    try:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(3)]
        assert lines[0].startswith("started")
        assert link.is_symlink()
        child.send_signal(sign)
        child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 0
    assert machine.mounted() == 0
    assert not link.is_symlink()
    assert not machine.state.runtime.exists()


def test_a_full_place_is_not_mounted_over(machine: Machine) -> None:
    (machine.place / "work").mkdir(parents=True)
    assert "ENOTEMPTY" in machine.run("mount", code=1)
    assert machine.mounted() == 0


def test_the_store_is_sound_after_a_stop_and_after_a_kill(machine: Machine) -> None:
    for end in (lambda: machine.run("umount"), machine.kill):
        machine.run("mount", "--no-fuse", "--agent", "demo")
        end()
        assert "sound" in machine.run("fsck")


def test_fsck_without_a_store_could_not_check(machine: Machine) -> None:
    assert "ENOENT" in machine.run("fsck", code=2)
    machine.run("init")
    machine.state.store.write_bytes(b"this is no database" * 1000)
    machine.run("fsck", code=2)
    assert machine.state.store.read_bytes() == b"this is no database" * 1000


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("config", "--effective", "--set", "nosuch=1"), "agentfs: EINVAL: flag nosuch: "),
        (("config", "--effective", "--set", "nosuch"), "agentfs: EINVAL: flag set: "),
        (("config", "--effective", "--listen=x"), "agentfs: EINVAL: flag listen: "),
        (("config", "--effective", "--config=/nosuch"), "agentfs: ENOENT: /nosuch: "),
        (("mount", "--store=disk"), "agentfs: EINVAL: flag store: "),
    ],
)
def test_errors_are_one_line(machine: Machine, words: tuple[str, ...], line: str) -> None:
    said = machine.run(*words, code=1)
    assert said.startswith(line)
    assert len(said.splitlines()) == 1


def test_effective_options_show_their_origin(machine: Machine) -> None:
    machine.run("init")
    (machine.state.path / "config.toml").write_text("\n[limits]\nhandles = 5\n")
    lines = machine.run("config", "--effective", "--store=memory", "-o", "jsonl").splitlines()
    shown = {item["name"]: (item["value"], item["origin"]) for item in map(json.loads, lines)}
    assert shown["store"] == ("memory", "flag")
    assert shown["state"] == (str(machine.state.path), "env AGENTFS_STATE")
    assert shown["limits.handles"] == (5, f"file {machine.state.path}/config.toml:3")
    assert shown["limits.hops"] == (32, "default")
    table = machine.run("config", "--effective", "-o", "table")
    assert table.startswith("NAME ")
    assert json.loads(machine.run("config", "-o", "json"))["error"] is None


def test_what_a_flag_sets_reaches_the_runtime(machine: Machine) -> None:
    machine.run("mount", "--no-fuse", "--store=memory", "--set", "limits.handles=77")
    url = urlsplit(str(machine.look()["url"]))
    connection = HTTPConnection(str(url.hostname), url.port, timeout=60)
    connection.request(
        "GET", "/runtime/config", headers={"Authorization": f"Bearer {machine.state.token.read_text().strip()}"}
    )
    text = connection.getresponse().read().decode()
    connection.close()
    assert "77" in text
    assert not machine.state.store.exists()
