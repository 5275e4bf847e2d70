"""From a directory to an open ``/dev/fuse`` mounted there: by mount(2), or by fusermount3 for who may not.

Source: fuse.rst of the kernel's documentation for the options; libfuse's ``util/fusermount.c`` for the descriptor that
fusermount3 sends over the socket it is told of in ``_FUSE_COMMFD``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat as _stat
import subprocess
from typing import Final

import trio

from agentfs.errors import error
from agentfs.faces.fuse.binding import Options
from agentfs.faces.fuse.place import FSNAME

DEVICE: Final = "/dev/fuse"
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4


async def mounted(place: str, options: Options) -> int:
    """The descriptor of a new mount at *place*. EACCES with the reason; ENOENT without /dev/fuse or fusermount3."""
    try:
        return _directly(place, options)
    except PermissionError:
        return await _by_fusermount(place, options)


def _shared(options: Options) -> list[str]:
    return ["default_permissions", *(["allow_other"] if options.allow_other else [])]


def _directly(place: str, options: Options) -> int:
    if os.geteuid() != 0:
        raise PermissionError
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    data = ",".join([f"fd={fd}", f"rootmode={_stat.S_IFDIR:o}", "user_id=0", "group_id=0", *_shared(options)])
    libc = ctypes.CDLL(None, use_errno=True)
    kind = f"fuse.{options.subtype}".encode()
    if libc.mount(FSNAME.encode(), os.fsencode(place), kind, _MS_NOSUID | _MS_NODEV, data.encode()):
        os.close(fd)
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), place)
    return fd


async def _by_fusermount(place: str, options: Options) -> int:
    words = ",".join([f"fsname={FSNAME}", f"subtype={options.subtype}", "nosuid", "nodev", *_shared(options)])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = await trio.run_process(
            ["fusermount3", "-o", words, "--", place],
            env=os.environ | {"_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()], check=False, capture_stderr=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        said = done.stderr.decode(errors="replace").strip()
        if done.returncode:
            raise error(errno.EACCES, place, f"{said}; is {DEVICE} open to this user?")
        theirs.close()
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if not fds:
        raise error(errno.EACCES, place, f"fusermount3 gave no descriptor: {said}")
    os.set_inheritable(fds[0], False)
    return fds[0]
