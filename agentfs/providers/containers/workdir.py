"""`Workdir`: a session's own files as a directory of this machine, bound into its sandbox: made, measured, removed.

Every provider uses it. What is below belongs to code that nobody trusts: no link is followed, nothing is assumed.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from agentfs.containers.documents import Limits
from agentfs.errors import error

_SHORTEST_S: Final = 0.1
_SHARE: Final = 10  # a measurement takes at most one part in so many of the time
MIB: Final = 1 << 20
ANY: Final = Limits(max_disk_mb=1 << 22, max_files=1 << 24)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who code in sandboxes is on this machine."""

    uid: int
    gid: int


class Workdir:
    """The directory of one session. Its methods block, but for `watch`."""

    def __init__(self, top: Path, id: str, owner: Owner) -> None:
        """*top* holds one directory for each session, and is the runtime's alone (0711)."""
        self.path, self._owner = top / id, owner

    def make(self) -> None:
        """An empty directory, its owner's alone. EEXIST."""
        self.path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        try:
            self.path.mkdir(mode=0o700)
        except FileExistsError as exc:
            raise error(errno.EEXIST, detail=f"session {self.path.name}") from exc
        if os.geteuid() == 0:
            os.chown(self.path, self._owner.uid, self._owner.gid)

    def remove(self) -> None:
        """The directory and all below it, however deep, odd and closed. Idempotent."""
        argv = ["rm", "-rf", "--one-file-system", "--", str(self.path)]
        if subprocess.run(argv, capture_output=True, check=False).returncode != 0:
            subprocess.run(["chmod", "-R", "u+rwX", "--", str(self.path)], capture_output=True, check=False)
            done = subprocess.run(argv, capture_output=True, check=False)
            if done.returncode != 0:
                raise error(
                    errno.EIO, detail=f"workdir of {self.path.name}: {done.stderr.decode(errors='replace')[:500]}"
                )

    def used(self, limits: Limits = ANY) -> tuple[int, int]:
        """Bytes on the disk and number of files; counting ends where *limits* are passed, or a path is too long."""
        size = count = 0
        seen: set[int] = set()
        for entry in self._walk():
            count += 1
            about = entry.stat(follow_symlinks=False)
            if about.st_nlink == 1 or about.st_ino not in seen:
                size += about.st_blocks * 512
            if about.st_nlink > 1:
                seen.add(about.st_ino)
            if size > limits.max_disk_mb * MIB or count > limits.max_files:
                break
        return size, count

    def _walk(self) -> Iterator[os.DirEntry[str]]:
        left = [str(self.path)]
        while left:
            try:
                with os.scandir(left.pop()) as entries:
                    for entry in entries:
                        try:
                            yield entry
                            if entry.is_dir(follow_symlinks=False):
                                left.append(entry.path)
                        except FileNotFoundError:
                            continue
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue  # gone, or closed, meanwhile

    def is_over(self, limits: Limits) -> bool:
        """Whether more lies there than *limits* allow."""
        try:
            size, count = self.used(limits)
        except OSError as exc:
            if exc.errno == errno.ENAMETOOLONG:
                return True
            raise
        return size > limits.max_disk_mb * MIB or count > limits.max_files

    async def watch(self, limits: Limits) -> None:
        """Return when more lies there than *limits* allow."""
        while True:
            begun = time.monotonic()
            if await anyio.to_thread.run_sync(self.is_over, limits):
                return
            await anyio.sleep(max(_SHORTEST_S, _SHARE * (time.monotonic() - begun)))
