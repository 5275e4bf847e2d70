"""Two whole runtimes: an agent of one is let in by an agent of the other, over loopback and over TLS."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from machine import Machine
from signkit import Peer
from tlskit import Site

PROGRAM = """
set -e
ask() { printf '{"method": "POST", "url": "%s", "body": "%s", "form": "%s"}' "$OTHER/agents/demo/inbox" "$1" "$FORM"; }
auth=$(ask "hello" | curl -sS --fail -H "Authorization: Bearer $AGENTFS_TOKEN" -d @- "$AGENTFS_URL/identity/authorize")
curl -sS --fail $CURL -H "Authorization: $auth" -d "hello" "$OTHER/agents/demo/inbox" >&2
"""


class Home:
    """A runtime with the agent "sender"."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "agentctl", *words]
        return subprocess.run(command, env=self.machine.env, text=True, capture_output=True, timeout=60, check=False)

    def ctl(self, *words: str) -> str:
        """What the command prints."""
        done = self._run(*words)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def fails(self, *words: str) -> str:
        """What it says of why it cannot."""
        done = self._run(*words)
        assert done.returncode and not done.stdout, (words, done.stdout)
        return done.stderr

    def key(self) -> str:
        return self.ctl("read", "agents/sender/identity/npub").strip()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    machine = Machine(tmp_path / "home")
    machine.run("mount", "--no-fuse", "--agent=sender")
    try:
        yield Home(machine)
    finally:
        machine.run("umount")


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "there")
    machine.run("mount", "--no-fuse", "--agent=demo")
    try:
        yield machine
    finally:
        machine.run("umount")


def url_of(machine: Machine) -> str:
    return f"http://127.0.0.1:{machine.port}"


def let_in(machine: Machine, key: str, *allow: str) -> None:
    Home(machine).ctl("write", f"agents/demo/grants/{key}", json.dumps({"allow": allow}))


def send(home: Home, other: str, form: str, curl: str = "") -> None:
    """Have the program of "sender" send its message."""
    env = {"OTHER": other, "FORM": form, "CURL": curl}
    config = {"program": {"kind": "exec", "argv": ["sh", "-c", PROGRAM], "env": env}, "retry": {"attempts": 1}}
    home.ctl("write", "agents/sender/config", json.dumps(config))
    home.ctl("tick", "sender")


def came(machine: Machine, count: int) -> list[str]:
    """The sources of the messages that the agent "demo" accepted, once there are *count*."""
    for _ in range(400):
        text = Home(machine).ctl("read", "agents/demo/logs/trajectory")
        found = [json.loads(line) for line in text.splitlines()]
        sources = [line["source"] for line in found if line["type"] == "message_in"]
        if len(sources) >= count:
            return sources
        time.sleep(0.05)  # another process is waited for
    raise AssertionError(text)


def test_a_program_sends_a_signed_message(home: Home, there: Machine) -> None:
    let_in(there, home.key(), "/inbox:write")
    pubkey = home.ctl("read", "agents/sender/identity/pubkey").strip()
    for count, form in enumerate(("own", "nostr"), 1):
        send(home, url_of(there), form)
        assert came(there, count) == [pubkey] * count


def test_the_command_line_signs_as_an_agent(home: Home, there: Machine) -> None:
    other = ("--as", "sender", "--url", url_of(there))
    assert "EACCES" in home.fails(*other, "ls")
    let_in(there, home.key(), "/kv:read+write+manage", "/inbox:write", "/outbox:read", "/status:read")
    assert home.ctl(*other, "list").split() and '"demo"' in home.ctl(*other, "status", "demo")
    home.ctl(*other, "write", "agents/demo/kv/x", "red", "--exclusive")
    assert "EEXIST" in home.fails(*other, "write", "agents/demo/kv/x", "blue", "--exclusive")
    home.ctl(*other, "write", "agents/demo/kv/x", " and blue", "--append", "--key", "a key")
    assert home.ctl(*other, "read", "agents/demo/kv/x") == "red and blue"
    assert "x" in home.ctl(*other, "ls", "agents/demo/kv", "-R")
    assert '"to": "demo"' in home.ctl(*other, "send", "demo", "hello").replace('":"', '": "')
    assert "message 1: hello" in home.ctl(*other, "watch", "agents/demo/outbox", "--since", "0", "--limit", "1")
    assert "ENOENT" in home.fails(*other, "read", "agents/demo/config")
    assert "--url" in home.fails("--as", "sender", "ls")
    assert "ENOENT" in home.fails("--as", "nobody", "--url", url_of(there), "ls")
    assert "demo" not in home.ctl("list"), "its own runtime is asked for signatures alone"


def test_nothing_is_let_in_twice_by_a_restart(home: Home, there: Machine) -> None:
    peer, path = Peer(), "/agents/demo/kv/x"
    let_in(there, peer.pubkey, "/kv:read+write")
    headers = [peer.own("PUT", f"{url_of(there)}{path}", time.time_ns() + n * 10**9, b"1") for n in (0, 45)]

    def put(header: str) -> int:
        answer = httpx.put(f"{url_of(there)}{path}", headers={"Authorization": header}, content=b"1", trust_env=False)
        return answer.status_code

    assert [put(header) for header in headers] == [201, 204]
    there.run("umount")
    there.run("mount", "--no-fuse", "--agent=demo")
    assert [put(header) for header in headers] == [401, 401]
    assert put(peer.own("PUT", f"{url_of(there)}{path}", time.time_ns() + 50 * 10**9, b"1")) == 204


def test_over_tls(home: Home, tmp_path: Path) -> None:
    with Site(tmp_path / "site", mutual=False).running() as site:
        let_in(site.machine, home.key(), "/inbox:write", "/kv:read+write")
        ca = str(site.home / "ca.pem")
        send(home, site.url, "own", f"--cacert {ca}")
        assert len(came(site.machine, 1)) == 1
        other = ("--as", "sender", "--url", site.url)
        home.ctl(*other, "--ca", ca, "write", "agents/demo/kv/x", "red")
        assert home.ctl(*other, "--ca", ca, "read", "agents/demo/kv/x") == "red"
        assert "not believed" in home.fails(*other, "ls")


def test_where_certificates_say_who_asks_a_signature_does_not(tmp_path: Path) -> None:
    with Site(tmp_path / "site").running() as site:
        peer = Peer()
        let_in(site.machine, peer.pubkey, "/kv:read")
        header = peer.own("GET", f"{site.url}/agents/demo/kv", time.time_ns())
        for cert in ("demo", "operator"):
            with site.client(cert) as http:
                answer = http.get("/agents/demo/kv", headers={"Authorization": header})
                assert (answer.status_code, answer.json()["errno"]) == (401, "EACCES")
