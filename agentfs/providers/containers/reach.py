"""`Reach`: how a process of another user gets at directories of the runtime that are closed to it.

It opens nothing to anybody else: what is closed is bound, for that process alone, in a mount namespace of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agentfs.providers.containers.rootfs import PATH
from agentfs.providers.containers.workdir import Owner

_PLACES: Final = ("/mnt", "/media", "/srv", "/opt", "/home")
_SCRIPT: Final = """
place=$1 uid=$2 gid=$3; shift 3
if [ -n "$place" ]; then mount -n -t tmpfs -o mode=0711,size=64k,nosuid,nodev agentfs "$place"; fi
while [ "$1" != -- ]; do
  case $2 in ("${place:-//}"/*) if [ -d "$1" ]; then mkdir "$2"; else : > "$2"; fi;; esac
  mount -n --rbind "$1" "$2"; shift 2
done
shift; cd /
exec setpriv --reuid "$uid" --regid "$gid" --clear-groups --no-new-privs -- "$@"
"""


class Reach:
    """The way of *owner* to some paths, as the runtime's own user (*owner* None) or another."""

    def __init__(self, owner: Owner | None, paths: Sequence[str], served: str = "") -> None:
        """*served*: one more, "" for none: it is in a mount of this very process, which must not touch it."""
        self._owner = owner
        closed = [] if owner is None else [path for path in dict.fromkeys(paths) if not is_open(path, owner)]
        closed += [served] if served and owner is not None else []
        taken, mounts = [*paths, served], Path("/proc/self/mounts").read_text()
        free = [
            at for at in _PLACES
            if f" {at} " not in mounts and not any(path.startswith(f"{at}/") for path in taken) and Path(at).is_dir()
        ]  # fmt: skip
        self._made, *direct = free  # one for what needs a mount point made; binding on what is there is faster
        self._at: dict[str, str] = {}
        for number, path in enumerate(closed):
            is_direct = bool(direct) and (path == served or Path(path).is_dir())
            self._at[path] = direct.pop() if is_direct else f"{self._made}/{number}"

    def seen(self, path: str) -> str:
        """*path* as the process will find it."""
        return self._at.get(path, path)

    def before(self, first: str = "") -> list[str]:
        """The words to start a program with, which becomes the owner on the way; *first*: lines of shell before that.

        Empty where nothing is to be done.
        """
        if self._owner is None:
            return ["/bin/sh", "-c", f'set -e\n{first}\nexec "$@"', "agentfs"] if first else []
        made = self._made if any(at.startswith(f"{self._made}/") for at in self._at.values()) else ""
        pairs = [word for pair in self._at.items() for word in pair]
        words = [made, str(self._owner.uid), str(self._owner.gid), *pairs, "--"]
        script = ["/bin/sh", "-c", f"set -e\n{first}{_SCRIPT}", "agentfs", *words]
        if not self._at:
            return script
        return [shutil.which("unshare", path=PATH) or "unshare", "--mount", "--propagation", "slave", "--", *script]


def is_open(path: str, owner: Owner) -> bool:
    """Whether *owner* may pass through every directory above *path*."""
    for above in Path(path).parents:
        about = above.stat()
        shift = 6 if about.st_uid == owner.uid else 3 if about.st_gid == owner.gid else 0
        if not about.st_mode >> shift & 1:
            return False
    return True
