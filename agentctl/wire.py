"""The wire of the HTTP face in plain values: listings and encoded paths.

No connection is made here.
"""

from __future__ import annotations

from urllib.parse import quote, urlencode

import msgspec

from agentfs.types import clean


class Entry(msgspec.Struct, frozen=True):
    """A file as listings show it: ``mode`` octal permission bits, ``size`` bytes, ``mtime`` RFC 3339."""

    name: str
    kind: str = "file"
    mode: str = ""
    size: int = 0
    mtime: str = ""
    version: int = 0

    @property
    def is_dir(self) -> bool:
        """True for a directory."""
        return self.kind == "dir"


class Page(msgspec.Struct, frozen=True):
    """One page of a listing; *cursor* asks for the next, None at the end."""

    entries: list[Entry]
    cursor: str | None = None


def target(path: str, **query: str | None) -> str:
    """*path* as the request names it: cleaned, each segment percent-encoded, with the *query* keys that are set.

    EINVAL, EILSEQ or ENAMETOOLONG for a path that no file can have.
    """
    plain = clean(tidy(path))
    keys = urlencode({key: value for key, value in query.items() if value is not None})
    return "/" + quote(plain, safe="/") + ("?" + keys if keys else "")


def tidy(path: str) -> str:
    """*path* without one leading and one trailing slash: the root may be written ``/``."""
    return "" if path == "/" else path.removeprefix("/").removesuffix("/")
