"""Looking for what must be nowhere: the ways a secret can be written down, and all the bytes of a process."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from agentfs import bech32

BLOCK = 1 << 20


def forms(name: str, value: bytes) -> dict[str, bytes]:
    """The ways *value* could be written down, also in the middle of something else."""
    found = {"raw": value, "hex": value.hex().encode(), "HEX": value.hex().upper().encode()}
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + value)
        inner = text[4 * (shift > 0) :].rstrip(b"=")[:-1]  # what bytes before and behind it do not change
        found[f"base64 {shift}"] = inner
        if (url := inner.replace(b"+", b"-").replace(b"/", b"_")) != inner:
            found[f"url base64 {shift}"] = url
    if len(value) == 32:
        found["nsec"] = bech32.nsec(value).encode()
    return {f"{name} as {form}": text for form, text in found.items()}


def words(name: str, text: str, run: int = 4) -> dict[str, bytes]:
    """Each *run* of words of *text*, one after the other."""
    held = text.split()
    return {f"{name} {at}": " ".join(held[at : at + run]).encode() for at in range(len(held) - run + 1)}


def leaks(wanted: Mapping[str, bytes], places: Iterable[tuple[str, bytes]]) -> list[str]:
    """What of *wanted* is in which of *places*."""
    return [f"{what} is in {place}" for place, data in places for what, text in wanted.items() if text in data]


def descendants(pid: int) -> list[int]:
    """*pid* and every process below it."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def read(file: str) -> bytes:
    """What the kernel tells of a process, or nothing when that has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(file).read_bytes()
    return b""


def descriptors(pid: int) -> Iterator[tuple[str, str]]:
    """The open descriptors of a process, each with what it leads to."""
    with contextlib.suppress(FileNotFoundError):  # the process has ended
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it was closed
                yield file.name, file.readlink().name


def shown(pids: Iterable[int]) -> Iterator[tuple[str, bytes]]:
    """What anyone sees of these processes: with what words and environment they were started."""
    for pid in pids:
        for name in ("environ", "cmdline"):
            yield f"{name} of {pid}", read(f"/proc/{pid}/{name}")


def memory(pid: int) -> bytes:
    """All that process *pid* has in memory, but blocks of nothing but zeros; it stands still meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        while ") T " not in Path(f"/proc/{pid}/stat").read_text():
            time.sleep(0.001)
        return b"".join(_mapped(pid))
    finally:
        os.kill(pid, signal.SIGCONT)


def _mapped(pid: int) -> Iterator[bytes]:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if line.split()[1][0] != "r" or "[v" in line:  # the kernel's own pages
                continue
            for at in range(start, end, BLOCK):
                block = os.pread(file.fileno(), min(BLOCK, end - at), at)
                if block.count(0) != len(block):
                    yield block
