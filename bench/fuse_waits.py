"""How long one waits at a mount: for a change, behind other writers, behind a thousand blocked readers, for a signal.

python bench/fuse_waits.py [BINDING]

The real runtime with the memory store; it and its clients, processes of their own, are pinned to one processor, but for
the writers, which are there for being many. Prints one JSON object of medians, in milliseconds but for
``eight_writers``, which is how much longer eight processes take together for what one does alone.
``change_to_visible_ms`` is from the return of a write until one who reads over and over has it,
``change_to_follower_ms`` from the begin of a write until its record has come out of a stream.
"""

from __future__ import annotations

import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from conformance.drivers import Runtime

CPU = max(os.sched_getaffinity(0))
ROUNDS = 5
CHANGES = 200
MESSAGES = 400
WRITERS = 8
BLOCKED = 1000
GROUPS = 4
SIGNALS = 30
PAUSE_S = 0.005
PATIENCE_S = 30


def pause(seconds: float = PAUSE_S) -> None:
    """Let others run for a while."""
    select.select([], [], [], seconds)


def begun(*words: str) -> subprocess.Popen[str]:
    """One of the clients below, in a process of its own that is ready."""
    child = subprocess.Popen((sys.executable, __file__, "--client", *words), text=True, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def is_blocked(pid: int, threads: int = 1) -> bool:
    """Whether that many threads of *pid* wait for an answer of the mount."""
    places = [place.read_text() for place in Path(f"/proc/{pid}/task").glob("*/wchan")]
    return places.count("request_wait_answer") >= threads


def until_blocked(pid: int, threads: int = 1) -> None:
    """Return when they do."""
    end = time.monotonic() + PATIENCE_S
    while not is_blocked(pid, threads):
        if time.monotonic() > end:
            raise TimeoutError(f"{pid} does not wait for the mount")
        pause()


# -- clients -----------------------------------------------------------------------------------------------------------


def watch(path: str) -> None:
    """Read *path* over and over; print each number that it holds and when that was seen first, up to a negative one."""
    last = b""
    while not last.startswith(b"-"):
        value = os.open(path, os.O_RDONLY)
        text = os.read(value, 100)
        os.close(value)
        if text != last:
            sys.stdout.write(f"{int(text)} {time.monotonic_ns()}\n")
            last = text


def follow(path: str) -> None:
    """Read the stream *path*; print when each record came."""
    stream = os.open(path, os.O_RDONLY)
    while text := os.read(stream, 1 << 16):
        sys.stdout.write(f"{time.monotonic_ns()}\n" * text.count(b"\n"))
        sys.stdout.flush()


def write(path: str, count: str, begin: str) -> None:
    """Write *count* messages to the queue *path*, once somebody has put the file *begin* there."""
    messages = [msgspec.json.encode({"payload": f"{os.getpid()}-{number}"}) for number in range(int(count))]
    while not Path(begin).exists():
        pause(0.0002)
    with Path(path).open("wb", buffering=0) as queue:
        for message in messages:
            queue.write(message)


def block(path: str, count: str) -> None:
    """Read the stream *path* in that many threads."""
    threading.stack_size(65536)

    def read() -> None:
        os.read(os.open(path, os.O_RDONLY), 10)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(int(count))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


CLIENTS: dict[str, Callable[..., None]] = {"watch": watch, "follow": follow, "write": write, "block": block}


# -- measurements ------------------------------------------------------------------------------------------------------


def visible(agent: Path) -> tuple[float, float]:
    """How long a write takes, and from its return until another process has read it; milliseconds."""
    value, took, written = agent / "kv/number", [], {}
    value.write_bytes(b"0")
    watcher = begun("watch", str(value))
    for number in range(1, CHANGES):
        pause()
        at = time.monotonic_ns()
        value.write_bytes(b"%d" % number)
        written[number] = time.monotonic_ns()
        took.append(written[number] - at)
    value.write_bytes(b"-1")
    lines = watcher.communicate(timeout=PATIENCE_S)[0].splitlines()
    said = {int(number): int(at) for number, at in map(str.split, lines)}
    seen = [max(0, said[number] - at) for number, at in written.items() if number in said]
    return statistics.median(took) / 1e6, statistics.median(seen) / 1e6


def followed(agent: Path) -> float:
    """Milliseconds from the begin of a verb's write until another process has read the record of it."""
    follower, took = begun("follow", str(agent / "logs/trace@follow")), []
    assert follower.stdout is not None
    until_blocked(follower.pid)
    with (agent / "ctl").open("wb", buffering=0) as ctl:
        for number in range(CHANGES):
            pause()
            at = time.monotonic_ns()
            ctl.write((b"resume\n", b"pause\n")[number % 2])
            took.append(int(follower.stdout.readline()) - at)
    follower.kill()
    follower.wait(PATIENCE_S)
    return statistics.median(took) / 1e6


def writing(top: Path, folder: Path, writers: int) -> float:
    """Seconds that *writers* processes take together for `MESSAGES` messages to one agent, which does not tick."""
    agent = top / f"queue{time.monotonic_ns()}"
    agent.mkdir()
    (agent / "ctl").write_bytes(b"pause\n")
    begin = folder / agent.name
    children = [begun("write", str(agent / "inbox"), str(MESSAGES // writers), str(begin)) for _ in range(writers)]
    begin.touch()
    at = time.monotonic()
    for child in children:
        if child.wait(PATIENCE_S):
            raise RuntimeError("a writer failed")
    return time.monotonic() - at


def reading(path: Path) -> float:
    """Milliseconds to read *path*."""
    at = time.perf_counter()
    path.read_bytes()
    return (time.perf_counter() - at) * 1e3


def behind_blocked(agent: Path) -> tuple[float, float]:
    """Median and most of the milliseconds to read ``status`` while `BLOCKED` readers wait."""
    share = BLOCKED // GROUPS
    blocked = [begun("block", str(agent / "outbox@follow"), str(share)) for _ in range(GROUPS)]
    try:
        for child in blocked:
            until_blocked(child.pid, share)
        took = []
        for number in range(CHANGES):
            (agent / "kv/time").write_bytes(b"%d" % number)  # so that it is read anew
            took.append(reading(agent / "status"))
        return statistics.median(took), max(took)
    finally:
        for child in blocked:
            child.kill()
            child.wait(PATIENCE_S)


def interrupted(agent: Path) -> float:
    """Milliseconds from SIGINT to the end of a ``cat`` that waits for a stream."""
    took = []
    for _ in range(SIGNALS):
        reader = subprocess.Popen(["cat", str(agent / "outbox@follow")], stdout=subprocess.DEVNULL)
        until_blocked(reader.pid)
        at = time.perf_counter()
        reader.send_signal(signal.SIGINT)
        reader.wait(PATIENCE_S)
        took.append((time.perf_counter() - at) * 1e3)
    return statistics.median(took)


def main(binding: str) -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime("memory", Path(folder), settings=[f"fuse_binding={binding}"])
        runtime.start()
        try:
            agent = runtime.place / "agents/demo"
            agent.mkdir()
            rounds = [{n: writing(agent.parent, Path(folder), n) for n in (1, WRITERS)} for _ in range(ROUNDS)]
            for pid in (0, runtime.process.pid):
                os.sched_setaffinity(pid, {CPU})
            (write, change), record, blocked = visible(agent), followed(agent), behind_blocked(agent)
            found = {
                "write_ms": write,
                "change_to_visible_ms": change,
                "change_to_follower_ms": record,
                "eight_writers": statistics.median(took[WRITERS] / took[1] for took in rounds),
                "status_behind_1000_ms": blocked[0],
                "status_behind_1000_most_ms": blocked[1],
                "sigint_ms": interrupted(agent),
            }
        finally:
            runtime.stop()
    sys.stdout.write(msgspec.json.encode({name: round(value, 3) for name, value in found.items()}).decode() + "\n")


def client(kind: str, words: Sequence[str]) -> None:
    """Be one of the clients."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    CLIENTS[kind](*words)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        client(sys.argv[2], sys.argv[3:])
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "auto")
