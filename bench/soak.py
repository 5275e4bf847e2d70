"""A mixed load on a real mount for a while, in which every read is compared with what must be there.

python bench/soak.py [SECONDS] [BINDING]

Eight processes, each on names of its own: values under ``kv/`` by both of an agent's doors, and real files under
``containers/.../files`` in the manner of fsx (writes, appends, cuts and growth at random places of a file held open).
Prints what was done as JSON; any difference ends it with its description and status 1. Needs bubblewrap.
"""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conformance.drivers import Runtime

WORKERS = 4
LARGEST = 64 << 10
NAMES = 4
SANDBOXES = 'sandboxes={"here": {"kind": "bubblewrap"}}'


class Model:
    """What must be there: the bytes of each name, and a door to look through each time another one."""

    def __init__(self, doors: list[Path], worker: str, seed: int) -> None:
        self.doors, self.worker, self.chance = doors, worker, random.Random(seed)
        self.held: dict[str, bytes] = {}
        self.done = 0

    @property
    def door(self) -> Path:
        """One of the ways to the same directory."""
        return self.chance.choice(self.doors)

    def name(self) -> str:
        """One of the names of this worker."""
        return f"{self.worker}-{self.chance.randrange(NAMES)}"

    def bytes(self) -> bytes:
        """Some bytes."""
        return self.chance.randbytes(self.chance.randrange(1, LARGEST // 4))

    def step(self) -> None:
        """Change one thing by one door, and look at it by every door."""
        name, kind = self.name(), self.chance.randrange(8)
        if name not in self.held or kind == 0:
            self.held[name] = self.bytes()
            (self.door / name).write_bytes(self.held[name])
        elif kind == 1:
            (self.door / name).unlink()
            del self.held[name]
        elif kind == 2:
            door, other = self.door, self.name()
            (door / name).rename(door / other)
            self.held[other] = self.held.pop(name)
        else:
            self.change(name, kind)
        self.done += 1
        for door in self.doors:
            self.compare(door)

    def change(self, name: str, kind: int) -> None:
        """Change a part of the file *name* through one descriptor, some times over."""
        fd = os.open(self.door / name, os.O_RDWR | (os.O_APPEND if kind == 3 else 0))
        try:
            for _ in range(self.chance.randrange(1, 4)):
                self.held[name] = self.changed(fd, self.held[name], kind)
                found = os.pread(fd, 2 * LARGEST, 0)
                assert found == self.held[name], f"{name}: {len(found)} bytes for {len(self.held[name])} (kind {kind})"
        finally:
            os.close(fd)

    def changed(self, fd: int, old: bytes, kind: int) -> bytes:
        """Do one thing with *fd*; the bytes that are there now."""
        data = self.bytes()
        if kind == 3:
            if len(old) + len(data) > LARGEST:
                return old
            os.write(fd, data)
            return old + data
        if kind == 4:
            size = self.chance.randrange(LARGEST)
            os.ftruncate(fd, size)
            return old[:size].ljust(size, b"\0")
        at = self.chance.randrange(LARGEST - len(data))
        os.pwrite(fd, data, at)
        return old[:at].ljust(at, b"\0") + data + old[at + len(data) :]

    def compare(self, door: Path) -> None:
        """Names, sizes and one file's bytes, as this door shows them."""
        own = sorted(entry.name for entry in door.iterdir() if entry.name.startswith(self.worker))
        assert own == sorted(self.held), f"{door}: {own} for {sorted(self.held)}"
        for name, data in self.held.items():
            assert (door / name).stat().st_size == len(data), f"{door}/{name}: size, for {len(data)}"
        if self.held:
            name = self.chance.choice(sorted(self.held))
            assert (door / name).read_bytes() == self.held[name], f"{door}/{name}: bytes"


def work(seconds: float, worker: str, seed: int, doors: list[Path]) -> None:
    """One worker: prints how many steps it made."""
    model, end = Model(doors, worker, seed), time.monotonic() + seconds
    while time.monotonic() < end:
        model.step()
    sys.stdout.write(f"{model.done}\n")


def session(agent: Path) -> Path:
    """The files of a new sandbox of *agent*."""
    with (agent / "containers/new").open("r+b", buffering=0) as new:
        new.write(b'{"kind": "interactive"}')
        id = json.loads(new.read(1 << 16))["session_id"]
    found = agent / "containers/sessions" / id
    for _ in range(600):
        if "provisioning" not in (found / "status").read_text():
            return found / "files"
        select.select([], [], [], 0.05)
    raise TimeoutError("the sandbox does not begin")


def main(seconds: float, binding: str) -> int:
    """Run every worker against one runtime."""
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime("sqlite", Path(folder), settings=[f"fuse_binding={binding}", SANDBOXES])
        runtime.start()
        try:
            agents = runtime.place / "agents/soak"
            agents.mkdir()
            boxed = session(agents)
            ways = {"kv": [agents / "kv", runtime.place / "views/soak/kv"], "files": [boxed]}
            children = {}
            for kind, doors in ways.items():
                for number in range(WORKERS):
                    words = [
                        sys.executable,
                        __file__,
                        "--worker",
                        str(seconds),
                        f"{kind}{number}",
                        str(number),
                        *map(str, doors),
                    ]
                    children[f"{kind}{number}"] = subprocess.Popen(words, text=True, stdout=subprocess.PIPE)
            said = {name: child.communicate(timeout=seconds + 120)[0].strip() for name, child in children.items()}
            failed = [name for name, child in children.items() if child.returncode]
        finally:
            code = runtime.stop()
        sys.stdout.write(json.dumps({"steps": said, "failed": failed, "runtime": code}) + "\n")
        return 1 if failed or code else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(float(sys.argv[2]), sys.argv[3], int(sys.argv[4]), [Path(door) for door in sys.argv[5:]])
    else:
        words = [*sys.argv[1:], "20", "auto"]
        sys.exit(main(float(words[0]), words[1] if len(sys.argv) > 2 else "auto"))
