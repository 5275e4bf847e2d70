"""Private keys and secrets are used and never shown: a scan of all that a whole runtime wrote, answered or held."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from leaks import descendants, forms, leaks, memory, shown, words
from machine import Machine

from agentfs import bech32
from agentfs.cli import process
from agentfs.providers.keys import curve, seed

WORDS = seed.fresh_words(256)
PHRASE = "Tr0ub4dor&3 opens no doors here"
VALUE = "correct-horse-battery-staple-4711"
OLD = "set-in-an-earlier-run-and-not-used-since-0815"
LEAKY = 'echo "using $API_KEY" >&2; env >&2; echo "{\\"type\\": \\"$API_KEY\\"}"; exit 3'
IMPORTED = curve.fresh()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    machine.env["AGENTFS_FUSE"] = "false"
    yield machine
    machine.run("umount")


class Asked:
    """The operator over HTTP, and everything that was answered."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self.seen = machine, list[bytes]()

    def __call__(self, method: str, path: str, body: object = None) -> httpx.Response:
        data = body if isinstance(body, str | bytes) or body is None else json.dumps(body)
        token = self._machine.state.token.read_text().strip()
        url = f"http://127.0.0.1:{self._machine.port}{path}"
        with httpx.Client(headers={"Authorization": f"Bearer {token}"}, trust_env=False) as http:
            answer = http.request(method, url, content=data)
        self.seen.append(answer.content + repr(answer.headers.raw).encode())
        return answer


def exercise(ask: Asked, machine: Machine) -> None:
    """Use keys and secrets in every way, right and wrong, and read every file of the agent that did."""
    program = {"kind": "exec", "argv": ["sh", "-c", LEAKY], "env": {"API_KEY": "secret:api"}}
    for name in ("one", "two"):
        ask("POST", "/agents", {"name": name, "program": program, "retry": {"attempts": 2, "base_ms": 1}})
    npub = ask("GET", "/agents/two/identity/npub").text.strip()
    ask("POST", "/agents/one/identity/sign", "hello")
    ask("POST", "/agents/one/identity/sign", {"event": {"kind": 1, "content": "hi"}})
    ask("POST", "/agents/one/identity/sign", {"secret": "give it to me"})
    payload = ask("POST", "/agents/one/identity/encrypt", {"to": npub, "text": "between us"}).text.strip()
    own = ask("GET", "/agents/one/identity/npub").text.strip()
    assert ask("POST", "/agents/two/identity/decrypt", {"from": own, "payload": payload}).text == "between us"
    ask("POST", "/agents/one/identity/decrypt", {"from": npub, "payload": "AgAA"})
    ask("POST", "/agents/one/identity/ctl", "rotate\n")
    ask("POST", "/agents/one/identity/ctl", f"import {'0' * 64} AAAA\n")
    ask("PUT", "/agents/one/secrets/api", VALUE)
    assert ask("GET", "/agents/one/secrets/api").status_code == 403
    for path in ("identity/private", "identity/nsec", "secrets/api/x", "keys"):
        assert ask("GET", f"/agents/one/{path}").status_code in (404, 409)
    ask("POST", "/agents/one/inbox", {"payload": "go", "id": "m1"})
    wait = 'until curl -s -H "Authorization: Bearer $TOKEN" $URL/agents/one/deadletter/count | grep -q 1'
    assert machine.shell(f"{wait}; do sleep 0.1; done").returncode == 0
    for entry in ask("GET", "/agents/one/?recursive").json()["entries"]:
        if entry["kind"] != "dir":
            ask("GET", f"/agents/one/{entry['name']}")
    for path in ("/runtime/errors", "/runtime/config", "/runtime/status"):
        ask("GET", path)
    assert b"using [secret]" in b"".join(ask.seen)


def keys() -> dict[str, bytes]:
    """All that nobody but the keeper may hold."""
    root = seed.seed_of(WORDS)
    found = forms("the seed", root) | forms("half the seed", root[:32]) | forms("the other half", root[32:])
    for number in range(4):
        found |= forms(f"key {number}", seed.secret_at(root, number))
    found |= forms("the imported key", IMPORTED) | forms("the passphrase", PHRASE.encode())
    return found | words("the words", WORDS)


def written(machine: Machine) -> Iterator[tuple[str, bytes]]:
    """The files below the state directory."""
    for path in machine.state.path.rglob("*"):
        if path.is_file():
            yield f"file {path.name}", path.read_bytes()


@contextlib.contextmanager
def runtime(machine: Machine) -> Iterator[subprocess.Popen[bytes]]:
    """A runtime that is this process's own child, and may dump its core into the directory above its state."""
    log, top = machine.state.open_log(), machine.state.path.parent
    command = [sys.executable, "-m", "agentfs.cli", "serve"]
    with subprocess.Popen(command, env=machine.env, cwd=top, stdout=log, stderr=log) as child:
        os.close(log)
        _, most = resource.prlimit(child.pid, resource.RLIMIT_CORE)
        most = resource.RLIM_INFINITY if os.geteuid() == 0 else most
        resource.prlimit(child.pid, resource.RLIMIT_CORE, (most, most))
        try:
            machine.run("status", "--wait=30")
            yield child
        finally:
            child.kill()


