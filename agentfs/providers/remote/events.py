"""Server-sent events cut out of chunks of bytes (WHATWG HTML, section 9.2). No I/O; lines end in LF or CRLF."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from agentfs.errors import error

LINE_MAX: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its type, the last ``id`` seen so far, its data without the final newline."""

    kind: str
    id: str
    data: bytes


class Events:
    """The events of one connection, fed piece by piece; what is cut off by the end is none."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._kind, self._id = "", ""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that *chunk* completes. EFBIG for a line over `LINE_MAX`."""
        head, *lines = chunk.split(b"\n")
        self._rest += head
        if len(self._rest) > LINE_MAX:
            raise error(errno.EFBIG, detail=f"an event line over {LINE_MAX} bytes")
        for line in lines:
            whole, self._rest = bytes(self._rest).removesuffix(b"\r"), bytearray(line)
            if whole:
                self._field(whole)
                continue
            if self._kind or self._data:
                yield Event(self._kind or "message", self._id, b"\n".join(self._data))
            self._kind, self._data = "", []

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._kind = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
