"""The keys of a whole runtime: who holds them, what opens them, what is told when they do not open; keys imported."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from leaks import descendants, descriptors, read
from machine import Machine

from agentfs import bech32
from agentfs.cli import process
from agentfs.providers.keys import curve

PHRASE = "open sesame, please"
IN_SESSION = """
set -e
mkdir -p -m 700 "$HOME" "$XDG_RUNTIME_DIR"
printf pass | gnome-keyring-daemon --unlock --components=secrets >/dev/null
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    machine.env["AGENTFS_FUSE"] = "false"
    yield machine
    machine.run("umount")


def keeper(machine: Machine) -> list[int]:
    """The keeper's process, where there is one."""
    return [pid for pid in descendants(machine.pid()) if b"keys.process" in read(f"/proc/{pid}/cmdline")]


def sign(machine: Machine, agent: str = "demo") -> dict[str, str]:
    """What signing a text gives, over HTTP."""
    ask = f"""curl -s -H "Authorization: Bearer $TOKEN" -d '{{"text": "x"}}' $URL/agents/{agent}/identity/sign"""
    found: dict[str, str] = json.loads(machine.shell(ask).stdout)
    return found


def test_a_process_of_its_own_holds_the_keys_and_ends_with_the_runtime(machine: Machine) -> None:
    machine.run("mount", "--agent", "demo")
    before = sign(machine)["pubkey"]
    (first,) = keeper(machine)
    os.kill(first, signal.SIGTERM)  # as whoever stops all of a service does: the runtime may have to sign yet
    assert sign(machine)["pubkey"] == before and keeper(machine) == [first]
    os.kill(first, signal.SIGKILL)
    wait = 'until curl -sf -H "Authorization: Bearer $TOKEN" -d hi $URL/agents/demo/identity/sign; do sleep 0.1; done'
    assert machine.shell(wait).returncode == 0 and sign(machine)["pubkey"] == before
    (second,) = keeper(machine)
    descriptor = os.pidfd_open(second)
    machine.kill()
    assert process.is_gone(descriptor, 60)
    os.close(descriptor)
    assert machine.state.log.read_text().count("starting it again") == 1
    machine.run("mount")
    assert sign(machine)["pubkey"] == before
    descriptor = os.pidfd_open(keeper(machine)[0])
    machine.run("umount")
    assert process.is_gone(descriptor, 60)
    os.close(descriptor)


def test_who_holds_the_keys_makes_no_difference_to_them(machine: Machine) -> None:
    found = []
    for kind in ("inline", "process"):
        machine.run("mount", "--agent", "demo", f"--set=keeper={kind}")
        assert len(keeper(machine)) == (kind == "process")
        found.append(sign(machine)["pubkey"])
        machine.run("umount")
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["inline", "process"])
def test_what_does_not_open_is_told_at_the_start(machine: Machine, kind: str) -> None:
    machine.env |= {"AGENTFS_KEYS_PASSPHRASE": PHRASE, "AGENTFS_KEEPER": kind}
    machine.run("mount", "--agent", "demo")
    machine.run("umount")
    machine.env["AGENTFS_KEYS_PASSPHRASE"] = "open barley"
    for command in ("mount", "serve"):
        said = machine.run(command, code=1)
        assert "EINVAL" in said and "wrong passphrase or tampered with" in said and "barley" not in said
    machine.env["AGENTFS_KEYS_PASSPHRASE"] = ""
    assert "opened with a passphrase" in machine.run("serve", code=1)
    machine.env["AGENTFS_KEYS_PASSPHRASE"] = "x" * 5000
    assert "at most 4096 bytes" in machine.run("serve", code=1)
    machine.state.keys.chmod(0o644)
    machine.env["AGENTFS_KEYS_PASSPHRASE"] = PHRASE
    assert "EACCES" in machine.run("serve", code=1)


def test_a_passphrase_comes_on_a_descriptor_too(machine: Machine) -> None:
    machine.env["AGENTFS_KEYS_PASSPHRASE"] = PHRASE
    machine.run("keys", "new")
    del machine.env["AGENTFS_KEYS_PASSPHRASE"]
    agentfs = f"{sys.executable} -m agentfs.cli"
    done = machine.shell(f"cd /; AGENTFS_KEYS_FD=7 {agentfs} mount --agent demo 7< <(echo '{PHRASE}')")
    assert done.returncode == 0, done
    assert sign(machine)["sig"]
    machine.run("umount")
    what = "want the number of an open descriptor over 2"
    for fd in ("7", "x", "-1", "99999999999999999999", "0", "1", "2"):
        for command in ("serve", "mount"):
            said = machine.shell(f"echo '{PHRASE}' | AGENTFS_KEYS_FD={fd} {agentfs} {command}").stderr
            assert said == f"agentfs: EINVAL: AGENTFS_KEYS_FD: invalid argument: {what}\n"
    done = machine.shell(f"AGENTFS_KEYS_PASSPHRASE='{PHRASE}' {agentfs} mount <&-")  # then 0 is the next one free
    assert done.returncode == 0 and sign(machine)["sig"], done


def test_a_foreground_mount_shows_no_passphrase(machine: Machine) -> None:
    machine.env["AGENTFS_KEYS_PASSPHRASE"] = PHRASE
    child = machine.spawn("mount", "--foreground", "--agent", "demo")
    assert child.stdout is not None and "created" in child.stdout.readline()
    for pid in descendants(child.pid):
        assert PHRASE.encode() not in read(f"/proc/{pid}/environ")
        for number, leads_to in descriptors(pid):
            assert not leads_to.startswith("pipe:") or pid == child.pid or number in "012"
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    assert child.returncode == 0


