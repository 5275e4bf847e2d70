"""Sandboxes in a container engine beside the engine's own client: new ones, commands, bytes out, and files in and out.

python bench/containers_docker.py [SOCKET IMAGE]

Without arguments it starts an engine of its own with an image of busybox. Both sides alternate in the same engine, with
the same image. `docker run` is timed without any limits and with the walls and limits of a session. `files/` is a mount
by FUSE of a whole runtime; `docker cp` copies into and out of the very container of that session.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import msgspec
import trio
from sessions import asked, command

from agentfs.containers.documents import Limits
from agentfs.containers.port import Command, Output, Spec
from agentfs.providers.containers.catalog import owner
from agentfs.providers.containers.docker import Docker
from agentfs.types import Mode
from agentfs.types import Path as TreePath
from agentfs.views import Below
from conformance.drivers import Runtime

RUNS, EXECS, COPIES = 20, 25, 7
PROGRAM = ["/bin/echo", "hi"]
BULK_MIB = 64
BULK = ["/bin/sh", "-c", f"dd if=/dev/zero bs=1M count={BULK_MIB} 2>/dev/null"]
LIMITS = Limits(max_memory_mb=64)
LARGE_MIB, SMALL = 32, 300
WALLS = [
    "--user", "65532:65532", "--memory", "64m", "--memory-swap", "64m", "--cpus", "1", "--pids-limit", "264",
    "--read-only", "--tmpfs", "/tmp:rw,nosuid,nodev,exec,mode=1777,size=32m", "--ipc", "private", "--cgroupns",
    "private", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--log-driver", "none", "--shm-size", "16m",
    "--ulimit", "nofile=1024", "--ulimit", "core=0", "--ulimit", "fsize=536870912", "--workdir", "/work",
]  # fmt: skip
Times = dict[str, list[float]]


def ms(begun: float) -> float:
    """Milliseconds since *begun*."""
    return (time.perf_counter() - begun) * 1e3


async def through(box: Docker, spec: Spec, argv: list[str], id: str = "bench") -> tuple[float, float]:
    """Milliseconds to the first output and to the end of a command that says something."""
    begun, first = time.perf_counter(), 0.0
    async with aclosing(box.run(spec, Command(id, argv))) as happenings:
        async for happening in happenings:
            first = first or (ms(begun) if isinstance(happening, Output) else 0.0)
    assert first
    return first, ms(begun)


def bare(socket: str, *words: str) -> tuple[float, float]:
    """The same by the engine's own client."""
    begun, first = time.perf_counter(), 0.0
    env = os.environ | {"DOCKER_HOST": f"unix://{socket}"}
    with subprocess.Popen(["docker", *words], env=env, stdout=subprocess.PIPE, bufsize=0) as child:
        assert child.stdout is not None
        while child.stdout.read(65_536):
            first = first or ms(begun)
    assert child.returncode == 0
    return first, ms(begun)


async def fresh(box: Docker, image: str, id: str, main: str) -> float:
    """Milliseconds from nothing to the first output of a new sandbox; it stays."""
    begun, spec = time.perf_counter(), Spec(id, "bench", image, limits=LIMITS, main=main)
    await box.make(spec)
    made = ms(begun)
    return made + (await through(box, spec, PROGRAM))[0]


async def commands(socket: str, image: str, top: Path) -> Times:
    """Every time taken, by what was done."""
    box, took = Docker(top / "boxes", owner(), "bench", socket), Times()
    new, place = ["run", "--rm", "--network", "none", "--init"], top / "place"
    place.mkdir()
    walls = [*WALLS, "--volume", f"{place}:/work"]
    try:
        for number in range(RUNS):
            took.setdefault("docker_run", []).append(bare(socket, *new, image, *PROGRAM)[0])
            took.setdefault("docker_run_walls", []).append(bare(socket, *new, *walls, image, *PROGRAM)[0])
            took.setdefault("single", []).append(await fresh(box, image, f"single-{number}", "bench"))
            took.setdefault("session", []).append(await fresh(box, image, f"bench-{number}", ""))
            await box.remove(f"single-{number}")
            if number:
                await box.remove(f"bench-{number}")
        spec = Spec("bench-0", "bench", image, limits=LIMITS)
        for _ in range(EXECS):
            took.setdefault("docker_exec", []).append(bare(socket, "exec", "agentfs-bench-0", *PROGRAM)[1])
            took.setdefault("run", []).append((await through(box, spec, PROGRAM))[1])
        for _ in range(3):
            took.setdefault("docker_bulk", []).append(bare(socket, "exec", "agentfs-bench-0", *BULK)[1])
            took.setdefault("bulk", []).append((await through(box, spec, BULK))[1])
    finally:
        with trio.CancelScope(shield=True):
            for id in await box.found():
                await box.remove(id)
            await box.aclose()
    return took


