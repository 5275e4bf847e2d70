"""`Sessions`: the documents beside workdirs that tell which sessions there are, across lives of the runtime.

They hold no environment and no secret.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from agentfs.containers.port import Used
from agentfs.errors import error

_ID: Final = re.compile(r"[a-z0-9-]{1,64}\Z")


class Record(msgspec.Struct, kw_only=True):
    """One session: whether it takes no more commands, and what those that ended have used."""

    id: str
    agent: str
    is_ended: bool = False
    cpu_ms: int = 0
    peak_memory_bytes: int = 0


class Sessions:
    """The documents in *top*. Its methods block for one small file."""

    def __init__(self, top: Path) -> None:
        self._top = top

    def make(self, id: str, agent: str) -> None:
        """The document of a new session. EINVAL for *id*, EEXIST."""
        if not _ID.match(id):
            raise error(errno.EINVAL, detail="id: want [a-z0-9-]{1,64}")
        if self.has(id):
            raise error(errno.EEXIST, detail=f"session {id}")
        self._keep(Record(id=id, agent=agent))

    def has(self, id: str) -> bool:
        """Whether there is one of *id*."""
        return _ID.match(id) is not None and self._path(id).exists()

    def get(self, id: str) -> Record:
        """The document of *id*. ENOENT; EREMOTEIO for one that cannot be read."""
        if not self.has(id):
            raise error(errno.ENOENT, detail=f"session {id[:64]}")
        try:
            return msgspec.json.decode(self._path(id).read_bytes(), type=Record)
        except msgspec.DecodeError as exc:
            raise error(errno.EREMOTEIO, detail=f"session {id}: its document cannot be read") from exc

    def end(self, id: str) -> None:
        """No more commands for it. Idempotent."""
        if self.has(id) and not (record := self.get(id)).is_ended:
            record.is_ended = True
            self._keep(record)

    def count(self, id: str, used: Used) -> None:
        """Add what a command used, if it is still there."""
        if self.has(id):
            record = self.get(id)
            record.cpu_ms += used.cpu_ms or 0
            record.peak_memory_bytes = max(record.peak_memory_bytes, used.peak_memory_bytes or 0)
            self._keep(record)

    def remove(self, id: str) -> None:
        """Forget it. Idempotent."""
        self._path(id).unlink(missing_ok=True)

    def found(self) -> Sequence[str]:
        """All ids."""
        with os.scandir(self._top) as entries:
            names = [entry.name.removesuffix(".json") for entry in entries if entry.name.endswith(".json")]
        return sorted(name for name in names if _ID.match(name))

    def _path(self, id: str) -> Path:
        return self._top / f"{id}.json"

    def _keep(self, record: Record) -> None:
        new = self._top / f".{record.id}.new"
        new.write_bytes(msgspec.json.encode(record))
        new.replace(self._path(record.id))
