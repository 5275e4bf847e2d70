"""Sessions in sandboxes the whole way, as an agent uses them: against bwrap(1) alone, and what a hundred leave behind.

python bench/sessions.py

Both sides alternate: `containers/new` to its first output, an exec to its result, bytes through `output`, and bytes
into and out of `files/` against the same copy of plain files. The house is in this process, over SQLite.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path as FsPath
from typing import Any

import msgspec
import trio
from containers import PROGRAM, bare

from agentfs.containers.port import Offer, Spec
from agentfs.engine.housing import Housing
from agentfs.providers.containers.bubblewrap import Bubblewrap
from agentfs.providers.containers.catalog import owner
from agentfs.service import FileService
from agentfs.types import Mode, Path
from agentfs.views import Below
from conformance.drivers import in_process

ROUNDS = 30
SESSIONS = 100
BULK = 64 << 20
PIECE = 128 << 10
LINES = ["/bin/sh", "-c", f"yes agentfs | head -c {BULK}"]


async def asked(agent: FileService, path: str, request: dict[str, Any]) -> dict[str, Any]:
    """One call."""
    async with await agent.open(Path(path), Mode.READ | Mode.WRITE) as handle:
        await handle.write(msgspec.json.encode(request), 0)
        return msgspec.json.decode(await handle.read(1 << 16, 0), type=dict[str, Any])


async def followed(agent: FileService, path: str, begun: float) -> tuple[float, float]:
    """Milliseconds since *begun* to the first record of an output and to its end."""
    first = 0.0
    async with await agent.open(Path(f"{path}@follow"), Mode.READ) as handle:
        while await handle.read(1 << 20, 0):
            first = first or time.perf_counter() - begun
    return first * 1e3, (time.perf_counter() - begun) * 1e3


async def session(agent: FileService, argv: list[str]) -> tuple[float, float]:
    """One ephemeral session to its end; its files are removed."""
    begun = time.perf_counter()
    made = await asked(agent, "containers/new", {"commands": [argv]})
    took = await followed(agent, made["output_path"], begun)
    async with await agent.open(Path(f"containers/sessions/{made['session_id']}/ctl"), Mode.WRITE) as handle:
        await handle.write(b"stop\n", 0)
    return took


async def command(agent: FileService, top: str) -> float:
    """One exec to its end, milliseconds."""
    begun = time.perf_counter()
    made = await asked(agent, f"{top}/new", {"command": PROGRAM})
    return (await followed(agent, made["output_path"], begun))[1]


async def copied(agent: FileService, path: Path) -> float:
    """`BULK` bytes into a file and out of it, milliseconds."""
    begun, data = time.perf_counter(), bytes(PIECE)
    async with await agent.create(path, Mode.READ | Mode.WRITE) as handle:
        for at in range(0, BULK, PIECE):
            await handle.write(data, at)
        for at in range(0, BULK, PIECE):
            await handle.read(PIECE, at)
    return (time.perf_counter() - begun) * 1e3


def plain(path: FsPath) -> float:
    """The same with a plain file."""
    begun, data = time.perf_counter(), bytes(PIECE)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for at in range(0, BULK, PIECE):
        os.pwrite(fd, data, at)
    for at in range(0, BULK, PIECE):
        os.pread(fd, PIECE, at)
    os.close(fd)
    return (time.perf_counter() - begun) * 1e3


def held(top: FsPath) -> dict[str, int]:
    """What this process and its sandboxes hold: descriptors, children, directories, and the most memory so far."""
    children = FsPath(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {
        "descriptors": sum(1 for _ in FsPath("/proc/self/fd").iterdir()), "children": len(children),
        "directories": sum(1 for _ in top.iterdir()) if top.exists() else 0,
        "most_memory_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }  # fmt: skip


async def main() -> None:
    """Measure, and print one JSON object."""
    top = FsPath(tempfile.mkdtemp())
    os.chmod(top, 0o711)  # noqa: PTH101  # bwrap alone has no way to what is closed
    box = Bubblewrap(top / "boxes", owner(), top / "images")
    place = top / "bare"
    place.mkdir()
    took: dict[str, list[float]] = {}
    found: dict[str, Any] = {}
    try:
        async with in_process("sqlite", top, housing=Housing({"bubblewrap": Offer(box)})) as driver:
            await driver.agent("bench")
            own = Below(driver.tree, Path("views/bench"))
            kept = await asked(own, "containers/new", {"kind": "interactive"})
            spec = Spec("bare", "bench")
            for _ in range(ROUNDS):
                took.setdefault("bare", []).append(bare(spec, place, owner(), PROGRAM)[0])
                took.setdefault("session", []).append((await session(own, PROGRAM))[0])
                took.setdefault("bare_end", []).append(bare(spec, place, owner(), PROGRAM)[1])
                took.setdefault("exec", []).append(await command(own, kept["exec_path"]))
            for _ in range(3):
                took.setdefault("bare_bulk", []).append(bare(spec, place, owner(), LINES)[1])
                took.setdefault("bulk", []).append((await session(own, LINES))[1])
                took.setdefault("plain_copy", []).append(plain(top / "plain"))
                took.setdefault("copy", []).append(await copied(own, Path(f"{kept['files_path']}/bulk")))
            before = held(top / "boxes")
            for _ in range(SESSIONS):
                await session(own, PROGRAM)
            after = held(top / "boxes")
            found = {name: after[name] - before[name] for name in before}
    finally:
        await box.aclose()
        shutil.rmtree(top)
    middle = {name: statistics.median(values) for name, values in took.items()}
    figures = {f"{name}_ms": round(value, 1) for name, value in middle.items()}
    ratios = {
        "session_over_bare_ms": round(middle["session"] - middle["bare"], 1),
        "exec_over_bare_ms": round(middle["exec"] - middle["bare_end"], 1),
        "output_mib_per_s": round(BULK / (1 << 20) / middle["bulk"] * 1e3, 1),
        "output_ratio": round(middle["bare_bulk"] / middle["bulk"], 3),
        "files_ratio": round(middle["plain_copy"] / middle["copy"], 3),
    }
    report = {**figures, **ratios, f"left_by_{SESSIONS}_sessions": found}
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")


if __name__ == "__main__":
    trio.run(main)