def test_keys_in_memory_are_gone_with_the_runtime(machine: Machine) -> None:
    machine.run("mount", "--agent", "demo", "--set=keys=memory", "--store=memory")
    before = sign(machine)["pubkey"]
    assert not machine.state.keys.exists() and not machine.state.keys_key.exists()
    machine.run("umount")
    machine.run("mount", "--agent", "demo", "--set=keys=memory")
    assert sign(machine)["pubkey"] != before
    machine.run("umount")
    assert "another seed" in machine.run("mount", "--set=keys=memory", code=1)
    machine.env["AGENTFS_KEYS"] = "memory"
    assert "memory" in machine.run("keys", "new", code=1)


# -- keys from elsewhere -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["nsec", "hex"])
def test_a_key_is_imported_and_used(machine: Machine, form: str) -> None:
    machine.env["AGENTFS_KEYS_PASSPHRASE"] = PHRASE
    machine.run("mount", "--agent", "demo")
    secret, before = curve.fresh(), sign(machine)["pubkey"]
    text = bech32.nsec(secret) if form == "nsec" else secret.hex().upper()
    done = machine.spawn_with(f"{text}\n", "keys", "import", "demo")
    assert done.returncode == 0 and done.stdout == f"demo has the key {curve.pubkey(secret).hex()}\n", done
    assert sign(machine)["pubkey"] == curve.pubkey(secret).hex() != before
    machine.run("umount")
    machine.run("mount")
    assert sign(machine)["pubkey"] == curve.pubkey(secret).hex()
    again = machine.spawn_with(text, "keys", "import", "demo")
    assert again.returncode == 1 and "EEXIST" in again.stderr


def test_what_cannot_be_imported(machine: Machine) -> None:
    secret = curve.fresh()
    assert "no runtime" in machine.spawn_with(secret.hex(), "keys", "import", "demo").stderr
    machine.run("mount", "--agent", "demo")
    for text in (
        "",
        "0" * 64,
        "f" * 64,
        secret.hex()[1:],
        f"{secret.hex()}00",
        "nsec1abc",
        bech32.npub(secret),
        "é" * 64,
    ):
        done = machine.spawn_with(text, "keys", "import", "demo")
        assert done.returncode == 1 and "EINVAL" in done.stderr and len(done.stderr.splitlines()) == 1
        assert not text or text not in done.stderr
    assert "ENOENT" in machine.spawn_with(secret.hex(), "keys", "import", "nobody").stderr
    assert "EINVAL" in machine.spawn_with(secret.hex(), "keys", "import", "a/b").stderr
    machine.env["AGENTFS_KEYS_PASSPHRASE"] = PHRASE
    assert "opened with a key file" in machine.spawn_with(secret.hex(), "keys", "import", "demo").stderr
    del machine.env["AGENTFS_KEYS_PASSPHRASE"]
    machine.state.keys.rename(machine.state.path / "elsewhere")
    assert "no sealed file" in machine.spawn_with(secret.hex(), "keys", "import", "demo").stderr
    assert not machine.state.keys.exists()
    machine.run("keys", "new")
    assert "another keeper" in machine.spawn_with(secret.hex(), "keys", "import", "demo").stderr


# -- the keyring of the system -----------------------------------------------------------------------------------------


def in_session(machine: Machine, script: str) -> subprocess.CompletedProcess[str]:
    """Run *script* in a desktop session of its own, with a keyring that is open."""
    home = machine.state.path.parent / "home"
    names = {
        "HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run"), "XDG_DATA_HOME": str(home / "data"),
        "AGENTFS": f"{sys.executable} -m agentfs.cli", "AGENTFS_KEYS": "keyring",
    }  # fmt: skip
    kept = {name: value for name, value in machine.env.items() if name != "DBUS_SESSION_BUS_ADDRESS"}
    return subprocess.run(
        ["dbus-run-session", "--", "bash", "-c", IN_SESSION + script], env=kept | names, text=True,
        capture_output=True, timeout=90, check=False,
    )  # fmt: skip


def test_the_keyring_opens_the_keys(machine: Machine) -> None:
    """A real Secret Service: the passphrase is random and in no file of ours; without the keyring nothing opens."""
    secret = curve.fresh()
    use = """
        $AGENTFS mount --agent demo >&2
        curl -s -H "Authorization: Bearer $(cat $AGENTFS_STATE/operator.token)" http://$AGENTFS_LISTEN/agents/demo/identity/pubkey
        """
    done = in_session(machine, f"{use} echo {secret.hex()} | $AGENTFS keys import demo >&2; $AGENTFS umount >&2")
    assert done.returncode == 0, done
    assert machine.state.keys.exists() and not machine.state.keys_key.exists()
    again = in_session(machine, f"{use} $AGENTFS umount >&2")
    assert again.stdout.strip() == curve.pubkey(secret).hex() != done.stdout.strip() != "", again
    both = in_session(machine, "AGENTFS_KEYS_PASSPHRASE=x $AGENTFS serve")
    assert both.returncode == 1 and "want none given" in both.stderr
    shutil.rmtree(machine.state.path.parent / "home")
    other = in_session(machine, "$AGENTFS mount")
    assert other.returncode == 1 and "the keyring has no passphrase" in other.stderr, other
    machine.env["AGENTFS_KEYS"] = "sealed"
    assert "opened with a passphrase" in machine.run("serve", code=1)


def test_without_a_keyring_the_option_is_named(machine: Machine) -> None:
    machine.env |= {"AGENTFS_KEYS": "keyring", "DBUS_SESSION_BUS_ADDRESS": "unix:path=/nonexistent"}
    for command in (("serve",), ("mount",), ("keys", "new")):
        said = machine.run(*command, code=1)
        assert "ENOTCONN" in said and "keys: keyring: no keyring of the system answers" in said
    assert not machine.state.keys.exists()
