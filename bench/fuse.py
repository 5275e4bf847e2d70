"""The mount: our binding and pyfuse3 under the real runtime, a libfuse server in C with the same names, and tmpfs.

python bench/fuse.py [SECONDS]

Each measurement is a small C program that does one thing over and over; it and the server it asks are pinned to one
processor and measured in turn, five times; the medians are operations a second, the ratios are to the C server, and to
tmpfs where the kernel may answer by itself. Needs a C compiler, libfuse3-dev, bubblewrap and root.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
from soak import SANDBOXES, session

from conformance.drivers import Runtime

HERE = Path(__file__).parent
ROUNDS = 5
CPU = max(os.sched_getaffinity(0))
MANY = 1000
LARGE = 100 << 20


@dataclass(frozen=True)
class Case:
    """One thing that is done: the *operation* of the client, and on which file of each tree."""

    operation: str
    path: str
    is_cached: bool = False

    @property
    def name(self) -> str:
        """How the result is called."""
        return f"{self.operation} {self.path}"

    def within(self, tree: Tree) -> Path:
        """The file in *tree*."""
        if self.path == "files/large":
            return tree.files / "large"
        return tree.top / self.path.replace(*tree.renamed)


class Tree(NamedTuple):
    """Where one of the trees is, where its files of a sandbox are, and what is called otherwise in it."""

    top: Path
    files: Path
    renamed: tuple[str, str] = ("", "")


CASES = [
    Case("pread", "agents/demo/status"),
    Case("stat", "agents/demo/status", is_cached=True),
    Case("fstat", "agents/demo/kv/x"),
    Case("stat", "agents/demo/kv/x", is_cached=True),
    Case("open-read-close", "agents/demo/status"),
    Case("open-write-close", "agents/demo/kv/x"),
    Case("append", "agents/demo/kv/log"),
    Case("readdir", "agents/many/kv", is_cached=True),
    Case("ls-l", "agents/many/kv", is_cached=True),
    Case("sequential-read", "files/large", is_cached=True),
    Case("pread", "files/large", is_cached=True),
]


def pinned(*words: str) -> list[str]:
    """The command *words* on the one processor."""
    return ["taskset", "-c", str(CPU), *words]


@contextmanager
def in_c(top: Path, program: Path) -> Iterator[Tree]:
    """The C server's tree, which has no files of a sandbox."""
    top.mkdir()
    (files := top.with_name("c-files")).mkdir()
    (files / "large").write_bytes(bytes(LARGE))
    server = subprocess.Popen(pinned(str(program), "-f", "-s", str(top)))
    try:
        while f" {top} " not in Path("/proc/self/mountinfo").read_text():
            os.sched_yield()
        yield Tree(top, files, ("many/kv", "many"))
    finally:
        server.terminate()
        server.wait(20)


@contextmanager
def on_tmpfs(top: Path) -> Iterator[Tree]:
    """The same names on tmpfs."""
    top.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(top)], check=True)
    try:
        for name in ("demo", "many"):
            (top / "agents" / name / "kv").mkdir(parents=True)
            (top / "agents" / name / "status").write_bytes(bytes(400))
        yield filled(Tree(top, top))
    finally:
        subprocess.run(["umount", str(top)], check=True)


@contextmanager
def by_runtime(folder: Path, binding: str) -> Iterator[Tree]:
    """A whole runtime's mount."""
    folder.mkdir()
    settings = [f"fuse_binding={binding}", "limits.kv_keys=2000", SANDBOXES]
    runtime = Runtime("memory", folder, settings=settings)
    runtime.start()
    try:
        os.sched_setaffinity(runtime.process.pid, {CPU})
        for name in ("demo", "many"):
            (runtime.place / "agents" / name).mkdir()
        yield filled(Tree(runtime.place, session(runtime.place / "agents/demo")))
    finally:
        runtime.stop()


def filled(tree: Tree) -> Tree:
    """*tree* with what is measured."""
    (tree.top / "agents/demo/kv/x").write_bytes(b"hello\n")
    for number in range(MANY):
        (tree.top / f"agents/many/kv/f{number:04}").write_bytes(b"hello\n")
    (tree.files / "large").write_bytes(bytes(LARGE))
    return tree


def measure(client: Path, case: Case, tree: Tree, seconds: float) -> float:
    """Operations a second."""
    path = case.within(tree)
    if case.operation == "append":
        path.write_bytes(b"")
    words = pinned(str(client), case.operation, str(path), str(seconds))
    return float(subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout)


def built(source: str, into: Path, *flags: str) -> Path:
    """The program of a C file."""
    program = into / source.removesuffix(".c")
    subprocess.run(["cc", "-O2", str(HERE / source), *flags, "-o", str(program)], check=True)
    return program


def main(seconds: float) -> None:
    """Measure, and print one JSON object."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "fuse3"], check=True, capture_output=True, text=True
        ).stdout.split()
        client = built("fuse_client.c", folder)
        trees = {
            "c": stack.enter_context(in_c(folder / "c", built("fuse_baseline.c", folder, *flags))),
            "tmpfs": stack.enter_context(on_tmpfs(folder / "tmpfs")),
            "wire": stack.enter_context(by_runtime(folder / "wire", "wire")),
            "pyfuse3": stack.enter_context(by_runtime(folder / "pyfuse3", "pyfuse3")),
        }
        found: dict[str, dict[str, float]] = {}
        for case in CASES:
            rates: dict[str, list[float]] = {name: [] for name in trees}
            for _ in range(ROUNDS):
                for name, tree in trees.items():
                    rates[name].append(measure(client, case, tree, seconds))
            medians = {name: statistics.median(each) for name, each in rates.items()}
            base = "tmpfs" if case.is_cached else "c"
            ratios = {f"{name}/{base}": round(medians[name] / medians[base], 3) for name in ("wire", "pyfuse3")}
            found[case.name] = {name: round(rate, 1) for name, rate in medians.items()} | ratios
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.5)
