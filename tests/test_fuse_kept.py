"""What a mount keeps is never another thing than what its services would say, whoever changed it by whichever door."""

from __future__ import annotations

import errno
import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from engines import Script, running, send, settle
from kernelmodel import Kernel

from agentfs.engine.context import AgentContext
from agentfs.engine.engine import Engine
from agentfs.engine.settings import parse_settings
from agentfs.engine.trigger import Trigger
from agentfs.faces.fuse.core import Core
from agentfs.house import build
from agentfs.limits import Limits
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.service import FileService
from agentfs.types import OPERATOR, Mode, Path

STEPS, LOOKS = 160, 10
AGENTS, KEYS = "ab", "xyz"
VERBS = ["pause", "resume", "hibernate", "wake", "tick", "recover", "stop"]
TABLES = (
    "", "mount kv /kv", "mount kv /kv\nmount status /", "mount kv /\nmount status /",
    "mount status /\nmount kv / after",
    "mount kv /u\nbind '#compute/jobs' /u after", "mount kv /kv\nmount secrets /kv/more",
    "mount kv /a/kv\nmount status /a/kv/s", "mount compute /compute budgeted per_day_usd=1\nmount kv /kv",
)  # fmt: skip
TOPS = [f"{top}/{agent}" for top in ("agents", "views") for agent in AGENTS]
BELOW = ["", "/kv", "/u", "/a", "/a/kv", "/status", "/x", "/y", "/u/x", "/a/kv/x", "/kv/more", "/a/kv/s"]
BELOW += [f"/kv/{key}" for key in KEYS]
PLACES = ["agents", "views", *(f"{top}{below}" for top in TOPS for below in BELOW)]


async def act(agent: Script, ctx: AgentContext, trigger: Trigger) -> None:
    match trigger.payload:
        case "bad":
            raise ValueError("bad")
        case "put":
            ctx.kv.put("x", f"{ctx.now_ns}")
        case "alarm":
            ctx.alarm("later", in_ms=500, payload="put")
        case "send":
            ctx.send("b", "put")
    await trio.lowlevel.checkpoint()


async def tried(call: Awaitable[object]) -> object:
    """What *call* gives, or its errno; a number that is stale is a name that is not there."""
    try:
        return await call
    except OSError as exc:
        return errno.ENOENT if exc.errno == errno.ESTALE else exc.errno


class World:
    """The real house with a mount over it, and everything that may happen to it."""

    def __init__(self, engine: Engine, house: FileService, kernel: Kernel, clock: ManualClock, seed: str) -> None:
        self.engine, self.house, self.kernel, self.clock = engine, house, kernel, clock
        self.chance = random.Random(seed)
        self.ways: list[Callable[[str, str], Awaitable[object]]] = [
            self.put, self.write, self.rename, self.move, self.drop, self.remove, self.truncate, self.message,
            self.message, self.table, self.time, self.verb, self.make, self.kill, self.forget, self.rotate,
        ]  # fmt: skip

    @property
    def data(self) -> bytes:
        """Some bytes."""
        return f"{self.chance.random()}"[: self.chance.randrange(10)].encode()

    async def put(self, agent: str, key: str) -> None:
        async with await self.house.create(Path(f"agents/{agent}/kv/{key}"), Mode.WRITE | Mode.TRUNCATE) as handle:
            await handle.write(self.data, 0)

    async def write(self, agent: str, key: str) -> None:
        await self.kernel.write(f"agents/{agent}/kv/{key}", self.data)

    async def rename(self, agent: str, key: str) -> None:
        top = f"agents/{agent}/kv"
        await self.house.rename(Path(f"{top}/{key}"), Path(f"{top}/{self.chance.choice(KEYS)}"))

    async def move(self, agent: str, key: str) -> None:
        top = f"agents/{agent}/kv"
        await self.kernel.rename(f"{top}/{key}", f"{top}/{self.chance.choice(KEYS)}")

    async def drop(self, agent: str, key: str) -> None:
        await self.house.remove(Path(f"agents/{agent}/kv/{key}"))

    async def remove(self, agent: str, key: str) -> None:
        await self.kernel.remove(f"agents/{agent}/kv/{key}")

    async def truncate(self, agent: str, key: str) -> None:
        await self.kernel.truncate(f"agents/{agent}/kv/{key}", self.chance.randrange(13))

    async def message(self, agent: str, key: str) -> None:
        payload = self.chance.choice(("put", "bad", "alarm", "send"))
        await send(self.engine, agent, payload, source=self.chance.choice("pq"))

    async def table(self, agent: str, key: str) -> None:
        async with await self.house.open(Path(f"agents/{agent}/ns"), Mode.WRITE | Mode.TRUNCATE) as handle:
            await handle.write(f"{self.chance.choice(TABLES)}\n".encode(), 0)

    async def time(self, agent: str, key: str) -> None:
        self.clock.advance(self.chance.choice((0.1, 1, 60, 86_400)))
        await settle(self.engine)

    async def verb(self, agent: str, key: str) -> None:
        await self.engine.verb(agent, self.chance.choice(VERBS), OPERATOR)

    async def make(self, agent: str, key: str) -> None:
        await self.house.mkdir(Path(f"agents/{agent}"))

    async def kill(self, agent: str, key: str) -> None:
        await self.engine.verb(agent, "terminate", OPERATOR)
        if self.chance.random() < 0.7:
            await self.engine.remove(agent)

    async def forget(self, agent: str, key: str) -> None:
        self.kernel.forget([ino for ino in self.kernel.lookups if ino != 1 and self.chance.random() < 0.5])

    async def rotate(self, agent: str, key: str) -> None:
        async with await self.house.open(Path(f"agents/{agent}/identity/ctl"), Mode.WRITE) as handle:
            await handle.write(b"rotate\n", 0)

    async def asked(self, path: Path) -> tuple[object, ...]:
        """What the services say of *path*, as `Kernel.look` does."""
        stat = await self.house.stat(path)
        if stat.is_dir:
            return stat.mode & 0o700, [entry.name for entry in await self.house.list(path)]
        async with await self.house.open(path, Mode.READ) as handle:
            text = await handle.read(1 << 20, 0)
        return stat.mode & 0o700, stat.size, text

    async def compare(self, path: str) -> None:
        """The mount shows *path* as its services do; of some files only who has read them knows the size."""
        shown, said = await tried(self.kernel.look(path, self.chance)), await tried(self.asked(Path(path)))
        if isinstance(shown, tuple) and isinstance(said, tuple) and len(said) == 3 and not said[1]:
            shown, said = (shown[0], *shown[2:]), (said[0], *said[2:])
        assert shown == said, path


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_is_kept_that_is_no_longer_so(store: Store, clock: ManualClock, seed: int) -> None:
    Script.act = act
    async with running(store, clock, Limits(parallel_ticks=1)) as engine:
        default = parse_settings(b'{"program": {"kind": "inline", "ref": "engines:Script"}}')
        house = build(engine, default, lambda settings: None, {})[0].attach(OPERATOR)
        kernel = Kernel(core := Core(house, aliases=True, keeps=True))
        world = World(engine, house, kernel, clock, f"{seed}")
        with engine.core.versions.telling(core.keeping.changed):
            for _ in range(STEPS):
                change = world.chance.choice(world.ways)
                await tried(change(world.chance.choice(AGENTS), world.chance.choice(KEYS)))
                await settle(engine)
                for path in world.chance.sample(PLACES, LOOKS):
                    await world.compare(path)
        known = list(kernel.lookups)
        kernel.forget(known)
        assert len(core.inodes) == 1 and not any(core.keeping.stat(ino) for ino in known)
