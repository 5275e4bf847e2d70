"""Responses and their headers: files, listings, errors. No file is opened here."""

from __future__ import annotations

import errno
import stat as _stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response

from agentfs.errors import BY_ERRNO, Row, detail_of, row_of
from agentfs.faces.http.paths import etag
from agentfs.types import Kind, Path, Stat, rfc3339

_TEXT = "text/plain; charset=utf-8"
WANTED = {
    False: "want Authorization: Bearer TOKEN",
    True: "want a certificate of the operator or an agent, and no token of another principal",
}
"""What is said to nobody known, by whether clients need a certificate."""


def json(value: Any, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    """*value* as a JSON body."""
    return Response(msgspec.json.encode(value) + b"\n", status, headers, "application/json")


def failure(exc: BaseException, path: str) -> Response:
    """The answer for *exc*: the table's status, its symbolic errno, *path* as asked for, and what may be told."""
    return refusal(row_of(exc), path, detail_of(exc))


def refusal(row: Row, path: str, detail: str, status: int | None = None) -> Response:
    """An error body; *status* where HTTP has one of its own (401, 416, 421)."""
    code = status or row.status
    headers = {"Retry-After": "1"} if code in (429, 503) else {}
    if code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json({"errno": row.name, "path": path, "detail": detail}, headers, code)


def about(st: Stat) -> dict[str, str]:
    """The headers that say what a file is."""
    headers = {"X-Agentfs-Kind": st.kind.value, "ETag": etag(st.qid.version)}
    if st.kind is Kind.STREAM:
        headers["Cache-Control"] = "no-store"
    return headers


def media_type(kind: Kind, body: bytes) -> str:
    """JSON where the text is, plain text where it is UTF-8, else bytes."""
    if kind is Kind.DATA:
        return "application/octet-stream"
    if kind in (Kind.FILE, Kind.CALL, Kind.QUEUE) and body.lstrip()[:1] in (b"{", b"["):
        return "application/json"
    try:
        body.decode()
    except UnicodeDecodeError:
        return "application/octet-stream"
    return _TEXT


@dataclass(frozen=True, slots=True)
class Part:
    """What is sent of a file: its bytes from ``begin`` up to ``end``."""

    status: int
    headers: dict[str, str]
    begin: int
    end: int


def content(path: Path, st: Stat, body: bytes, asked: Mapping[str, str], *, is_head: bool) -> Response:
    """A file's bytes; see `part_of`."""
    part = part_of(path, st, len(body), media_type(st.kind, body), asked, is_head=is_head)
    if isinstance(part, Response):
        return part
    return Response(b"" if is_head else body[part.begin : part.end], part.status, part.headers)


def part_of(path: Path, st: Stat, size: int, media: str, asked: Mapping[str, str], *, is_head: bool) -> Part | Response:
    """What of *size* bytes is wanted: 200, 206 for one Range, 304 when If-None-Match names this version, 416.

    *asked* are the request's headers. A Range is of the version that If-Range names, and for GET alone.
    """
    tag, status, begin, end = etag(st.qid.version), 200, 0, size
    headers = {**about(st), "Accept-Ranges": "bytes"}
    if st.qid.version and tag in asked.get("if-none-match", ""):
        return Response(b"", 304, headers)
    headers["Content-Type"] = media
    is_ranged = "range" in asked and not is_head and asked.get("if-range", tag) == tag
    if is_ranged and (span := _span(asked["range"], size)) is not None:
        first, last = span
        if first > last:
            refused = refusal(BY_ERRNO[errno.EINVAL], path, f"Range: the file has {size} bytes", 416)
            refused.headers["Content-Range"] = f"bytes */{size}"
            return refused
        headers["Content-Range"], status = f"bytes {first}-{last}/{size}", 206
        begin, end = first, last + 1
    headers["Content-Length"] = str(end - begin)
    return Part(status, headers, begin, end)


def _span(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte of ``bytes=a-b``; None for what may be ignored (RFC 9110); first > last: not to be had."""
    unit, _, text = header.partition("=")
    first, dash, last = text.strip().partition("-")
    is_number = all(part.isdecimal() or not part for part in (first, last)) and len(text) < 40
    if unit.strip() != "bytes" or not dash or not is_number or not (first or last):
        return None
    if not first:
        return (max(size - int(last), 0), size - 1) if int(last) else (1, 0)
    begin = int(first)
    if last and int(last) < begin:
        return None
    end = min(int(last), size - 1) if last else size - 1
    return (begin, end) if begin < size else (1, 0)


def entry(st: Stat, name: str) -> dict[str, Any]:
    """One line of a listing."""
    return {
        "name": name, "kind": st.kind.value, "mode": f"{_stat.S_IMODE(st.mode):04o}", "size": st.size,
        "mtime": rfc3339(st.mtime_ns) if st.mtime_ns else "", "version": st.qid.version,
    }  # fmt: skip


def listing(path: Path, found: Sequence[tuple[str, Stat]], cursor: str | None) -> Response:
    """A page of a directory; *cursor* asks for the next."""
    entries = [entry(st, name) for name, st in found]
    return json({"path": path, "entries": entries, "cursor": cursor}, {"X-Agentfs-Kind": "dir"})
