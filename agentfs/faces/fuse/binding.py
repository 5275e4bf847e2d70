"""What a binding to the kernel is: it carries requests of one mount to a `Core` and its answers back.

It decides nothing: an operation that needs thought belongs in the core, where every binding has it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from agentfs.faces.fuse.core import Core


@dataclass(frozen=True, slots=True)
class Options:
    """How to mount. *allow_other*: users other than ours reach it; the modes then refuse them what is not theirs."""

    subtype: str
    allow_other: bool


Serving: TypeAlias = Callable[[Callable[[], None]], Awaitable[None]]
"""Serves until the kernel lets go; calls its argument once it has been greeted."""


class Binding(Protocol):
    """One way to reach the kernel. ``has_aliases``: one inode may have several numbers there."""

    name: str
    has_aliases: bool

    def connected(self, core: Core, place: str, options: Options) -> AbstractAsyncContextManager[Serving]:
        """A mount of *core*'s tree at the real path *place*, an empty directory, for the body.

        EACCES when mounting is not allowed; EBUSY for a mount too many in this process; EOPNOTSUPP for too old a
        kernel.
        """
        ...
