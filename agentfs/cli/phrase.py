"""The passphrase of the keys on its way to whoever opens them: by a descriptor, never by an environment.

It must not read the passphrase, but to take it out of the environment it came in.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
from typing import Final

from agentfs.config import PASSPHRASE, PHRASE_FD
from agentfs.errors import error

LONGEST: Final = 4096  # bytes: they wait in a pipe, which holds more
_STDERR: Final = 2


def hide() -> None:
    """Where a passphrase is in the environment, begin this command anew with it in a pipe.

    The environment that a process began with can be read as long as it lives (``/proc/PID/environ``), and its children
    inherit it. EINVAL for a passphrase over 4096 bytes.
    """
    held = os.fsencode(os.environ.pop(PASSPHRASE, ""))
    if not held:
        return
    if len(held) > LONGEST:
        raise error(errno.EINVAL, PASSPHRASE, f"passphrase: want at most {LONGEST} bytes")
    told, telling = os.pipe()
    os.write(telling, held)
    os.close(telling)
    told = fcntl.fcntl(told, fcntl.F_DUPFD, _STDERR + 1)  # with none at its place a pipe could be the standard input
    os.environ[PHRASE_FD] = str(told)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ)


def descriptor() -> int:
    """The open descriptor that a passphrase can be read from, -1 without one.

    EINVAL when the one named is none, or one of the standard three, which other processes have for other things.
    """
    text = os.environ.get(PHRASE_FD, "")
    if not text:
        return -1
    try:
        found = int(text)
        if found <= _STDERR:
            raise ValueError
        os.set_inheritable(found, False)  # only who is to have it gets it
    except (ValueError, OSError, OverflowError) as exc:
        raise error(errno.EINVAL, PHRASE_FD, "want the number of an open descriptor over 2") from exc
    return found


def taken() -> int:
    """`descriptor`, and from now on the environment names none."""
    found = descriptor()
    os.environ.pop(PHRASE_FD, None)
    return found


def drop() -> None:
    """Close the descriptor: somebody else has it now."""
    found = taken()
    if found >= 0:
        with contextlib.suppress(OSError):
            os.close(found)
