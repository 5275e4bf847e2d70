"""What an agent costs: ``status`` with 10 and with 1,000 agents, side by side, and memory per hibernated agent.

python bench/agents.py
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from pathlib import Path as FsPath

import msgspec
import trio

from agentfs.engine.engine import Engine
from agentfs.engine.envelope import Envelope
from agentfs.engine.settings import InlineProgram, Settings
from agentfs.house import build
from agentfs.limits import Limits
from agentfs.providers.clock import SystemClock
from agentfs.providers.programs.inline import Inline
from agentfs.providers.store.sqlite import SqliteStore
from agentfs.service import FileService
from agentfs.types import OPERATOR, Mode, Path, Principal

ROUNDS = 2000
SETTINGS = Settings(program=InlineProgram(ref="agentfs.engine.agent:Agent"))


def load(agent: str, settings: Settings) -> Inline:
    """The class that does nothing."""
    return Inline(InlineProgram(ref="agentfs.engine.agent:Agent"))


def resident_kib() -> int:
    """Resident memory of this process, KiB."""
    gc.collect()
    text = FsPath("/proc/self/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


async def grow(engine: Engine, first: int, last: int) -> None:
    """Create and tick agents, and wait until they sleep."""
    for number in range(first, last):
        agent = await engine.create(f"a{number:05}", SETTINGS)
        await engine.mail.accept(Envelope(id=f"m{number}", source="bench", to=agent, payload="x"))
    while not engine.is_idle:  # noqa: ASYNC110
        await trio.sleep(0.01)


async def status_us(tree: FileService, count: int) -> float:
    """Microseconds for open, read and close of one agent's status, median of five runs."""
    runs = []
    for _ in range(5):
        start = time.perf_counter()
        for number in range(ROUNDS // 5):
            async with await tree.open(Path(f"agents/a{number % count:05}/status"), Mode.READ) as handle:
                await handle.read(4096, 0)
        runs.append((time.perf_counter() - start) / (ROUNDS // 5) * 1e6)
    return sorted(runs)[2]


async def main() -> None:
    """Measure, and print one JSON object."""
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as top:
        store = await SqliteStore.open(FsPath(top) / "db", clock)
        house = None
        engine = Engine(store, clock, Limits(), load, lambda agent: spaces.view(Principal("agent", agent)))
        house, spaces = build(engine, SETTINGS, lambda settings: None, {})
        tree = house.attach(OPERATOR)
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: engine.run(task_status=task_status))
            await grow(engine, 0, 10)
            few, few_kib = await status_us(tree, 10), resident_kib()
            await grow(engine, 10, 1010)
            many_kib = resident_kib()
            many = await status_us(tree, 10)
            nursery.cancel_scope.cancel()
        await store.aclose()
    found = {
        "status_us_of_10": round(few, 1), "status_us_of_1010": round(many, 1), "ratio": round(many / few, 2),
        "kib_per_hibernated_agent": round((many_kib - few_kib) / 1000, 2),
    }  # fmt: skip
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


if __name__ == "__main__":
    trio.run(main)
