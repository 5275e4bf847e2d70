"""What the core answers a binding with: plain values, no behaviour."""

from __future__ import annotations

from typing import NamedTuple


class Attr(NamedTuple):
    """What the kernel is told of an inode; ``node`` is the number it asks with, 0 when it must look the name up.

    ``keeps``: it may keep this until it is told otherwise; ``keeps_name``: the name it has found it by.
    """

    node: int
    ino: int
    mode: int
    size: int
    mtime_ns: int
    owner: tuple[int, int]
    keeps: bool = False
    keeps_name: bool = False


class Opened(NamedTuple):
    """A number for an open file; ``commits``: something may be committed when a descriptor of it is closed.

    ``descriptor``: the kernel may read this file by itself (see `FileHandle.descriptor`).
    """

    fh: int
    commits: bool
    descriptor: int | None = None


class OpenedDirectory(NamedTuple):
    """A number for an open directory; ``keeps``: the kernel may keep its entries while its mtime stays."""

    fh: int
    keeps: bool
