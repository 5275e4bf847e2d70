"""The seed of all keys: its words are shown once, and bring every key back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from machine import Machine


def agentctl(machine: Machine, *words: str) -> str:
    env = machine.env | {
        "AGENTFS_URL": f"http://127.0.0.1:{machine.port}",
        "AGENTFS_TOKEN": machine.state.token.read_text(),
    }
    command = [sys.executable, "-m", "agentctl", *words]
    return subprocess.run(command, env=env, text=True, capture_output=True, timeout=60, check=True).stdout


def test_words_bring_the_keys_back(tmp_path: Path) -> None:
    found = []
    words = ""
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        machine = Machine(tmp_path / place)
        machine.env["AGENTFS_FUSE"] = "false"
        if not words:
            words = machine.run("keys", "new").strip()
            assert len(words.split()) == 24 and "EEXIST" in machine.run("keys", "new", code=1)
        else:
            command = [sys.executable, "-m", "agentctl", "identity", "recover"]
            for code in (0, 1):  # keys that are there are never replaced
                child = subprocess.run(command, env=machine.env, input=words, text=True, timeout=60, check=False)
                assert child.returncode == code
        machine.run("mount", "--agent", "demo")
        try:
            agentctl(machine, "identity", "rotate", "demo")
            shown = json.loads(agentctl(machine, "identity", "show", "demo", "--output", "jsonl"))
            assert len(shown["history"]) == 2 and shown["npub"].startswith("npub1")
            assert shown["npub"] in agentctl(machine, "identity", "--output", "jsonl")
            found.append([key["pubkey"] for key in shown["history"]])
        finally:
            machine.run("umount")
    assert found[0] == found[1]


def test_of_many_who_make_the_seed_at_once_one_does(tmp_path: Path) -> None:
    """Else words would be shown that bring nothing back."""
    machine = Machine(tmp_path)
    machine.env["AGENTFS_KEYS_PASSPHRASE"] = "open sesame"
    made = [(child, *child.communicate(timeout=60)) for child in [machine.spawn("keys", "new") for _ in range(4)]]
    assert sorted(child.returncode for child, _, _ in made) == [0, 1, 1, 1]
    assert sum(len(out.split()) for _, out, _ in made) == 24 and all("EEXIST" in err for _, out, err in made if not out)
    assert not list(machine.state.path.glob("*.draft")) and not list(machine.state.path.glob(".*.draft"))
