"""`Groups`: a control group for each command where this machine allows it (cgroups v2, or v1), below the runtime's own.

They lie below the runtime's own group, so that what limits the runtime limits its sandboxes too. No process is started
here, and none ended but what is left of an earlier life.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shlex
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentfs.containers.documents import Limits

MIB: Final = 1 << 20
_OWN: Final = 2  # bwrap, outside and inside
_PERIOD_US: Final = 100_000
_WANTED: Final = ("memory", "pids", "cpu", "cpuacct")
_OPTIONAL: Final = {"memory.memsw.limit_in_bytes", "memory.swap.max", "memory.oom.group"}  # not in every kernel


@dataclass(frozen=True, slots=True)
class Place:
    """A directory where groups can be made, for some controllers."""

    path: Path
    controllers: frozenset[str]
    is_unified: bool


class Group:
    """The control group of one command, in one directory for each hierarchy. Its methods block for microseconds."""

    def __init__(self, places: Mapping[Path, Place]) -> None:
        """*places* by the directories made in them."""
        self._places = dict(places)

    def limit(self, limits: Limits) -> None:
        """Set *limits*."""
        for path, place in self._places.items():
            for name, value in _settings(place, limits):
                try:
                    (path / name).write_text(str(value))
                except OSError:
                    if name not in _OPTIONAL:
                        raise

    def entry(self) -> str:
        """Lines of shell by which a shell enters the group, where `take` is not enough.

        The kernel moves a thread that asks for itself at once; another's move may wait 10 ms. Only v1 knows that.
        """
        tasks = [path / "tasks" for path, place in self._places.items() if not place.is_unified]
        return "\n".join(f"echo 0 > {shlex.quote(str(path))}" for path in tasks)

    def take(self, pid: int) -> None:
        """Put the process *pid*, and so all it will start, into the group, where `entry` does not."""
        for path, place in self._places.items():
            if place.is_unified:
                (path / "cgroup.procs").write_text(str(pid))

    def cpu_ms(self) -> int | None:
        """Processor time of all that ran here, or None when it is not counted."""
        if usage := self._read("cpu.stat", "usage_usec"):
            return usage // 1000
        usage = self._read("cpuacct.usage")
        return None if usage is None else usage // 1_000_000

    def peak_memory_bytes(self) -> int | None:
        """The most memory that was in use at once, or None when it is not counted."""
        peak = self._read("memory.peak")
        return self._read("memory.max_usage_in_bytes") if peak is None else peak

    def is_short_of_memory(self) -> bool:
        """Whether the kernel has ended a process here for want of memory."""
        return bool(self._read("memory.events", "oom_kill") or self._read("memory.oom_control", "oom_kill"))

    def remove(self) -> bool:
        """Remove it; False while something in it still goes away. Idempotent."""
        for path in list(self._places):
            if not _removed(path):
                return False
            del self._places[path]
        return True

    def _read(self, name: str, key: str = "") -> int | None:
        for path in self._places:
            try:
                lines = (path / name).read_text().splitlines()
            except OSError:
                continue
            for line in lines:
                word, _, value = line.rpartition(" ")
                if word == key:
                    return int(value)
        return None


class Groups:
    """Where groups can be made. Empty where they cannot."""

    def __init__(self, name: str, note: Path, found: list[Place] | None = None) -> None:
        """*name* is that of the runtime; *note* a file that remembers the directories made, for a next life.

        Removes what an earlier life left behind.
        """
        self._note = note
        self._sweep()
        self._places = [p for place in (places() if found is None else found) if (p := _made(place, name)) is not None]
        self.controllers = frozenset(name for place in self._places for name in place.controllers)
        if self._places:
            known = note.read_text().splitlines() if note.exists() else []  # what could not be removed yet
            note.write_text("".join(f"{path}\n" for path in {*known, *(str(p.path) for p in self._places)}))

    def make(self, name: str, limits: Limits) -> Group | None:
        """A group with *limits*, or None where there can be none."""
        if not self._places:
            return None
        made: dict[Path, Place] = {}
        group = Group(made)
        try:
            for place in self._places:
                path = place.path / name
                path.mkdir(parents=True, exist_ok=True)
                made[path] = place
            group = Group(made)
            group.limit(limits)
        except OSError:
            Group(made).remove()
            raise
        return group

    def close(self) -> bool:
        """Remove the runtime's own directories; False while something in them still goes away. Idempotent."""
        self._places = []
        return self._sweep()

    def _sweep(self) -> bool:
        try:
            left = [Path(line) for line in self._note.read_text().splitlines()]
        except FileNotFoundError:
            return True
        for path in left:
            if path.name.startswith("agentfs-") and path.is_dir():
                with os.scandir(path) as entries:
                    below = [Path(entry.path) for entry in entries if entry.is_dir()]
                for group in below:
                    _emptied(group)
                if not all(map(_removed, [*below, path])):
                    return False
        self._note.unlink(missing_ok=True)
        return True


