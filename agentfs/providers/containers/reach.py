"""`Reach`: how a process of another user gets at directories of the runtime that are closed to it.

It opens nothing to anybody else: what is closed is bound, for that process alone, in a mount namespace of its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agentfs.providers.containers.rootfs import PATH
from agentfs.providers.containers.workdir import Owner

_PLACES: Final = ("/mnt", "/media", "/srv", "/opt", "/home")
_SCRIPT: Final = """set -e
place=$1 uid=$2 gid=$3 n=0; shift 3
mount -n -t tmpfs -o mode=0711,size=64k,nosuid,nodev agentfs "$place"
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir "$place/$n"; else : > "$place/$n"; fi
  mount -n --rbind "$1" "$place/$n"; n=$((n+1)); shift
done
shift; cd /
exec setpriv --reuid "$uid" --regid "$gid" --clear-groups --no-new-privs -- "$@\""""


class Reach:
    """The way of *owner* to some paths, as the runtime's own user (*owner* None) or another."""

    def __init__(self, owner: Owner | None, paths: Sequence[str]) -> None:
        self._owner = owner
        self._closed = [] if owner is None else [path for path in paths if not is_open(path, owner)]
        under = [place for place in _PLACES if not any(path.startswith(f"{place}/") for path in self._closed)]
        self._place = next(place for place in under if Path(place).is_dir()) if self._closed else ""

    def seen(self, path: str) -> str:
        """*path* as the process will find it."""
        return f"{self._place}/{self._closed.index(path)}" if path in self._closed else path

    def before(self) -> list[str]:
        """The words to start a program with: it becomes the owner on the way. Empty where it already is."""
        if self._owner is None:
            return []
        uid, gid = str(self._owner.uid), str(self._owner.gid)
        if not self._closed:
            return [_tool("setpriv"), "--reuid", uid, "--regid", gid, "--clear-groups", "--no-new-privs", "--"]
        script = ["/bin/sh", "-c", _SCRIPT, "agentfs", self._place, uid, gid]
        return [_tool("unshare"), "--mount", "--propagation", "slave", "--", *script, *self._closed, "--"]


def is_open(path: str, owner: Owner) -> bool:
    """Whether *owner* may pass through every directory above *path*."""
    for above in Path(path).parents:
        about = os.stat(above)
        shift = 6 if about.st_uid == owner.uid else 3 if about.st_gid == owner.gid else 0
        if not about.st_mode >> shift & 1:
            return False
    return True


def _tool(name: str) -> str:
    return shutil.which(name, path=PATH) or name
