"""The documents do what they say: commands are run and their output compared, the reference agrees with the code."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import fake_openai
import pytest
from dockerkit import Engine
from docshell import Shell, plain, steps
from fake_openai import Said

from agentctl.cli import COMMANDS
from agentfs import services
from agentfs.cli import mounts, process
from agentfs.config import OPTIONS
from agentfs.engine.lifecycle import VERBS
from agentfs.errors import ROWS
from agentfs.state import StateDir

TOP = Path(__file__).parent.parent
REFERENCE = TOP / "docs" / "reference"
PAGES = sorted([TOP / "README.md", TOP / "CHANGELOG.md", *(TOP / "docs").rglob("*.md")])
GUIDES = [page for page in PAGES if page.name == "README.md" or page.parent.name in ("tutorial", "how-to")]
NEW_ID = "01999999-0000-7000-8000-000000000000"
NOT_RUN = {
    "./test.sh": "it runs this file",
}

MODELS_AT = "127.0.0.1:11434"  # where pages say that a server of models listens: a stand-in, as they say too
DOCKER_AT = "/var/run/docker.sock"  # and a container engine: one of this test's own
SCRIPTS: dict[str, Sequence[Said]] = {
    "make-an-agent-from-a-prompt": [
        [("list", {"path": "kv"})], [("write", {"path": "kv/list", "text": "bread\n"})], "Bread is on your list.",
        [("write", {"path": "kv/count.sh", "text": "ls kv | wc -l\n"})], "It is in kv/count.sh.",
        [("write", {"path": "kv/list", "text": ""})], "I may not change your notes.",
    ],
    "test-generated-code": [
        [("write", {"path": "kv/middle.sh", "text": "printf '%s\\n' \"$@\" | sort | sed -n 2p\n"})],
        [("run", {"command": "sh /agent/kv/middle.sh 9 10 100"})],
        [("write", {"path": "kv/middle.sh", "text": "printf '%s\\n' \"$@\" | sort -n | sed -n 2p\n"})],
        [("run", {"command": "sh /agent/kv/middle.sh 9 10 100"})],
        "It is in kv/middle.sh. At first it took 9, 10 and 100 for words.",
    ],
}  # fmt: skip

# What mount.sh runs once everything is installed; installing is what test.sh begins with.
MOUNT_SH = """#!/usr/bin/env bash
verb=up
case ${1-} in up | down | status) verb=$1; shift ;; esac
case $verb in
  up) exec python -m agentfs.cli mount --agent demo --link mnt "$@" ;;
  down) exec python -m agentfs.cli umount --link mnt "$@" ;;
  status) exec python -m agentfs.cli status --output table "$@" ;;
esac
"""


class Desk:
    """A reader's checkout: ``mount.sh``, the commands on PATH, a state directory and a port of its own."""

    def __init__(self, top: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.top, self.state, self.place = top / "checkout", StateDir(top / "state"), top / "mounted"
        self.top.mkdir()
        (self.top / "mount.sh").write_text(MOUNT_SH)
        (self.top / "mount.sh").chmod(0o755)
        shutil.copytree(TOP / "agentfs", self.top / "agentfs")  # with what is compiled already
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENTFS_")}
        self.env = kept | {
            "AGENTFS_STATE": str(self.state.path),
            "AGENTFS_MOUNT": str(self.place),
            "AGENTFS_LISTEN": f"127.0.0.1:{self.port}",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{self.top}{os.pathsep}{TOP}",
        }
        self.shell, self._stack = Shell(self.top, self.env), ExitStack()
        self._models, self._socket = MODELS_AT, DOCKER_AT

    def follow(self, page: Path) -> None:
        """Do what *page* says, on a runtime that it starts itself or finds running."""
        todo = list(steps(page.read_text()))
        if MODELS_AT in page.read_text():
            models = self._stack.enter_context(fake_openai.in_thread())
            models.script.extend(SCRIPTS.get(page.stem, ()))
            self._models = models.url.removeprefix("http://").removesuffix("/v1")
        if DOCKER_AT in page.read_text():
            engine = Engine()
            self._stack.callback(engine.remove)
            engine.start()
            self._socket = str(engine.socket)
            assert self.shell.run(f"export DOCKER_HOST={engine.address}", None) is None
        if not any("./mount.sh" in step.text for step in todo):
            assert self.shell.run("./mount.sh", "...") is None
        for step in todo:
            if step.file:
                file = self.top / step.file
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(step.text)
            elif not step.text.startswith(tuple(NOT_RUN)):
                self._try(page, step.line, step.text, step.output)

    def _try(self, page: Path, line: int, command: str, output: str | None) -> None:
        command = command.replace(MODELS_AT, self._models).replace(DOCKER_AT, self._socket)
        printed = self.shell.run(re.sub(r"(localhost|127\.0\.0\.1):8080", rf"\1:{self.port}", command), output)
        if printed is not None:
            pytest.fail(f"{page.relative_to(TOP)}:{line}: $ {command}printed\n{plain(printed)}\ninstead of\n{output}")

    def clear(self) -> None:
        """End everything that was started here, whatever state it is in."""
        self.shell.close()
        command = [sys.executable, "-m", "agentfs.cli", "umount"]
        subprocess.run(command, env=self.env, cwd=self.top, timeout=60, check=False, capture_output=True)
        if mounts.entry(self.place) is not None:
            subprocess.run(["umount", "-l", self.place], timeout=30, check=True)
        self._stack.close()
        assert process.holder(self.state.lock) is None


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.clear()


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_commands_print_what_the_page_says(page: Path, desk: Desk) -> None:
    desk.follow(page)


def test_every_exception_is_used_and_has_a_reason() -> None:
    commands = [step.text for page in GUIDES for step in steps(page.read_text())]
    for prefix, reason in NOT_RUN.items():
        assert reason and any(text.startswith(prefix) for text in commands), prefix


def test_the_demo_program_is_in_the_readme() -> None:
    assert f"```python\n{(TOP / 'agentfs' / 'demo.py').read_text()}```\n" in (TOP / "README.md").read_text()


def test_links_lead_somewhere() -> None:
    links = [(page, to) for page in PAGES for to in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())]
    assert not [(page.name, to) for page, to in links if not to.startswith("http") and not (page.parent / to).exists()]