def copied(words: list[str], env: dict[str, str]) -> float:
    """Milliseconds that a copy takes."""
    begun = time.perf_counter()
    subprocess.run(words, env=os.environ | env, check=True, timeout=120, capture_output=True)
    return ms(begun)


def copies(socket: str, container: str, files: Path, top: Path) -> Times:
    """Both ways, one large file and many small ones, by `cp` on the mount and by `docker cp`."""
    (top / "large").write_bytes(os.urandom(LARGE_MIB << 20))
    (top / "small").mkdir()
    for number in range(SMALL):
        (top / "small" / f"{number}.txt").write_bytes(os.urandom(1024))
    engine, took = {"DOCKER_HOST": f"unix://{socket}"}, Times()
    ways: dict[str, Callable[[str, str], list[str]]] = {
        "docker_cp": lambda source, target: ["docker", "cp", "-q", source, target],
        "files": lambda source, target: ["cp", "-r", source, target],
    }
    for number in range(COPIES):
        for what in ("large", "small"):
            for way, words in ways.items():
                inside = f"{container}:/work" if way == "docker_cp" else str(files)
                name, back = f"{what}-{way}-{number}", top / f"back-{what}-{way}-{number}"
                into = words(str(top / what), f"{inside}/{name}")
                took.setdefault(f"{way}_{what}_in", []).append(copied(into, engine))
                took.setdefault(f"{way}_{what}_out", []).append(copied(words(f"{inside}/{name}", str(back)), engine))
                subprocess.run(["diff", "-r", back, top / what], check=True, timeout=60)
                shutil.rmtree(back) if back.is_dir() else back.unlink()
    return took


async def mounted(socket: str, image: str, top: Path) -> Times:
    """The same files through the mount of a runtime in a process of its own, and by the client."""
    place = json.dumps({"docker": {"kind": "docker", "socket": socket, "image": image}})
    runtime = Runtime("sqlite", top, settings=[f"sandboxes={place}"])
    await trio.to_thread.run_sync(runtime.start)
    try:
        async with runtime.http() as driver:
            await driver.agent("bench")
            own = Below(driver.tree, TreePath("views/bench"))
            made = await asked(own, "containers/new", {"kind": "interactive", "limits": {"max_disk_mb": 2048}})
            await command(own, made["exec_path"])  # it is there
            files = runtime.place / "agents" / "bench" / made["files_path"]
            took = await trio.to_thread.run_sync(copies, socket, f"agentfs-{made['session_id']}", files, top)
            async with await own.open(TreePath(f"containers/sessions/{made['session_id']}/ctl"), Mode.WRITE) as handle:
                await handle.write(b"stop\n", 0)
            return took
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(runtime.stop)


def shown(took: Times) -> str:
    """Medians, what the provider takes against the client, as JSON; differences are medians of those of each round."""
    middle = {name: round(statistics.median(times), 1) for name, times in took.items()}
    found: dict[str, float] = {f"{name}_ms": time_ms for name, time_ms in middle.items()}
    for name, other in (("single", "docker_run"), ("single", "docker_run_walls"), ("session", "docker_run_walls")):
        pairs = zip(took[name], took[other], strict=True)
        found[f"{name}_over_{other}_ms"] = round(statistics.median(one - two for one, two in pairs), 1)
    found["exec_ratio"] = round(middle["run"] / middle["docker_exec"], 2)
    found["throughput_ratio"] = round(middle["docker_bulk"] / middle["bulk"], 2)
    for what in ("large_in", "large_out", "small_in", "small_out"):
        found[f"{what}_ratio"] = round(middle[f"files_{what}"] / middle[f"docker_cp_{what}"], 2)
    return msgspec.json.encode(found).decode()


async def measured(socket: str, image: str, top: Path) -> Times:
    """All of it."""
    return await commands(socket, image, top) | await mounted(socket, image, top)


def main() -> None:
    """Measure and print."""
    top = Path(tempfile.mkdtemp())
    top.chmod(0o711)
    if len(sys.argv) == 3:
        print(shown(trio.run(measured, sys.argv[1], sys.argv[2], top)))  # noqa: T201
        return
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from dockerkit import BUSYBOX, Engine

    engine = Engine()
    try:
        engine.start()
        engine.build_busybox()
        print(shown(trio.run(measured, str(engine.socket), BUSYBOX, top)))  # noqa: T201
    finally:
        engine.remove()
        shutil.rmtree(top)


if __name__ == "__main__":
    main()
