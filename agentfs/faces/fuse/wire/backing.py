"""Files of this machine that the kernel reads by itself (FUSE passthrough): one backing number for each inode.

The kernel wants the same number for all that is open of an inode, writers too, whose bytes come to us all the same. It
takes none of who is not root, and none on a stacked file system: then reads come to us as always.
"""

from __future__ import annotations

import fcntl
import logging
from typing import Final

from agentfs.faces.fuse.wire import protocol as p

log = logging.getLogger(__name__)
STACK_DEPTH: Final = 1


class Backings:
    """The backing numbers of the mount whose device is *fd*."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._numbers: dict[int, int] = {}
        self._users: dict[int, int] = {}
        self._of: dict[int, int] = {}
        self.is_possible = False

    def hold(self, fh: int, node: int, descriptor: int | None) -> int:
        """The number for the open file *fh* of *node*, which may be read by *descriptor*; 0 for none."""
        if node not in self._numbers:
            if descriptor is None or not self.is_possible:
                return 0
            try:  # a buffer that can be changed has ioctl return the number
                number = fcntl.ioctl(self._fd, p.DEV_IOC_BACKING_OPEN, bytearray(p.BACKING_MAP.pack(descriptor, 0, 0)))
            except OSError as exc:
                log.info("the kernel does not read files by itself: %s", exc)
                self.is_possible = False
                return 0
            self._numbers[node] = number
        self._of[fh] = node
        self._users[node] = self._users.get(node, 0) + 1
        return self._numbers[node]

    def drop(self, fh: int) -> None:
        """*fh* is closed."""
        node = self._of.pop(fh, None)
        if node is None:
            return
        self._users[node] -= 1
        if not self._users[node]:
            del self._users[node]
            number = self._numbers.pop(node)
            fcntl.ioctl(self._fd, p.DEV_IOC_BACKING_CLOSE, number.to_bytes(4, "little"))
