"""What a start does not wait for: each command and the runtime import only what they are about to use."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

LARGE = {
    "asyncio", "coincurve", "cryptography", "docker", "httpcore", "httpx", "hypercorn", "mnemonic", "numpy", "pydantic",
    "pyfuse3", "rich", "sqlite_utils", "starlette", "trio",
}  # fmt: skip
EACH_RUNTIME = {"asyncio", "hypercorn", "starlette", "trio"}  # anyio's and sse-starlette's own need is the first
OF_TYPER = {"pydantic"}  # some of its versions need it, when a command runs


def imported(*words: str) -> set[str]:
    """The large ones among what Python imports for a command."""
    command = [sys.executable, "-X", "importtime", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    packages = re.findall(r"^import time:.*\| +(\w+)\.[\w.]+$", done.stderr, re.MULTILINE)  # one alone may be refused
    assert len(packages) > 50, done.stderr
    return set(packages) & LARGE


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("agentfs.cli", set()),
        ("agentfs.runtime", EACH_RUNTIME),
        ("agentctl.cli", {"httpx"}),
    ],
)
def test_a_module_imports_nothing_large_that_it_may_not_use(module: str, allowed: set[str]) -> None:
    assert imported("-c", f"import {module}") <= allowed


def test_looking_at_a_runtime_takes_no_package_of_its_own() -> None:
    assert imported("-m", "agentfs.cli", "status", "--state", "/nonexistent") <= OF_TYPER


def test_a_request_takes_no_event_loop_and_no_table() -> None:
    asked = ("-m", "agentctl", "--url", "http://127.0.0.1:9", "--token", "x", "ls")
    assert imported(*asked) <= {"httpx", "httpcore"} | OF_TYPER
