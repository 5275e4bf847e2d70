"""A container engine of the suite's own: a real one, on a socket and a directory that go with it, and two images."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from agentfs.containers.documents import Limits, Words, argv_of
from agentfs.containers.port import Command, Exit, Spec
from agentfs.providers.containers.docker import Docker
from agentfs.providers.containers.workdir import Owner

_NOBODY: Final = 300_000 + os.getpid() % 100_000  # of this run alone, so that what is left over is seen to be its own
OWNER: Final = Owner(_NOBODY, _NOBODY)
BUSYBOX: Final = "agentfs-test/busybox:1"
PYTHON: Final = "agentfs-test/python:1"
_STARTS_S = 60
_STOPS_S = 30


class Boxes:
    """A provider over *engine*, whose code runs as nobody of this machine, and one session of it at a time."""

    def __init__(self, engine: Engine, top: Path, runtime: str = "suite", **options: Any) -> None:
        self.top = top / "boxes"
        given = {"network": engine.network} | options
        self.provider = Docker(self.top, OWNER, runtime, str(engine.socket), **given)
        self.count = 0

    def spec(self, id: str = "s1", image: str = BUSYBOX, view: str = "", **limits: Any) -> Spec:
        given = {"max_memory_mb": 64, "max_disk_mb": 8, "max_processes": 40, "max_files": 2000} | limits
        return Spec(id, "ada", image, limits=Limits(**given), view=view)

    async def run(self, spec: Spec, words: Words, id: str = "", **about: Any) -> Ran:
        """Run *words* to the end."""
        self.count += 1
        out, err, ended = bytearray(), bytearray(), None
        command = Command(id or str(self.count), argv_of(words), **about)
        async with aclosing(self.provider.run(spec, command)) as happenings:
            async for happening in happenings:
                if isinstance(happening, Exit):
                    assert ended is None
                    ended = happening
                else:
                    (err if happening.stream == "stderr" else out).extend(happening.data)
        assert ended is not None
        return Ran(ended.code, ended.cause, bytes(out).decode(), bytes(err).decode())


class Ran(NamedTuple):
    """How a command ended and what it said."""

    code: int
    cause: str
    out: str
    err: str


class Engine:
    """One dockerd: without a bridge and without any rule of the firewall; `start` and `stop` as often as wanted."""

    network = "bridge"  # which is not there

    def __init__(self, top: Path | None = None) -> None:
        self.top = top or Path(tempfile.mkdtemp(prefix="agentfs-docker-", dir="/tmp"))  # a socket's path is short
        self.socket = self.top / "docker.sock"
        self.address = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        top = self.top
        argv = ["setpriv", "--pdeathsig", "TERM", *self._argv()]  # tests that are killed leave no engine behind
        with (top / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, cwd=top, stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + _STARTS_S
        while self.docker("version", check=False).returncode != 0:
            assert self.process.poll() is None and time.monotonic() < until, (top / "log").read_text()[-3000:]
            time.sleep(0.1)

    def _argv(self) -> list[str]:
        top = self.top
        return [
            "dockerd", "--host", self.address, "--data-root", str(top / "root"), "--exec-root", str(top / "exec"),
            "--pidfile", str(top / "pid"), "--iptables=false", "--ip6tables=false", "--ip-masq=false", "--bridge=none",
        ]  # fmt: skip

    def docker(self, *words: str, check: bool = True, stdin: int | None = None) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"DOCKER_HOST": self.address}
        return subprocess.run(
            ["docker", *words], env=env, stdin=stdin, capture_output=True, text=True, timeout=120, check=check
        )

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the engine and what it started itself; a killed engine's containers go on."""
        if self.process is None:
            return
        children = _below(self.process.pid)
        self.send(signal.SIGCONT)
        self.send(number)
        try:
            self.process.wait(_STOPS_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
        (self.top / "exec" / "containerd" / "containerd.pid").unlink(missing_ok=True)  # else the next waits for it
        for pid in children:  # its containerd, when it could not end it
            if b"containerd" in _command(pid) and b"shim" not in _command(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def remove(self) -> None:
        """End it, its containers, and all it has on the disk."""
        if self.process is None:
            self.start()
        ids = self.docker("ps", "-aq").stdout.split()
        if ids:
            self.docker("rm", "-f", "-v", *ids)
        self.stop()
        self.sweep()
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if (place := line.split()[1]).startswith(f"{self.top}/"):
                subprocess.run(["umount", "-l", place], check=True, timeout=30)
        shutil.rmtree(self.top)

    def sweep(self) -> None:
        """End what goes on without it and its containers: nothing."""

    def build(self, name: str, tree: Path, *changes: str) -> None:
        """Make image *name* of the files below *tree*."""
        words = [word for change in changes for word in ("--change", change)]
        with subprocess.Popen(["tar", "-C", str(tree), "-c", "."], stdout=subprocess.PIPE) as tar:
            assert tar.stdout is not None
            self.docker("import", *words, "-", name, stdin=tar.stdout.fileno())
        assert tar.returncode == 0

    def build_busybox(self) -> None:
        with tempfile.TemporaryDirectory() as place:
            busybox_tree(Path(place))
            self.build(BUSYBOX, Path(place))

    def build_python(self) -> None:
        """The interpreter of this machine with its library and what it is linked against."""
        with tempfile.TemporaryDirectory() as place:
            tree = Path(place)
            busybox_tree(tree)
            python_tree(tree)
            self.build(PYTHON, tree)


class Podman(Engine):
    """One of podman's in its place, which speaks the same over its socket."""

    network = "none-such"  # its bridge would be made on this machine, with rules of the firewall

    def _argv(self) -> list[str]:
        top = self.top
        return [
            "podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "file",
            "--root", str(top / "root"), "--runroot", str(top / "run"), "--tmpdir", str(top / "tmp"),
            "system", "service", "--time", "0", self.address,
        ]  # fmt: skip

    def sweep(self) -> None:
        """It leaves who watched each exec, for five minutes."""
        for place in Path("/proc").glob("[0-9]*"):
            if b"conmon" in (words := _command(int(place.name))) and bytes(self.top) in words:
                with suppress(ProcessLookupError):
                    os.kill(int(place.name), signal.SIGKILL)


def _below(pid: int) -> list[int]:
    """The children of *pid*."""
    words = Path(f"/proc/{pid}/task/{pid}/children")
    every = Path(f"/proc/{pid}/task").glob("*/children") if words.exists() else ()
    return [int(word) for path in every for word in _text(path).split()]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # of a thread that has ended
        return ""


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def busybox_tree(tree: Path) -> None:
    """A root of one static program and its many names."""
    (tree / "bin").mkdir()
    (tree / "etc").mkdir()
    binary = tree / "bin" / "busybox"
    shutil.copy(str(shutil.which("busybox")), binary)
    names = subprocess.run([binary, "--list"], capture_output=True, text=True, check=True, timeout=30).stdout.split()
    for name in names:
        if name != "busybox":
            (tree / "bin" / name).symlink_to("busybox")
    (tree / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\ncode:x:65532:65532::/work:/bin/sh\n")


def python_tree(tree: Path) -> None:
    """Add the interpreter that runs this, its standard library, and the libraries they need, at their own places."""
    binary = Path(sys.executable).resolve()
    library = Path(sysconfig.get_path("stdlib")).resolve()
    unwanted = shutil.ignore_patterns("test", "__pycache__", "site-packages", "dist-packages", "idlelib", "config-*")
    shutil.copytree(library, tree / library.relative_to("/"), ignore=unwanted, symlinks=True)
    _copy(tree, binary)
    (tree / "bin" / "python3").symlink_to(binary)
    for needing in [binary, *(library / "lib-dynload").glob("*.so")]:
        said = subprocess.run(["ldd", needing], capture_output=True, text=True, check=False, timeout=30).stdout
        for word in said.split():
            if word.startswith("/") and Path(word).exists():
                _copy(tree, Path(word))


def _copy(tree: Path, file: Path) -> None:
    place = tree / file.relative_to("/")
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)


@contextmanager
def an_engine(kind: type[Engine] = Engine) -> Iterator[Engine]:
    """One of *kind* that runs, with an image of busybox."""
    engine = kind()
    try:
        engine.start()
        engine.build_busybox()
        yield engine
    finally:
        engine.remove()
