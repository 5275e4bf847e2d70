"""Reads server-sent events (WHATWG HTML, section 9.2) from chunks of bytes.

No I/O and no reconnecting. Lines end in LF or CRLF; a lone CR is part of its line.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agentfs.errors import error

LINE_MAX = 32 << 20


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its type, the last ``id`` seen so far (``""``: none yet), its data without the final newline.

    An event with an ``id`` but no data has the type ``id``: a browser keeps such an id too.
    """

    type: str
    id: str
    data: bytes


def events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """The events of *chunks*, in order; an event cut off by the end is not one. EFBIG for a line over 32 MiB."""
    kind, last, data = "", "", list[bytes]()
    is_new = False
    for line in lines(chunks):
        if not line:
            if data:
                yield Event(kind or "message", last, b"\n".join(data))
            elif is_new or kind:
                yield Event(kind or "id", last, b"")
            kind, data, is_new = "", [], False
            continue
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            last, is_new = value.decode("utf-8", "replace"), True


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The complete lines of *chunks* without their ends; linear in the bytes however they are cut."""
    rest: list[bytes] = []
    held = 0
    for chunk in chunks:
        head, *tail = chunk.split(b"\n")
        rest.append(head)
        held += len(head)
        if held > LINE_MAX:
            raise error(errno.EFBIG, detail=f"an event line over {LINE_MAX} bytes")
        for part in tail:
            yield b"".join(rest).removesuffix(b"\r")
            rest, held = [part], len(part)
