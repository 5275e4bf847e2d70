"""The client's side of the HTTP face: requests with one token, their failures as errors, listings as stats.

It opens no file and keeps nothing of what it was told.
"""

from __future__ import annotations

import errno
import stat as _stat
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from hashlib import blake2b
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from agentfs.client import Trust, base, nobody, translated
from agentfs.errors import error, from_wire
from agentfs.types import Kind, Path, Qid, Stat, Want, clean, join, parse_time

T = TypeVar("T")
CONNECT_S: Final = 5.0
ANSWER_S: Final = 60.0
SILENCE_S: Final = 45.0  # three heartbeats of a watch
_IDLE_S: Final = 2.0  # less than any server waits, so that none closes a connection while it is taken again
_TOKEN_MAX: Final = 4096


class Entry(msgspec.Struct, frozen=True):
    """A file as the face shows it."""

    name: str
    kind: Kind
    mode: str
    size: int = 0
    mtime: str = ""
    version: int = 0

    def stat(self, path: Path) -> Stat:
        """The same as a `Stat`; its identity is its *path*. EIO when it makes no sense."""
        try:
            bits = int(self.mode, 8)
            mtime_ns = parse_time(self.mtime) if self.mtime else 0
        except (ValueError, OSError) as exc:
            raise error(errno.EIO, path, f"an entry that makes no sense: {exc}") from exc
        kind = _stat.S_IFDIR if self.kind is Kind.DIR else _stat.S_IFREG
        return Stat(self.name, kind | bits, self.size, mtime_ns, Qid(_number(path), self.version), self.kind)


class _Page(msgspec.Struct, frozen=True):
    entries: list[Entry]


def stat_of(body: bytes, path: Path) -> Stat:
    """The answer to ``?meta`` of *path*. EIO when it is none."""
    return _decoded(body, path, Entry).stat(path)


def stats_of(body: bytes, path: Path) -> list[Stat]:
    """The entries of a page of the directory *path*. EIO when it is none."""
    return [entry.stat(join(path, entry.name)) for entry in _decoded(body, path, _Page).entries]


def _decoded(body: bytes, path: Path, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise error(errno.EIO, path, f"an answer of another shape: {exc}") from exc


def _number(path: Path) -> int:
    return int.from_bytes(blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest()) >> 1


def target(path: Path) -> str:
    """*path* as a request names it. EINVAL, EILSEQ or ENAMETOOLONG for one that no file can have."""
    return "/" + quote(clean(path), safe="/@")


def wishes(want: Want) -> dict[str, str]:
    """The headers that say what *want* says; ``exclusive`` is the caller's to say, as it means two things."""
    said = {
        "If-Match": None if want.match is None else f'"{want.match}"', "Idempotency-Key": want.key,
        "traceparent": want.trace,
    }  # fmt: skip
    return {name: value for name, value in said.items() if value is not None}


class Wire:
    """One runtime and one token. Safe for concurrent use in one event loop; `aclose` drops the connections.

    *trust* is for an https URL: ENOENT, EINVAL when its files will not do. Every request may raise what the answer
    names, ENOTCONN when there is no connection, ETIMEDOUT without an answer.
    """

    def __init__(
        self, url: str, token: str, *, transport: httpx.AsyncBaseTransport | None = None, trust: Trust | None = None
    ) -> None:
        self.url = base(url)
        if not token or len(token) > _TOKEN_MAX or not token.isascii() or not token.isprintable() or " " in token:
            raise error(errno.EACCES, self.url, "the token is empty, or holds what no token can hold")
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}", "Accept-Encoding": "identity", "User-Agent": "agentfs"},
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=_IDLE_S),
            transport=transport,
            verify=(trust or Trust()).context() if self.url.startswith("https:") else nobody(),
            trust_env=False,  # the environment's proxies and .netrc must never see a token meant for this runtime alone
        )

    async def aclose(self) -> None:
        """Drop the connections. Idempotent."""
        await self._http.aclose()

    async def ask(self, method: str, path: Path, *, is_dir: bool = False, **rest: Any) -> httpx.Response:
        """The answer to one request, read whole. *is_dir*: only a directory will do."""
        tail = "/" if is_dir and path else ""
        with self.translated(path):
            answer = await self._http.request(method, self.url + target(path) + tail, **rest)
        if not answer.is_success:
            raise from_wire(answer.status_code, answer.content, path)
        return answer

    async def get(self, path: Path) -> bytes:
        """The content of a file."""
        return (await self.ask("GET", path)).content

    @asynccontextmanager
    async def stream(self, path: Path, params: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        """An accepted answer to a GET, to be read as it comes; only silence ends the wait for more."""
        timeout = httpx.Timeout(CONNECT_S, read=SILENCE_S)
        with self.translated(path):
            async with self._http.stream("GET", self.url + target(path), params=params, timeout=timeout) as answer:
                if not answer.is_success:
                    raise from_wire(answer.status_code, await answer.aread(), path)
                yield answer

    def translated(self, path: Path) -> AbstractContextManager[None]:
        """`agentfs.client.translated` with this runtime's URL."""
        return translated(self.url, path)
