"""Runs the commands of a Markdown document in one shell, as its reader would, and compares what they print.

A ``console`` block holds ``$ command`` lines (``> `` continues one), each followed by what it prints; an ``sh`` block
only commands. A line ``...`` stands for any lines, ``...`` within a line for anything. A block of another language with
a file's name behind it, as in ``python hello.py``, is written to that file. Ids, times, ports, sizes and
blanks at the end of a line may differ.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w*)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = "== done"
PLAIN = (
    (r"[ \t]+$", ""),
    (r"(?m)^(/dev/fd/\d+|bash): (line \d+: )?", "bash: "),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "ID"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
    (r"\b[0-9a-f]{64}\b", "HASH"),
    (r"\b[0-9a-f]{16}-\d+\b", "CURSOR"),
    (r"\b\d{16,}\b", "VERSION"),
    (r"\bprocess \d+", "process PID"),
    (r"^bash: line \d+: ", "bash: "),
    (r"(localhost|127\.0\.0\.1):\d+", r"\1:PORT"),
    (r'("(?:pid|uptime_s|duration_ms|storage_bytes|free_bytes)": ?)\d+', r"\g<1>N"),
)


@dataclass(frozen=True)
class Step:
    """A command with what it should print, None for anything; or, with a *file*, text to write to it."""

    line: int
    text: str
    output: str | None = None
    file: str = ""


def steps(document: str) -> Iterator[Step]:
    """What a reader of *document* does, in order."""
    for fence in FENCE.finditer(document):
        language, name, text = fence.groups()
        line = document.count("\n", 0, fence.start()) + 2
        if language == "console":
            yield from _dialogue(text, line)
        elif language == "sh" and not name:
            yield Step(line, text)
        elif name:
            yield Step(line, text, file=name)


def _dialogue(text: str, line: int) -> Iterator[Step]:
    commands = list(re.finditer(r"^\$ (.*\n(?:> .*\n)*)((?:(?!\$ ).*\n)*)", text, re.MULTILINE))
    assert commands and commands[0].start() == 0, f"line {line}: a console block begins with a command"
    for found in commands:
        command = re.sub(r"^> ", "", found[1], flags=re.MULTILINE)
        yield Step(line + text.count("\n", 0, found.start()), command, found[2])


def plain(text: str) -> str:
    """*text* without what differs from run to run."""
    for pattern, name in PLAIN:
        text = re.sub(pattern, name, text, flags=re.MULTILINE)
    return text.strip("\n")


def matches(expected: str, printed: str) -> bool:
    """Whether *printed* is what a document says."""
    parts = [re.escape(line).replace(r"\.\.\.", ".*") + "\n" for line in plain(expected).splitlines()]
    pattern = "".join("(?:.*\n)*?" if part == ".*\n" else part for part in parts)
    return re.fullmatch(pattern, plain(printed) + "\n" if plain(printed) else "") is not None


class Shell:
    """One bash in the directory *top* with the environment *env*; commands that go on in the background print too."""

    def __init__(self, top: Path, env: Mapping[str, str]) -> None:
        read, self._script = os.pipe()
        self._process = subprocess.Popen(
            ["bash", f"/dev/fd/{read}"], cwd=top, env=env, pass_fds=[read], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        os.close(read)
        self._held = ""

    def run(self, command: str, output: str | None, seconds: float = 60.0) -> str | None:
        """Run *command* until it has ended and printed *output*; what it printed instead when that does not come."""
        os.write(self._script, f"{command}\nprintf '{MARK} %s\\n' $?\n".encode())
        deadline = time.monotonic() + seconds
        while True:
            printed, code = self._since_mark()
            if code is not None and (code == "0" if output is None else matches(output, printed)):
                self._held = ""
                return None
            if not self._take(deadline - time.monotonic()):
                self._held = ""
                return printed + (f"(exit code {code})" if output is None else "")

    def _since_mark(self) -> tuple[str, str | None]:
        marks = re.findall(rf"{MARK} (\d+)\n", self._held)
        return re.sub(rf"{MARK} \d+\n", "", self._held), marks[-1] if marks else None

    def _take(self, seconds: float) -> bool:
        """Take what is printed next; False when nothing comes in time."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if seconds <= 0 or not selector.select(seconds):
                return False
        piece = os.read(self._process.stdout.fileno(), 1 << 16)
        self._held += piece.decode(errors="replace")
        return bool(piece)

    def close(self) -> None:
        """End the shell and everything it started."""
        os.close(self._script)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()
