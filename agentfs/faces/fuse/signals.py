"""What /proc says of readers: which wait with a signal pending, who holds a file. Reads nothing outside /proc."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_STATUS: Final = re.compile(
    rb"\nState:\t(.).*?\nTgid:\t(\d+).*?\nPPid:\t(\d+).*?\nThreads:\t(\d+).*?"
    rb"\nSigPnd:\t(\w+)\nShdPnd:\t(\w+)\nSigBlk:\t(\w+)\nSigIgn:\t(\w+)",
    re.DOTALL,
)
_INODE: Final = re.compile(rb"\nino:\t(\d+)\n")
_KILL: Final = 1 << signal.SIGKILL - 1
_PROC: Final = Path("/proc")


def _status(tid: int | str) -> tuple[bytes, ...] | None:
    try:
        fd = os.open(f"/proc/{tid}/status", os.O_RDONLY)  # half the price of pathlib: the sweeper lives in here
    except (FileNotFoundError, PermissionError):
        return None
    try:
        found = _STATUS.search(os.read(fd, 1 << 14))
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    return found.groups() if found else None


def _is_interrupted(status: tuple[bytes, ...]) -> bool:
    if status[0] != b"D":  # a reader that noticed a signal waits uninterruptibly for its answer
        return False
    own, shared, blocked, ignored = (int(mask, 16) for mask in status[4:8])
    pending = own | shared
    return bool(pending & _KILL or pending & ~blocked & ~ignored)


def process_of(tid: int) -> int | None:
    """The process that thread *tid* belongs to; None when there is none such."""
    status = _status(tid) if tid > 0 else None
    return int(status[1]) if status else None


def interrupted(pid: int) -> set[int] | None:
    """Threads of process *pid* that wait for an answer while a signal is pending for them; None: it has ended.

    A blocked or ignored signal does not count, SIGKILL always does.
    """
    status = _status(pid)
    if status is None or (status[3] == b"1" and status[0] in b"ZX"):
        return None
    if status[3] == b"1":
        return {pid} if _is_interrupted(status) else set()
    try:
        threads = [task.name for task in (_PROC / str(pid) / "task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return None
    seen = ((int(tid), _status(tid)) for tid in threads)
    return {tid for tid, status in seen if status and _is_interrupted(status)}


@dataclass(frozen=True, slots=True)
class Heir:
    """A process that waits for an answer with a signal pending: the inodes it holds, and whose child it is."""

    pid: int
    inodes: frozenset[int]
    ancestors: frozenset[int]


def stuck() -> list[Heir]:
    """Every process we may see of which a thread waits for an answer while a signal is pending for it."""
    pids = [int(process.name) for process in _PROC.glob("[1-9]*")]
    return [Heir(pid, _inodes(pid), _ancestors(pid)) for pid in pids if interrupted(pid)]


def _inodes(pid: int) -> frozenset[int]:
    try:
        infos = [fd.read_bytes() for fd in (_PROC / str(pid) / "fdinfo").iterdir()]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return frozenset()
    return frozenset(int(found[1]) for info in infos if (found := _INODE.search(info)))


def _ancestors(pid: int) -> frozenset[int]:
    found: set[int] = set()
    while pid and (status := _status(pid)) is not None:
        pid = int(status[2])
        found.add(pid)
    return frozenset(found)


def holder_of(ino: int) -> int | None:
    """A process with an open descriptor of inode *ino*, or None. Costs a walk over all descriptors we may see."""
    line = b"\nino:\t%d\n" % ino
    for process in _PROC.glob("[1-9]*"):
        try:
            for fd in (process / "fdinfo").iterdir():
                if line in fd.read_bytes():
                    return int(process.name)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return None
