"""SQLite's failures as rows of the error table, mapped once, at the edge of the provider.

It decides nothing about what to do next.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agentfs.errors import BY_ERRNO, error

_CODES: Final = {
    sqlite3.SQLITE_FULL: (errno.ENOSPC, "disk or store is full"),
    sqlite3.SQLITE_BUSY: (errno.EBUSY, "another process has locked the store"),
    sqlite3.SQLITE_LOCKED: (errno.EBUSY, "another connection has locked the store"),
    sqlite3.SQLITE_TOOBIG: (errno.EFBIG, "row is over the store's limit"),
    sqlite3.SQLITE_READONLY: (errno.EROFS, "store file may not be written"),
    sqlite3.SQLITE_PERM: (errno.EACCES, "store file may not be opened"),
    sqlite3.SQLITE_AUTH: (errno.EACCES, "store file may not be opened"),
}
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _is_full(path: Path) -> bool:
    try:
        return os.statvfs(path).f_bavail == 0
    except OSError:
        return False


def fault(exc: BaseException, path: Path) -> OSError:
    """*exc* as an `OSError` of the table; what the table does not know is EIO."""
    if isinstance(exc, OSError):
        return exc if exc.errno in BY_ERRNO else error(errno.EIO, str(path), str(exc))
    if isinstance(exc, OverflowError):
        return error(errno.EINVAL, detail="a number is over 64 bits")
    code = (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF
    if code == sqlite3.SQLITE_IOERR and _is_full(path):
        code = sqlite3.SQLITE_FULL
    number, text = _CODES.get(code, (errno.EIO, f"{type(exc).__name__}: {exc}"))
    return error(number, str(path), text)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """While a store is opened: damage is EINVAL, so that its words reach the operator; the rest as in `fault`."""
    try:
        yield
    except sqlite3.DatabaseError as exc:
        if (getattr(exc, "sqlite_errorcode", 0) & 0xFF) in _DAMAGE:
            raise error(errno.EINVAL, str(path), f"store is damaged, nothing was written: {exc}") from exc
        raise fault(exc, path) from exc
    except OSError as exc:
        raise fault(exc, path) from exc
