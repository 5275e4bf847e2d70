"""`Inmates`: the processes of one container as this machine sees them: which are left over, and their end.

Told by control group and parent, never by what a process says of itself. Linux; needs the engine's process ids.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

_GROUPS: Final = Path("/sys/fs/cgroup")
_PROC: Final = Path("/proc")
_SHELL: Final = "/bin/sh"


@dataclass(frozen=True, slots=True)
class Process:
    """One process: its id on this machine, its parent's, and who it runs as."""

    pid: int
    parent: int
    uid: int
    is_dead: bool


class Strays(NamedTuple):
    """Processes that are to end. ``is_all``: none ended while they were looked for, and may have left another."""

    pids: list[int]
    is_all: bool


class _Look(NamedTuple):
    """What a look at all processes saw: code that lives, the parents of all, and what had ended by then."""

    living: list[int]
    parents: dict[int, int]
    ended: frozenset[int]

    def descends(self, pid: int, roots: set[int]) -> bool:
        """Whether *pid* is one of *roots* or descends from one."""
        seen: set[int] = set()
        while pid in self.parents and pid not in seen:
            if pid in roots:
                return True
            seen.add(pid)
            pid = self.parents[pid]
        return False


class Inmates:
    """The control group of a container whose first process is *pid*. Its methods block for a moment."""

    def __init__(self, id: str, pid: int, keeper: int) -> None:
        """*id* is the engine's, *keeper* the uid of the processes that belong to the container itself."""
        self.pid, self._id, self._keeper = pid, id, keeper
        self._group, self._time_group = _group(pid), _group(pid, "cpuacct")
        self._ended: frozenset[int] = frozenset()  # when strays were looked for last

    def is_seen(self) -> bool:
        """Whether the processes of the engine can be seen from here at all."""
        return self._id in self._group and self.pid in self._pids()

    def begun(self) -> int:
        """The first process below the container's own init, once that has become a program; 0 before."""
        first = _program(self.pid)
        if first == _SHELL:  # this engine puts no init before it
            return self.pid
        found = [process for pid in self._pids() if (process := _process(pid)) is not None and not process.is_dead]
        if first and any(_program(process.pid) not in (first, "") for process in found):
            return min((one.pid for one in found if one.parent == self.pid), default=0)
        return 0

    def init(self) -> str:
        """The init that the engine puts before the program of its container, once that has begun; "" for none."""
        first = _program(self.pid)
        return "" if first == _SHELL else first

    def is_gone(self) -> bool:
        """Whether its first process has ended; not to be told by its words, which an exec takes for a moment."""
        process = _process(self.pid)
        return process is None or process.is_dead

    def is_over(self) -> bool:
        """Whether its first process ends, and with it all others; the engine tells that later."""
        try:
            words = (_PROC / str(self.pid) / "cmdline").read_bytes()  # empty once it has begun to end
        except OSError:
            return True
        return not words or self._id not in _group(self.pid)

    def _pids(self) -> list[int]:
        try:
            return [int(word) for word in (self._place() / "cgroup.procs").read_text().split()]
        except OSError:  # it has ended, and its group with it
            return []

    def _place(self) -> Path:
        old = _GROUPS / "memory"
        return (old if old.is_dir() else _GROUPS) / self._group.lstrip("/")

    def strays(self, roots: Iterable[int]) -> Strays:
        """All living processes of code that do not descend from any of *roots*; never the container's first one."""
        kept, look = set(roots), self._look()
        ended, self._ended = look.ended - self._ended, look.ended
        return Strays([pid for pid in look.living if pid != self.pid and not look.descends(pid, kept)], not ended)

    def family(self, root: int) -> list[int]:
        """The living processes that descend from *root*, and itself."""
        look = self._look()
        return [pid for pid in look.living if look.descends(pid, {root})]

    def _look(self) -> _Look:
        found = {pid: _process(pid) for pid in self._pids()}
        there = [process for process in found.values() if process is not None]
        return _Look(
            [one.pid for one in there if not one.is_dead and one.uid != self._keeper],
            {one.pid: one.parent for one in there},
            frozenset(pid for pid, process in found.items() if process is None or process.is_dead),
        )

    def kill(self, pids: Iterable[int]) -> None:
        """End each of *pids* that is still in this container."""
        for pid in pids:
            try:
                handle = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                if self._id in _group(pid):  # asked behind the handle: its number is not somebody else's by now
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            except OSError:
                continue
            finally:
                os.close(handle)

    def kills(self) -> int | None:
        """How many processes the kernel ended here for want of memory; None when it cannot be told."""
        words = self._said("memory.oom_control", "memory.events").split()
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else None

    def peak_bytes(self) -> int | None:
        """The most memory that was used here at a time; None when it cannot be told."""
        said = self._said("memory.max_usage_in_bytes", "memory.peak")
        return int(said) if said else None

    def cpu_ms(self) -> int | None:
        """The processor time that was used here; None when it cannot be told."""
        said = self._said("cpu.stat").split()
        if "usage_usec" in said:
            return int(said[said.index("usage_usec") + 1]) // 1000
        old = _read(_GROUPS / "cpuacct" / self._time_group.lstrip("/") / "cpuacct.usage")
        return int(old) // 1_000_000 if old else None

    def _said(self, *names: str) -> str:
        """What the first of *names* says that is there: the other is of the other version of control groups."""
        return next((said for name in names if (said := _read(self._place() / name))), "")


def _read(path: Path) -> str:
    """All of *path*; "" when it is not there, or not any more."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _program(pid: int) -> str:
    """What *pid* calls itself; "" when it is gone or ends."""
    return _read(_PROC / str(pid) / "cmdline").partition("\0")[0]


def _group(pid: int, kind: str = "memory") -> str:
    """The path of the control group that holds the *kind* of *pid*; "" when there is no such process."""
    try:
        lines = (_PROC / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return ""
    paths = {name: path for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}
    return paths.get(kind) or paths.get("") or ""


def _process(pid: int) -> Process | None:
    try:
        lines = (_PROC / str(pid) / "status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    said = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    # Name comes first and has its newlines escaped, so no name can stand for another line
    return Process(pid, int(said["PPid"]), int(said["Uid"].split()[0]), said["State"][0] in "ZX")