def cores(machine: Machine) -> list[Path]:
    """The core files that were dumped where `runtime` lets them."""
    return list(machine.state.path.parent.glob("core*"))


def crash(pid: int) -> None:
    """End a process as a bug in its interpreter would."""
    descriptor = os.pidfd_open(pid)
    os.kill(pid, signal.SIGABRT)
    assert process.is_gone(descriptor, 30)
    os.close(descriptor)


def adopt(machine: Machine) -> None:
    """Give the agent "two" a key from elsewhere."""
    done = machine.spawn_with(bech32.nsec(IMPORTED), "keys", "import", "two")
    assert done.returncode == 0 and curve.pubkey(IMPORTED).hex() in done.stdout, done


@pytest.mark.parametrize("keeper", ["process", "inline"])
def test_signer_no_key_leak(machine: Machine, keeper: str) -> None:
    """Signing, encrypting, rotating, errors, a program that prints what it was given, a crash: none shows a secret."""
    machine.env |= {"AGENTFS_KEEPER": keeper, "AGENTFS_KEYS_PASSPHRASE": PHRASE}
    assert machine.spawn_with(WORDS, "keys", "recover").returncode == 0
    machine.run("mount")
    ask = Asked(machine)
    exercise(ask, machine)
    adopt(machine)
    ask("POST", "/agents/two/identity/sign", "hello")
    processes = descendants(machine.pid())
    assert len(processes) >= (2 if keeper == "process" else 1)
    seen = [*shown(processes), *((f"answer {at}", answer) for at, answer in enumerate(ask.seen))]
    machine.kill()
    files = list(written(machine))
    assert {"file agentfs.db", "file agentfs.log", "file keys.sealed"} <= {name for name, _ in files}
    assert leaks(keys() | forms("the secret", VALUE.encode()), [*files, *seen]) == []


def test_a_dump_of_the_runtime_holds_no_key(machine: Machine) -> None:
    """Its memory, while it runs and signs, and the core that a crash leaves; the keeper leaves none."""
    machine.env["AGENTFS_KEYS_PASSPHRASE"] = PHRASE
    assert machine.spawn_with(WORDS, "keys", "recover").returncode == 0
    with runtime(machine):
        ask = Asked(machine)
        exercise(ask, machine)
        ask("PUT", "/agents/one/secrets/old", OLD)
        adopt(machine)
    machine.run("umount")
    wanted = keys() | forms("a secret of an earlier run", OLD.encode())
    with runtime(machine) as child:
        for path in ("one/identity/sign", "two/identity/sign", "three/identity/sign"):
            ask("POST", f"/agents/{path}", "hello")
        ask("POST", "/agents/one/identity/ctl", "rotate\n")
        ask("POST", "/agents/one/inbox", {"payload": "go", "id": "m2"})
        ask("GET", "/agents/one/secrets/old")
        (keeper,) = [
            pid for pid in descendants(child.pid) if b"keys.process" in dict(shown([pid]))[f"cmdline of {pid}"]
        ]
        held = memory(child.pid)
        assert machine.state.token.read_bytes().strip() in held  # it does look into the memory
        assert leaks(wanted, [("memory", held), *shown(descendants(child.pid))]) == []
        crash(keeper)
        assert cores(machine) == []
        crash(child.pid)
    if not Path("/proc/sys/kernel/core_pattern").read_text().startswith(("|", "/")) and os.geteuid() == 0:
        (core,) = cores(machine)
        held = core.read_bytes()
        assert machine.state.token.read_bytes().strip() in held and leaks(wanted, [("core", held)]) == []
    assert leaks(wanted, written(machine)) == []


def test_the_scan_finds_what_is_there(machine: Machine) -> None:
    """A runtime that keeps its keys itself has them in memory; and every form is known, wherever it stands."""
    machine.env |= {"AGENTFS_KEEPER": "inline", "AGENTFS_KEYS_PASSPHRASE": PHRASE}
    assert machine.spawn_with(WORDS, "keys", "recover").returncode == 0
    with runtime(machine) as child:
        Asked(machine)("MKCOL", "/agents/one")
        found = leaks(keys(), [("memory", memory(child.pid))])
    assert {"the seed as raw is in memory", "key 0 as raw is in memory"} <= set(found)
    secret = os.urandom(32)
    for text in (
        secret, secret.hex().encode(), secret.hex().upper().encode(), bech32.nsec(secret).encode(),
        *(base64.b64encode(bytes(shift) + secret + b"behind") for shift in range(3)),
        *(base64.urlsafe_b64encode(bytes(shift) + secret) for shift in range(6)),
    ):  # fmt: skip
        assert leaks(forms("it", secret), [("place", b"before " + text + b" behind")]) != []
    assert leaks(words("words", WORDS), [("place", b" ".join(WORDS.encode().split()[9:13]))]) == ["words 9 is in place"]
    assert leaks(forms("it", secret), [("place", os.urandom(1000))]) == []
