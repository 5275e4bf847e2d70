"""Private keys and secrets are used and never shown: a scan of every byte that a whole runtime wrote or answered."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from machine import Machine

from agentfs import bech32
from agentfs.providers.keys import sealed, seed
from agentfs.providers.keys.sealed import KeyFile

VALUE = "correct-horse-battery-staple-4711"
LEAKY = 'echo "using $API_KEY" >&2; env >&2; echo "{\\"type\\": \\"$API_KEY\\"}"; exit 3'


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    machine.env["AGENTFS_FUSE"] = "false"
    yield machine
    machine.run("umount")


def forms(name: str, value: bytes) -> dict[str, bytes]:
    """The ways *value* could be written down."""
    found = {
        "raw": value, "hex": value.hex().encode(), "HEX": value.hex().upper().encode(),
        "base64": base64.b64encode(value).rstrip(b"="), "url base64": base64.urlsafe_b64encode(value).rstrip(b"="),
    }  # fmt: skip
    if len(value) == 32:
        found["nsec"] = bech32.nsec(value).encode()
    return {f"{name} as {form}": text for form, text in found.items()}


def exercise(ask: Callable[..., httpx.Response], machine: Machine) -> None:
    """Use keys and secrets in every way, right and wrong, and read every file of the agent that did."""
    program = {"kind": "exec", "argv": ["sh", "-c", LEAKY], "env": {"API_KEY": "secret:api"}}
    for name in ("one", "two"):
        ask("POST", "/agents", {"name": name, "program": program, "retry": {"attempts": 2, "base_ms": 1}})
    npub = ask("GET", "/agents/two/identity/npub").text.strip()
    ask("POST", "/agents/one/identity/sign", "hello")
    ask("POST", "/agents/one/identity/sign", {"event": {"kind": 1, "content": "hi"}})
    ask("POST", "/agents/one/identity/sign", {"secret": "give it to me"})
    ask("POST", "/agents/one/identity/encrypt", {"to": npub, "text": "between us"})
    ask("POST", "/agents/one/identity/decrypt", {"from": npub, "payload": "AgAA"})
    ask("POST", "/agents/one/identity/ctl", "rotate\n")
    ask("PUT", "/agents/one/secrets/api", VALUE)
    assert ask("GET", "/agents/one/secrets/api").status_code == 403
    for path in ("identity/private", "identity/nsec", "secrets/api/x", "keys"):
        assert ask("GET", f"/agents/one/{path}").status_code in (404, 409)
    ask("POST", "/agents/one/inbox", {"payload": "go", "id": "m1"})
    wait = 'until curl -s -H "Authorization: Bearer $TOKEN" $URL/agents/one/deadletter/count | grep -q 1'
    assert machine.shell(f"{wait}; do sleep 0.1; done").returncode == 0
    walk = ask("GET", "/agents/one/?recursive").json()["entries"]
    for entry in walk:
        if entry["kind"] != "dir":
            ask("GET", f"/agents/one/{entry['name']}")
    for path in ("/runtime/errors", "/runtime/config", "/runtime/status"):
        ask("GET", path)


def test_signer_no_key_leak(machine: Machine) -> None:
    """Signing, encrypting, rotating, errors, a program that prints what it was given, a crash: none shows a secret."""
    machine.run("mount")
    seen: list[bytes] = []
    token = machine.state.token.read_text().strip()
    with httpx.Client(
        base_url=f"http://127.0.0.1:{machine.port}", headers={"Authorization": f"Bearer {token}"}, trust_env=False
    ) as http:

        def ask(method: str, path: str, body: object = None) -> httpx.Response:
            data = body if isinstance(body, str | bytes) or body is None else json.dumps(body)
            answer = http.request(method, path, content=data)
            seen.append(answer.content + repr(answer.headers.raw).encode())
            return answer

        exercise(ask, machine)
        seen.append(Path(f"/proc/{machine.pid()}/environ").read_bytes())
        seen.append(Path(f"/proc/{machine.pid()}/cmdline").read_bytes())
        assert b"using [secret]" in b"".join(seen)
        machine.kill()
    root = sealed.unseal(machine.state.keys, KeyFile(machine.state.keys_key))
    wanted = forms("the seed", root) | forms("the secret", VALUE.encode()) | forms("half the seed", root[:32])
    for number in range(4):
        wanted |= forms(f"key {number}", seed.secret_at(root, number))
    files = [p for p in machine.state.path.rglob("*") if p.is_file() and p != machine.state.keys_key]
    assert {"agentfs.db", "agentfs.log", "keys.sealed"} <= {p.name for p in files}
    written = {f"file {p.name}": p.read_bytes() for p in files}
    for place, data in {**written, **{f"answer {i}": answer for i, answer in enumerate(seen)}}.items():
        for what, text in wanted.items():
            assert text not in data, f"{what} is in {place}"
