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
            child = machine.spawn_with(words, "keys", "recover")
            assert child.returncode == 0, child
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