def test_every_page_is_listed() -> None:
    text = (TOP / "docs" / "README.md").read_text()
    pages = [str(page.relative_to(TOP / "docs")) for page in (TOP / "docs").rglob("*.md")]
    assert not [page for page in pages if f"({page})" not in text and page != "README.md"]


def test_a_difference_is_told(tmp_path: Path) -> None:
    shell = Shell(tmp_path, dict(os.environ))
    try:
        assert shell.run("echo one; echo two; (read -t 0.1 <> <(:); echo late) &", "one\n...\nlate\n") is None
        assert shell.run("echo one", "two\n", seconds=0.5) == "one\n"
        assert shell.run("false", None, seconds=0.5) == "(exit code 1)"
        assert shell.run("echo 'a 01890a5d-ac96-774b-bcce-b302099a8057'", f"a {NEW_ID}\n") is None
    finally:
        shell.close()


# -- the reference -----------------------------------------------------------------------------------------------------


def test_the_reference_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, TOP / "docs" / "generate.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_error_row_is_in_the_reference() -> None:
    text = (REFERENCE / "errors.md").read_text()
    missing = [
        row.name for row in ROWS if not re.search(rf"^\| `{row.name}`.* \| {row.status} \| {row.text} \|$", text, re.M)
    ]
    assert not missing


def test_every_option_is_in_the_reference() -> None:
    text = (REFERENCE / "options.md").read_text()
    assert not [o.name for o in OPTIONS.values() if f"| `{o.name}` | `{o.env}` |" not in text]


def test_every_command_is_in_the_reference() -> None:
    text = (REFERENCE / "agentctl.md").read_text()
    assert not [name for name in COMMANDS if f"## agentctl {name}\n" not in text]


def test_every_verb_is_in_the_reference() -> None:
    (line,) = re.findall(r"^\| `ctl` \| ctl \|.*$", (REFERENCE / "services.md").read_text(), re.MULTILINE)
    assert not [verb for verb in VERBS if not re.search(rf"`{verb}[` ]", line)]


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(services.__path__)])
def test_a_service_names_exactly_its_files(name: str) -> None:
    """The man page is the docstring: each file it names is in the table of its tree, and each of those is named."""
    section = (REFERENCE / "services.md").read_text().partition(f"## {name}\n")[2].partition("\n## ")[0]
    table = set(re.findall(r"^\| `([^`]+[^`/])` \|", section, re.MULTILINE))
    doc = importlib.import_module(f"agentfs.services.{name}").__doc__ or ""
    named = {re.sub(r"<(\w+)>", r"{\1}", path) for path in re.findall(r"``([^`\s]+)``\s+\((?:RW?|W|S|N|X|C)\b", doc)}
    named |= {name} & table  # the title names the file of a service that is one file
    assert {path for path in table if not any(_is_named(path, n) for n in named)} == set(), "not in the docstring"
    assert {n for n in named if not any(_is_named(path, n) for path in table)} == set(), "no such file"


def _is_named(path: str, name: str) -> bool:
    return path == name or path.endswith(f"/{name}")
