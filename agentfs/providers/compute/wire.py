"""HTTP to a server of models: one client with kept connections, bounded answers, and errors as the port has them.

It knows no server's documents.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import anyio
import httpx
import msgspec

from agentfs.client import nobody
from agentfs.compute.port import Unserved, Why
from agentfs.errors import error

CONNECT_SECONDS: Final = 5.0
LIST_SECONDS: Final = 5.0
WHOLE_MAX: Final = 64 << 20  # bytes of an answer
LINE_MAX: Final = 4 << 20  # bytes of one line of a stream
WORDS_MAX: Final = 500  # characters of a server's own words
_LEAST: Final = 8  # characters of a key that is worth hiding
_NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_WHY: Final[dict[int, Why]] = {401: "denied", 402: "denied", 403: "denied", 408: "busy", 409: "busy", 429: "busy"}


class Wire:
    """Requests to the server at *url*; *headers* gives those that carry a key."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self.url = url.rstrip("/")
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS, pool=None)  # how long a job may take is the engine's
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        verify = True if self.url.startswith("https:") else nobody()
        self._client = httpx.AsyncClient(
            timeout=timeout, limits=limits, headers=headers, trust_env=False, verify=verify
        )

    async def get(self, path: str, key: Mapping[str, str]) -> Any:
        """The JSON document at *path*."""
        async with self.asked("GET", path, key) as answer:
            return decoded(await whole(answer, key))

    async def post(self, path: str, key: Mapping[str, str], document: Any) -> Any:
        """The JSON answer to *document*."""
        async with self.asked("POST", path, key, json=document) as answer:
            return decoded(await whole(answer, key))

    @asynccontextmanager
    async def asked(self, method: str, path: str, key: Mapping[str, str], **kw: Any) -> AsyncGenerator[httpx.Response]:
        """The answer, as soon as its head is there. `Unserved` for any but a success."""
        if not all(_is_header(value) for value in key.values()):
            raise Unserved("denied", "the key has characters that no header can hold")
        request = self._client.build_request(method, f"{self.url}{path}", headers=dict(key), **kw)
        try:
            answer = await self._client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as exc:
            raise Unserved("away", cleaned(str(exc) or type(exc).__name__, key)) from None
        except httpx.HTTPError as exc:
            raise lost(exc, key) from None
        try:
            if not answer.is_success:
                raise await _refused(answer, key)
            yield answer
        except httpx.HTTPError as exc:
            raise lost(exc, key) from None
        except OSError as exc:  # what it says may be the server's words
            exc.strerror = cleaned(exc.strerror or "", key)
            raise
        finally:
            await answer.aclose()

    async def aclose(self) -> None:
        """Close kept connections."""
        await self._client.aclose()


def _is_header(value: str) -> bool:
    """Whether *value* can be sent: a client's complaint would hold the key, in a form that is not known here."""
    return value.isascii() and value.isprintable() and value == value.strip()


@contextmanager
def listing() -> Iterator[None]:
    """Within, a list of models is asked for: whatever the server does, it is over after a few seconds. ETIMEDOUT."""
    try:
        with anyio.fail_after(LIST_SECONDS):
            yield
    except TimeoutError:
        raise error(errno.ETIMEDOUT, detail=f"no list of models within {LIST_SECONDS:g} s") from None


async def _refused(answer: httpx.Response, key: Mapping[str, str]) -> Unserved:
    try:
        words = _words(await whole(answer, key))
    except OSError:
        words = ""
    status = answer.status_code
    why = _WHY.get(status, "failed" if status >= 500 or status < 400 else "refused")
    return Unserved(why, f"status {status}: {cleaned(words, key)}")


def _words(body: bytes) -> str:
    """What the server says went wrong, from the usual places."""
    try:
        found = msgspec.json.decode(body)
    except _NOT_JSON:
        return body.decode(errors="replace")
    while isinstance(found, dict | list) and found:
        if isinstance(found, list):
            found = found[0]
        else:
            inner = next((found[n] for n in ("error", "errors", "message", "detail") if found.get(n)), None)
            if inner is None:
                break
            found = inner
    return found if isinstance(found, str) else msgspec.json.encode(found).decode()


def cleaned(text: str, key: Mapping[str, str]) -> str:
    """*text* on one line, without the key, and not too long."""
    for value in key.values():
        for secret in (value, value.removeprefix("Bearer ")):
            text = text.replace(secret, "[key]") if len(secret) >= _LEAST else text
    return " ".join(text.split())[:WORDS_MAX]


def lost(exc: httpx.HTTPError, key: Mapping[str, str]) -> OSError:
    """The connection broke, and nobody knows what was done."""
    return error(errno.EREMOTEIO, detail=f"cut off: {cleaned(str(exc) or type(exc).__name__, key)}")


async def whole(answer: httpx.Response, key: Mapping[str, str]) -> bytes:
    """All of an answer. EREMOTEIO when it is too large or cut off."""
    held = bytearray()
    try:
        async for piece in answer.aiter_bytes():
            held += piece
            if len(held) > WHOLE_MAX:
                raise error(errno.EREMOTEIO, detail=f"answer over {WHOLE_MAX} bytes")
    except httpx.HTTPError as exc:
        raise lost(exc, key) from None
    return bytes(held)


def count(value: Any) -> int:
    """*value* as a number of tokens: 0 for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def decoded(body: bytes) -> Any:
    """*body* as JSON. EREMOTEIO for garbage."""
    try:
        return msgspec.json.decode(body)
    except _NOT_JSON as exc:  # its words are cut where they are cleaned: half a key is a key's half
        raise error(
            errno.EREMOTEIO, detail=f"not JSON: {type(exc).__name__}: {body.decode(errors='replace')}"
        ) from None


@contextmanager
def formed() -> Iterator[None]:
    """Within, what comes in another form than a server of this kind gives is EREMOTEIO."""
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as exc:
        raise error(errno.EREMOTEIO, detail=f"answer of another form: {type(exc).__name__}") from exc


async def events(answer: httpx.Response) -> AsyncGenerator[tuple[str, bytes]]:
    """The events of a stream (WHATWG server-sent events) as name and data, as soon as each is whole."""
    held, name, data, found, taken = bytearray(), "", bytearray(), 0, 0
    async for piece in answer.aiter_bytes():
        held += piece
        taken += len(piece)
        if taken > WHOLE_MAX:  # what is no text counts too
            raise error(errno.EREMOTEIO, detail=f"stream over {WHOLE_MAX} bytes")
        while (end := held.find(b"\n", found)) >= 0:
            line = bytes(held[:end]).removesuffix(b"\r")
            del held[: end + 1]
            found = 0
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                data += (b"\n" if data else b"") + value
            elif field == b"event":
                name = value.decode(errors="replace")
            elif not line and data:
                yield name, bytes(data)
                name, data = "", bytearray()
        found = len(held)
        if found > LINE_MAX or len(data) > LINE_MAX:
            raise error(errno.EREMOTEIO, detail=f"a line of the stream is over {LINE_MAX} bytes")
    if data:
        yield name, bytes(data)
