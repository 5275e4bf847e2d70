"""Sandboxes: from the start of a command to its first output, and to its end, by a provider and by the bare program.

python bench/containers.py

Both sides run the same program over the same root, alternating; the bare side is bwrap(1) alone, as the same user,
with neither filter nor limits.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec
import trio

from agentfs.containers.port import Command, Output, Spec
from agentfs.providers.containers import rootfs
from agentfs.providers.containers.bubblewrap import Bubblewrap, find
from agentfs.providers.containers.catalog import owner
from agentfs.providers.containers.workdir import Owner

ROUNDS = 40
PROGRAM = ["/bin/echo", "hi"]
BULK = ["/bin/sh", "-c", "head -c 268435456 /dev/zero"]
Times = tuple[float, float]


async def through(box: Bubblewrap, spec: Spec, argv: Sequence[str]) -> Times:
    """Milliseconds to the first output and to the end."""
    begun, first = time.perf_counter(), 0.0
    async with aclosing(box.run(spec, Command("bench", argv))) as happenings:
        async for happening in happenings:
            if isinstance(happening, Output) and not first:
                first = time.perf_counter() - begun
    return first * 1e3, (time.perf_counter() - begun) * 1e3


def bare(spec: Spec, place: Path, who: Owner, argv: Sequence[str]) -> Times:
    """The same by bwrap alone."""
    words = [find(), *rootfs.words(spec, str(place), None, lambda path: path), "--", *argv]
    drop = {"user": who.uid, "group": who.gid, "extra_groups": ()} if os.geteuid() == 0 else {}
    begun, first = time.perf_counter(), 0.0
    with subprocess.Popen(words, stdout=subprocess.PIPE, bufsize=0, **drop) as child:  # type: ignore[call-overload]
        while child.stdout.read(65_536):
            first = first or time.perf_counter() - begun
    return first * 1e3, (time.perf_counter() - begun) * 1e3


async def main() -> None:
    """Measure both, alternating, and print one JSON object: medians and ratios."""
    top = Path(tempfile.mkdtemp())
    box, spec = Bubblewrap(top / "containers", owner(), top / "images"), Spec("bench", "bench")
    took: dict[str, list[Times]] = {"bare": [], "provider": [], "bare_bulk": [], "provider_bulk": []}
    try:
        if reason := await box.health():
            raise SystemExit(reason)
        await box.make(spec)
        os.chmod(top, 0o711)  # noqa: PTH101  # bwrap alone has no way to what is closed
        place = top / "containers" / "bench"
        for _ in range(ROUNDS):
            took["bare"].append(bare(spec, place, owner(), PROGRAM))
            took["provider"].append(await through(box, spec, PROGRAM))
        os.chmod(top, 0o700)  # noqa: PTH101
        for _ in range(ROUNDS):
            took.setdefault("closed", []).append(await through(box, spec, PROGRAM))
        os.chmod(top, 0o711)  # noqa: PTH101
        for _ in range(5):
            took["bare_bulk"].append(bare(spec, place, owner(), BULK))
            took["provider_bulk"].append(await through(box, spec, BULK))
    finally:
        await box.remove("bench")
        await box.aclose()
        shutil.rmtree(top)
    firsts = {name: statistics.median(pair[0] for pair in pairs) for name, pairs in took.items()}
    ends = {name: statistics.median(pair[1] for pair in pairs) for name, pairs in took.items()}
    found = {f"{name}_first_output_ms": round(firsts[name], 1) for name in ("bare", "provider", "closed")}
    found |= {f"{name}_end_ms": round(ends[name], 1) for name in ("bare", "provider", "closed")}
    found |= {f"{name}_first_output_ratio": round(firsts[name] / firsts["bare"], 2) for name in ("provider", "closed")}
    found |= {f"{name}_mib_per_s": round(256e3 / ends[f"{name}_bulk"]) for name in ("bare", "provider")}
    found["throughput_ratio"] = round(ends["bare_bulk"] / ends["provider_bulk"], 2)
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


if __name__ == "__main__":
    trio.run(main)
