"""THE error table: one row per errno with its HTTP status and its fixed text.

Services raise `OSError` made by `error`; faces translate with `row_of`, clients back with `from_wire`. No other module
maps errors.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass
from typing import Final

import msgspec


@dataclass(frozen=True, slots=True)
class Row:
    """One failure as every face reports it: errno on a mount, status and symbolic name over HTTP."""

    errno: int
    status: int
    text: str

    @property
    def name(self) -> str:
        """The symbolic errno, e.g. ``ENOENT``: the identity that travels over HTTP."""
        return "EOPNOTSUPP" if self.errno == errno.EOPNOTSUPP else errno.errorcode[self.errno]  # Linux: ENOTSUP too


ROWS: Final = (
    Row(errno.ENOENT, 404, "file does not exist"),
    Row(errno.ENODATA, 404, "no data"),
    Row(errno.EINVAL, 400, "invalid argument"),
    Row(errno.EILSEQ, 400, "not valid UTF-8"),
    Row(errno.EACCES, 403, "permission denied"),
    Row(errno.EROFS, 403, "read-only namespace"),
    Row(errno.EPERM, 403, "operation not permitted"),
    Row(errno.EEXIST, 409, "already exists"),
    Row(errno.ENOTDIR, 409, "not a directory"),
    Row(errno.EISDIR, 409, "is a directory"),
    Row(errno.ENOTEMPTY, 409, "directory not empty"),
    Row(errno.EXDEV, 409, "not within one service"),
    Row(errno.ELOOP, 409, "too many hops"),
    Row(errno.ENAMETOOLONG, 414, "name too long"),
    Row(errno.EBUSY, 423, "in use"),
    Row(errno.ESTALE, 412, "version does not match"),
    Row(errno.EBADF, 410, "handle is closed"),
    Row(errno.EFBIG, 413, "too large"),
    Row(errno.EDQUOT, 402, "budget exhausted"),
    Row(errno.ENOSPC, 507, "storage limit reached"),
    Row(errno.EMFILE, 429, "too many open handles"),
    Row(errno.ENOBUFS, 429, "rate or size limit met"),
    Row(errno.EAGAIN, 429, "not ready, try again"),
    Row(errno.EOPNOTSUPP, 405, "this file cannot do that"),
    Row(errno.ETIMEDOUT, 504, "timed out"),
    Row(errno.EREMOTEIO, 502, "provider failed"),
    Row(errno.ECANCELED, 499, "cancelled"),
    Row(errno.ENOTCONN, 503, "runtime is stopping"),
    Row(errno.EINTR, 503, "interrupted"),
    Row(errno.EIO, 500, "internal error"),
)
BY_ERRNO: Final = {row.errno: row for row in ROWS}
BY_NAME: Final = {row.name: row for row in ROWS}
BY_STATUS: Final = {row.status: row.errno for row in reversed(ROWS)} | {
    401: errno.EACCES, 416: errno.EINVAL, 421: errno.EACCES, 500: errno.EIO, 503: errno.ENOTCONN,
}  # fmt: skip


def error(code: int, path: str = "", detail: str = "") -> OSError:
    """An `OSError` for *code* naming *path*; *detail* says which field and why.

    Python picks the subclass (`FileNotFoundError`, ...). The detail never holds a secret.
    """
    text = BY_ERRNO[code].text
    return OSError(code, f"{text}: {detail}" if detail else text, path or None)


def row_of(exc: BaseException) -> Row:
    """The row of any exception; whatever is not in the table is EIO."""
    code = exc.errno if isinstance(exc, OSError) else None
    return BY_ERRNO.get(code or errno.EIO, BY_ERRNO[errno.EIO])


def detail_of(exc: BaseException) -> str:
    """What a caller may be told of *exc*: its text, or the row's own text for what is not in the table."""
    if isinstance(exc, OSError) and exc.errno in BY_ERRNO and exc.errno != errno.EIO:
        return exc.strerror or BY_ERRNO[exc.errno].text
    return BY_ERRNO[errno.EIO].text


class _Body(msgspec.Struct):
    """An error as it travels over HTTP."""

    errno: str
    path: str = ""
    detail: str = ""


def told(body: bytes) -> OSError | None:
    """The error that the body of an answer names, as the service raised it; None when it names none."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        doc = msgspec.json.decode(body, type=_Body)
        # One number may have two names (EOPNOTSUPP is ENOTSUP on Linux): either is understood.
        number = getattr(errno, doc.errno, None) if doc.errno.startswith("E") else None
        row = BY_NAME.get(doc.errno) or (BY_ERRNO.get(number) if isinstance(number, int) else None)
        if row is not None:
            return error(
                row.errno, doc.path, "" if doc.detail == row.text else doc.detail.removeprefix(f"{row.text}: ")
            )
    return None


def from_wire(status: int, body: bytes, path: str) -> OSError:
    """The error that a refused request for *path* stands for: what its *body* names, else the first of its *status*."""
    code = BY_STATUS.get(status, errno.EIO)
    detail = f"HTTP {status} without an error body: is this an agentfs runtime?"
    return told(body) or error(code, path, detail)


def only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first real error in *group*: what a caller who knows nothing of task groups should see."""
    first = group.exceptions[0]
    return only(first) if isinstance(first, BaseExceptionGroup) else first
