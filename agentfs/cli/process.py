"""The runtime's process: who holds a lock file, and ending exactly that process.

The kernel says who holds a lock and lets go of it at death, so that a stale or reused process id can never be meant.
Linux only: record locks that name their owner, and pidfds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agentfs.errors import error

_FLOCK: Final = "hhqqi0q"  # struct flock: type, whence, start, length, pid


def hold(lock: Path) -> int:
    """Lock *lock* for the rest of this process, which must not open it again. EBUSY names the holder.

    A record lock, not flock(2): a child made by fork does not hold it too.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as exc:
        pid = _owner(descriptor)
        os.close(descriptor)
        raise error(errno.EBUSY, str(lock), f"a runtime has this state directory (process {pid})") from exc
    return descriptor


def holder(lock: Path) -> int | None:
    """The process that holds *lock*, or None. EBUSY when it is one this process cannot see (a container's)."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        pid = _owner(descriptor)
    finally:
        os.close(descriptor)
    if pid is not None and pid <= 0:
        raise error(errno.EBUSY, str(lock), "a runtime in another container has this state directory")
    return pid


def _owner(descriptor: int) -> int | None:
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else pid


def end(lock: Path, patience: float) -> str:
    """End the holder of *lock*: SIGTERM, and SIGKILL after *patience* seconds. What was done, or "" for no holder.

    Returns when it is gone. EPERM when it belongs to another user, EBUSY when it does not end at all.
    """
    pid = holder(lock)
    if pid is None:
        return ""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return ""
    try:
        if holder(lock) != pid:  # the descriptor may be of whoever got the number next
            return ""
        return _end(descriptor, pid, patience)
    except PermissionError as exc:
        raise error(errno.EPERM, str(lock), f"process {pid} belongs to another user") from exc
    finally:
        os.close(descriptor)


def _end(descriptor: int, pid: int, patience: float) -> str:
    for sign, seconds, done in ((signal.SIGTERM, patience, "stopped"), (signal.SIGKILL, 10.0, "killed")):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, sign)
        if is_gone(descriptor, seconds):
            return f"{done} process {pid}"
    raise error(errno.EBUSY, detail=f"process {pid} does not end")


def is_gone(descriptor: int, seconds: float) -> bool:
    """Wait *seconds* for the process behind the pidfd *descriptor* to end; whether it has."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


@contextlib.contextmanager
def turn(lock: Path, patience: float) -> Iterator[None]:
    """Only one process at a time is within, for this *lock* file. EBUSY after *patience* seconds."""
    deadline = time.monotonic() + patience
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not _locked(descriptor):
            if time.monotonic() > deadline:
                raise error(errno.EBUSY, str(lock), f"another start or stop is not done after {patience:.0f} s")
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
