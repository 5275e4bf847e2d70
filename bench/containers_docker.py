"""Sandboxes in a container engine: to a new one's first output, and a command in one that is there; beside the client.

python bench/containers_docker.py [SOCKET IMAGE]

Without arguments it starts an engine of its own with an image of busybox. `docker run` and `docker exec` are the other
side, alternating, in the same engine, with the same image, and no limits.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

import msgspec
import trio

from agentfs.containers.port import Command, Output, Spec
from agentfs.providers.containers.catalog import owner
from agentfs.providers.containers.docker import Docker

RUNS, EXECS = 8, 25
PROGRAM = ["/bin/echo", "hi"]
BULK_MIB = 64
BULK = ["/bin/sh", "-c", f"dd if=/dev/zero bs=1M count={BULK_MIB} 2>/dev/null"]


async def through(box: Docker, spec: Spec, argv: list[str]) -> float:
    """Milliseconds to the end of a command that says something."""
    begun, size = time.perf_counter(), 0
    async with aclosing(box.run(spec, Command("bench", argv))) as happenings:
        async for happening in happenings:
            size += len(happening.data) if isinstance(happening, Output) else 0
    assert size
    return (time.perf_counter() - begun) * 1e3


def bare(socket: str, *words: str) -> float:
    """The same by the engine's own client."""
    begun = time.perf_counter()
    env = os.environ | {"DOCKER_HOST": f"unix://{socket}"}
    assert subprocess.run(["docker", *words], env=env, capture_output=True, check=True).stdout
    return (time.perf_counter() - begun) * 1e3


async def measured(socket: str, image: str, top: Path) -> dict[str, list[float]]:
    """Every time taken, by what was done."""
    box, took = Docker(top / "boxes", owner(), "bench", socket), dict[str, list[float]]()
    new = ["run", "--rm", "--network", "none", "--init", image, *PROGRAM]
    try:
        for number in range(RUNS):
            took.setdefault("docker_run", []).append(bare(socket, *new))
            begun, spec = time.perf_counter(), Spec(f"bench-{number}", "bench", image)
            await box.make(spec)
            await through(box, spec, PROGRAM)
            took.setdefault("make_and_run", []).append((time.perf_counter() - begun) * 1e3)
        for _ in range(EXECS):
            took.setdefault("docker_exec", []).append(bare(socket, "exec", "agentfs-bench-0", *PROGRAM))
            took.setdefault("run", []).append(await through(box, spec, PROGRAM))
        for _ in range(3):
            took.setdefault("docker_bulk", []).append(bare(socket, "exec", "agentfs-bench-0", *BULK))
            took.setdefault("bulk", []).append(await through(box, spec, BULK))
    finally:
        with trio.CancelScope(shield=True):
            for number in range(RUNS):
                await box.remove(f"bench-{number}")
            await box.aclose()
    return took


def shown(took: dict[str, list[float]]) -> str:
    """Medians and what the provider takes against the client, as JSON."""
    middle = {name: round(statistics.median(times), 1) for name, times in took.items()}
    found: dict[str, float] = {f"{name}_ms": time_ms for name, time_ms in middle.items()}
    found["new_ratio"] = round(middle["make_and_run"] / middle["docker_run"], 2)
    found["exec_ratio"] = round(middle["run"] / middle["docker_exec"], 2)
    found["throughput_ratio"] = round(middle["docker_bulk"] / middle["bulk"], 2)
    return msgspec.json.encode(found).decode()


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


if __name__ == "__main__":
    main()
