"""A mixed load on a real mount for a while, in which every read is compared with what must be there.

python bench/soak.py [SECONDS] [BINDING] [KIND...]

Eight processes, each on names of its own: values under ``kv/`` by both of an agent's doors, and real files under
``containers/.../files`` in the manner of fsx (writes, appends, cuts and growth at random places of a file held open).
And one that changes values and a name, which others look at meanwhile: what they see is never older than what it had
done before they asked. KIND (kv, files, writer, reader, viewer) leaves out the others. Prints what was done as JSON;
any difference ends it with its description and status 1. Needs bubblewrap.
"""

from __future__ import annotations

import json
import os
import random
import select
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conformance.drivers import Runtime

WORKERS = 4
READERS = 2
MANY = 200
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

    def data(self) -> bytes:
        """Some bytes."""
        return self.chance.randbytes(self.chance.randrange(1, LARGEST // 4))

    def step(self) -> None:
        """Change one thing by one door, and look at it by every door."""
        name, kind = self.name(), self.chance.randrange(8)
        if name not in self.held or kind == 0:
            self.held[name] = self.data()
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
        data = self.data()
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


def work(seconds: float, worker: str, seed: int, doors: list[Path]) -> int:
    """Change names of its own; how many steps it made."""
    model, end = Model(doors, worker, seed), time.monotonic() + seconds
    while time.monotonic() < end:
        model.step()
    return model.done


class Board:
    """Two numbers that processes share: the step that a writer has begun last, and the one it has ended last."""

    FORM = struct.Struct("=q")

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def put(self, at: int, number: int) -> None:
        """Write one of them."""
        os.pwrite(self._fd, self.FORM.pack(number), at * self.FORM.size)

    def get(self, at: int) -> int:
        """Read one of them; 0 before it was written."""
        text = os.pread(self._fd, self.FORM.size, at * self.FORM.size)
        return int(self.FORM.unpack(text)[0]) if text else 0


BEGUN, ENDED = 0, 1


def shared(step: int) -> bytes:
    """What the shared value is at *step*: another size each time."""
    return b"%d " % step + bytes(step % 97)


def write_shared(seconds: float, board: Board, door: Path) -> int:
    """Change two values and a name over and over; how often."""
    step, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        step += 1
        board.put(BEGUN, step)
        (door / "value").write_bytes(shared(step))
        (door / "sized").write_bytes(shared(step))
        (door / "name").write_bytes(b"") if step % 2 else (door / "name").unlink()
        board.put(ENDED, step)
        select.select([], [], [], 0.0005 * (step % 3) + (0.05 if step % 10 == 0 else 0))
    return step


def looked(door: Path, kind: int) -> object:
    """Look at one thing."""
    if kind == 0:
        return (door / "value").read_bytes()
    if kind == 1:
        return (door / "sized").stat().st_size  # of one that nobody reads: an open one has the size of what was opened
    return (door / "name").exists() if kind == 2 else any(entry.name == "name" for entry in door.iterdir())


def expected(step: int, kind: int) -> object:
    """What is seen then at *step*."""
    return (shared(step), len(shared(step)))[kind] if kind < 2 else bool(step % 2)


def read_shared(seconds: float, board: Board, doors: list[Path], chance: random.Random) -> int:
    """Look at them over and over; how often."""
    looks, end = 0, time.monotonic() + seconds
    while not board.get(ENDED):
        select.select([], [], [], 0.01)
    while time.monotonic() < end:
        door, kind = chance.choice(doors), chance.randrange(4)
        count, first = chance.choice((1, MANY)), board.get(ENDED)
        found = {looked(door, kind) for _ in range(count)}
        last = board.get(BEGUN)
        known = {expected(step, kind) for step in range(first, last + 1)}
        assert found <= known, f"{door}: kind {kind} from step {first} to {last}: {found - known}"
        looks += count
    return looks


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


def begun(seconds: float, folder: str, worker: str, seed: int, doors: list[Path]) -> subprocess.Popen[str]:
    """A worker in a process of its own."""
    words = ["--worker", str(seconds), folder, worker, str(seed), *map(str, doors)]
    return subprocess.Popen([sys.executable, __file__, *words], text=True, stdout=subprocess.PIPE)


def worked(seconds: float, folder: str, worker: str, seed: int, doors: list[Path]) -> int:
    """What a worker does, by its name; how many steps it made."""
    board = Board(Path(folder) / "board")
    if worker.startswith("writer"):
        return write_shared(seconds, board, doors[0])
    if worker.startswith(("reader", "viewer")):
        return read_shared(seconds, board, doors, random.Random(seed))
    return work(seconds, worker, seed, doors)


def main(seconds: float, binding: str, *only: str) -> int:
    """Run every worker against one runtime."""
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime("sqlite", Path(folder), settings=[f"fuse_binding={binding}", SANDBOXES])
        runtime.start()
        try:
            agents = runtime.place / "agents/soak"
            agents.mkdir()
            (agents / "kv" / "name").write_bytes(b"")
            kv = [agents / "kv", runtime.place / "views/soak/kv"]
            kinds = {"kv": (WORKERS, kv), "files": (WORKERS, [session(agents)])}
            kinds |= {"writer": (1, kv[:1]), "reader": (READERS, kv[:1]), "viewer": (1, kv)}
            children = {
                f"{kind}{number}": begun(seconds, folder, f"{kind}{number}", number, doors)
                for kind, (count, doors) in kinds.items()
                if not only or kind in only
                for number in range(count)
            }
            said = {name: child.communicate(timeout=seconds + 120)[0].strip() for name, child in children.items()}
            failed = [name for name, child in children.items() if child.returncode]
        finally:
            code = runtime.stop()
        sys.stdout.write(json.dumps({"steps": said, "failed": failed, "runtime": code}) + "\n")
        return 1 if failed or code else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        seconds, folder, worker, seed, *doors = sys.argv[2:]
        done = worked(float(seconds), folder, worker, int(seed), [Path(door) for door in doors])
        sys.stdout.write(f"{done}\n")
    else:
        seconds, binding, *only = [*sys.argv[1:], *("20", "auto")[len(sys.argv) - 1 :]]
        sys.exit(main(float(seconds), binding, *only))
