"""Checking a store that no runtime holds.

It repairs nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import trio

from agentfs.engine.audit import audit
from agentfs.errors import error
from agentfs.providers.clock import SystemClock
from agentfs.providers.store.sqlite import SqliteStore


def faults(file: Path) -> Sequence[str]:
    """Every fault of the SQLite store *file*, one sentence each.

    ENOENT without one, EBUSY while a runtime has it, EINVAL when it is too damaged or too new to be opened.
    """
    if not file.is_file():
        raise error(errno.ENOENT, str(file), "the store")
    return trio.run(_check, file)


async def _check(file: Path) -> Sequence[str]:
    store = await SqliteStore.open(file, SystemClock())
    try:
        return [*await store.check(), *await audit(store)]
    finally:
        await store.aclose()