def name_of(top: Path) -> str:
    """The name of the directory of groups of the runtime whose sessions are in *top*."""
    return f"agentfs-{hashlib.sha256(str(top).encode()).hexdigest()[:12]}"


def places(proc: Path = Path("/proc/self")) -> list[Place]:
    """The groups this process is in, for each controller that is wanted."""
    own = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
    found: list[Place] = []
    for root, point, kind, options in _mounts((proc / "mountinfo").read_text()):
        for _, names, path in own:
            here = point / os.path.relpath(path, root)
            if kind == "cgroup2" and not names and here.is_dir():
                held = (here / "cgroup.controllers").read_text().split()
                found.append(Place(here, frozenset(held) & {*_WANTED}, is_unified=True))
            elif kind == "cgroup" and names and set(names.split(",")) <= options and here.is_dir():
                found.append(Place(here, frozenset(names.split(",")) & {*_WANTED}, is_unified=False))
    return [place for place in found if place.controllers]


def _mounts(info: str) -> Iterator[tuple[str, Path, str, set[str]]]:
    for line in info.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind.startswith("cgroup"):
            root, point = before.split(" ")[3:5]
            yield root, Path(point), kind, set(options.split(","))


def _made(place: Place, name: str) -> Place | None:
    """The runtime's directory in *place*, or None where it may not make one."""
    path = place.path / name
    try:
        if place.is_unified:
            _pass_on(place.path, place.controllers)
        path.mkdir(exist_ok=True)
        if place.is_unified:
            _pass_on(path, place.controllers)
    except OSError:  # no right to it, or (v2) processes live in this group: then there are no groups
        _removed(path)
        return None
    return Place(path, place.controllers, place.is_unified)


def _pass_on(path: Path, controllers: frozenset[str]) -> None:
    control = path / "cgroup.subtree_control"
    if missing := sorted(controllers - set(control.read_text().split())):
        control.write_text(" ".join(f"+{name}" for name in missing))


def _settings(place: Place, limits: Limits) -> Iterator[tuple[str, object]]:
    memory, quota = limits.max_memory_mb * MIB, max(1000, round(limits.max_cpu_cores * _PERIOD_US))
    if place.is_unified:
        every = {
            "memory": (("memory.max", memory), ("memory.swap.max", 0), ("memory.oom.group", 1)),
            "pids": (("pids.max", limits.max_processes + _OWN),),
            "cpu": (("cpu.max", f"{quota} {_PERIOD_US}"),),
        }  # fmt: skip
    else:
        every = {
            "memory": (("memory.limit_in_bytes", memory), ("memory.memsw.limit_in_bytes", memory)),
            "pids": (("pids.max", limits.max_processes + _OWN),),
            "cpu": (("cpu.cfs_period_us", _PERIOD_US), ("cpu.cfs_quota_us", quota)),
        }
    for controller in place.controllers:
        yield from every.get(controller, ())


def _emptied(path: Path) -> None:
    """End what is still in the group *path*, of which nobody is left: a bwrap whose starter died half-way waits on."""
    with contextlib.suppress(OSError):
        for pid in (path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def _removed(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError as exc:
        if exc.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise
    return True
