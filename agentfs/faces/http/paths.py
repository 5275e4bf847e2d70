"""From the raw bytes of a request's path to a `Path`, decoded exactly once; and entity tags.

No file is touched here.
"""

from __future__ import annotations

import errno
from urllib.parse import unquote_to_bytes, urlsplit

from agentfs.errors import error
from agentfs.types import Path, clean


def decode(raw: bytes) -> tuple[Path, bool]:
    """The clean path, and whether it was written with a trailing slash.

    EINVAL for an encoded slash, an empty or dot segment; EILSEQ for what is not UTF-8; ENAMETOOLONG.
    """
    segments = raw.removeprefix(b"/").split(b"/")
    is_dir = segments[-1] == b""
    if is_dir:
        segments.pop()
    names = []
    for segment in segments:
        name = unquote_to_bytes(segment)
        if b"/" in name:
            raise error(errno.EINVAL, raw[:200].decode(errors="replace"), "path: encoded slash")
        try:
            names.append(name.decode())
        except UnicodeDecodeError as exc:
            raise error(errno.EILSEQ, raw[:200].decode(errors="replace"), "path") from exc
    if "" in names:
        raise error(errno.EINVAL, raw[:200].decode(errors="replace"), "path: empty segment")
    return clean("/".join(names)), is_dir


def destination(header: str | None, host: str) -> Path:
    """The target of a MOVE: an absolute path, or a URL of this *host*. EINVAL, EXDEV for another host."""
    if not header:
        raise error(errno.EINVAL, detail="Destination: header missing")
    try:
        _, place, path, query, fragment = urlsplit(header)
    except ValueError as exc:
        raise error(errno.EINVAL, detail=f"Destination: {header[:80]!r}") from exc
    if place not in ("", host):
        raise error(errno.EXDEV, detail=f"Destination: {header[:80]!r}: another host")
    if not path.startswith("/") or query or fragment:
        raise error(errno.EINVAL, detail=f"Destination: {header[:80]!r}: want an absolute path")
    return decode(path.encode("latin-1", "replace"))[0]


def etag(version: int) -> str:
    """The entity tag of a version."""
    return f'"{version}"'


def match(header: str | None) -> int | None:
    """The version that If-Match names; None without one or for ``*``. EINVAL."""
    if header is None or header.strip() == "*":
        return None
    text = header.strip().removeprefix("W/").strip('"')
    if not text.isdecimal() or len(text) > 19:
        raise error(errno.EINVAL, detail=f"If-Match: {header[:60]!r}: want an ETag this face gave")
    return int(text)
