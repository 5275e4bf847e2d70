"""The wire of the HTTP face in plain values: listings, encoded paths, and what httpx raises as errors.

No connection is made here.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from urllib.parse import quote, urlencode, urlsplit

import httpx
import msgspec

from agentctl.trust import refusal
from agentfs.errors import error
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


def base(url: str) -> str:
    """*url* without its final slash. EINVAL unless it is plain ``http(s)://host[:port][/prefix]``."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound or "@" in parts.netloc or parts.query or parts.fragment:
        raise error(errno.EINVAL, url.partition("@")[2] or url, "url: want http://host:port")
    return url.rstrip("/")


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


def unreachable(path: str, text: str) -> OSError:
    """ENOTCONN as a client sees it: the table's own text says what only a runtime can know, that it is stopping."""
    return OSError(errno.ENOTCONN, text, path)


@contextlib.contextmanager
def translated(url: str, path: str) -> Iterator[None]:
    """Turn what httpx raises into ENOTCONN, ETIMEDOUT, EINVAL, EIO, or EACCES for what TLS refuses."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
        if refused := refusal(exc):
            raise error(errno.EACCES, path, refused) from exc
        raise unreachable(path, f"cannot reach {url}: {_words(exc)}") from exc
    except httpx.TimeoutException as exc:
        raise error(errno.ETIMEDOUT, path, f"no answer from {url}") from exc
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError) as exc:
        raise error(errno.EINVAL, path, str(exc)) from exc
    except httpx.TransportError as exc:
        if refused := refusal(exc):
            raise error(errno.EACCES, path, refused) from exc
        raise unreachable(path, f"connection to {url} broke: {_words(exc)}") from exc
    except httpx.HTTPError as exc:
        raise error(errno.EIO, path, str(exc)) from exc


def _words(exc: Exception) -> str:
    text = str(exc) or type(exc).__name__
    return text.partition("] ")[2] or text
