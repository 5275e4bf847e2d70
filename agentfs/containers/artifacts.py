"""Artifacts: which files of a workdir a build made, with their size and hash; read through the files' service."""

from __future__ import annotations

import errno
import hashlib
import stat as _stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Final

from agentfs.service import FileService
from agentfs.types import ROOT, Mode, Path, Stat, join

_MOST: Final = 1_000
_PIECE: Final = 1 << 20
_ODD: Final = frozenset({errno.EACCES, errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG})
"""What is no file or directory that can be read: a FIFO, a link that leads nowhere or out, what its owner closed."""


async def named(files: FileService, patterns: Sequence[str]) -> list[dict[str, Any]]:
    """``[{path, size_bytes, sha256}]`` of the regular files that match one of *patterns* (``*`` takes slashes too).

    What cannot be read is left out.
    """
    found: list[dict[str, Any]] = []
    if not patterns:
        return found
    async for path in _every(files, ROOT):
        if any(fnmatchcase(path, pattern) for pattern in patterns):
            with _left_out():
                found.append(await _hashed(files, path))
            if len(found) == _MOST:
                break
    return found


async def _every(files: FileService, top: Path) -> AsyncIterator[Path]:
    left = [top]
    while left:
        here, after = left.pop(), ""
        while entries := await _page(files, here, after):
            for entry in entries:
                path = join(here, entry.name)
                if _stat.S_ISDIR(entry.mode):
                    left.append(path)
                else:
                    yield path
            after = entries[-1].name


async def _page(files: FileService, path: Path, after: str) -> Sequence[Stat]:
    with _left_out():
        return await files.list(path, after)
    return ()


@contextmanager
def _left_out() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno not in _ODD:
            raise


async def _hashed(files: FileService, path: Path) -> dict[str, Any]:
    total, digest = 0, hashlib.sha256()
    async with await files.open(path, Mode.READ) as handle:
        while piece := await handle.read(_PIECE, total):
            digest.update(piece)
            total += len(piece)
    return {"path": path, "size_bytes": total, "sha256": digest.hexdigest()}
