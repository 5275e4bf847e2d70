"""Where one unit ends in the bytes written on a handle: JSON documents by their brackets, text by flush.

Pure byte logic: no I/O, no handle, no commit.
"""

from __future__ import annotations

import codecs
import errno
import re

import msgspec

from agentfs.errors import error

_OUTSIDE = re.compile(rb'["{}\[\]]')
_INSIDE = re.compile(rb'["\\]')
_BLANK = b" \t\r\n"


class Brackets:
    """Finds the end of a JSON object or array fed in pieces; linear in the bytes, keeps only depth and string state."""

    def __init__(self) -> None:
        self._depth, self._in_string, self._skip = 0, False, 0

    def feed(self, data: bytes, at: int = 0) -> int:
        """Scan *data* from *at*; the index behind the closing bracket, or -1 when it is not in *data*."""
        at, self._skip = at + self._skip, 0
        while hit := (_INSIDE if self._in_string else _OUTSIDE).search(data, at):
            at = hit.end()
            char = hit.group()
            if char == b"\\":
                if at >= len(data):
                    self._skip = 1
                at += 1
            elif char == b'"':
                self._in_string = not self._in_string
            else:
                self._depth += 1 if char in b"{[" else -1
                if self._depth <= 0:
                    return at
        return -1


def check_start(data: bytes) -> None:
    """EINVAL when *data* cannot be the beginning of a JSON document (``{bad``)."""
    try:
        msgspec.json.decode(data)
    except msgspec.DecodeError as exc:
        if "truncated" not in str(exc) and "trailing" not in str(exc):
            raise error(errno.EINVAL, detail=f"JSON: {exc}") from exc
    except UnicodeDecodeError as exc:
        raise error(errno.EILSEQ, detail=f"byte {exc.start}") from exc
    except RecursionError as exc:
        raise error(errno.EINVAL, detail="JSON: nested too deeply") from exc


def check_json(doc: bytes) -> None:
    """EINVAL when *doc* is not one JSON document, EILSEQ when it is not UTF-8."""
    try:
        doc.decode()
        msgspec.json.decode(doc)
    except UnicodeDecodeError as exc:
        raise error(errno.EILSEQ, detail=f"byte {exc.start}") from exc
    except (msgspec.DecodeError, RecursionError) as exc:
        raise error(errno.EINVAL, detail=f"JSON: {exc}") from exc


class Intake:
    """The bytes of one unit under way. ``is_json`` is None until the first non-blank byte tells.

    `take` consumes a piece up to the end of the unit that it completes; text never completes by itself.
    """

    def __init__(self, limit: int, *, accepts_json: bool = True) -> None:
        self._limit, self._accepts_json = limit, accepts_json
        self.reset()

    def reset(self) -> None:
        """Begin a new unit."""
        self.buffer = bytearray()
        self.is_json: bool | None = None
        self._brackets = Brackets()
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    @property
    def is_cut_off(self) -> bool:
        """Whether what is there cannot be a unit yet: JSON without its end, or text within a letter."""
        return bool(self.is_json) or bool(self._decoder.getstate()[0])

    def take(self, data: bytes) -> tuple[int, bool]:
        """Add bytes of *data*: how many were used, and whether they complete a JSON unit.

        EFBIG past the limit, EILSEQ for what is not UTF-8, EINVAL for an impossible start; then nothing was added.
        """
        if self.is_json is None:
            lead = len(data) - len(data.lstrip(_BLANK))
            if lead == len(data):
                self._grow(data)
                return len(data), False
            self.is_json = self._accepts_json and data[lead : lead + 1] in b"{["
            if self.is_json:
                self.buffer.clear()
                return self._take_json(data, lead)
        return self._take_json(data, 0) if self.is_json else self._take_text(data)

    def _take_json(self, data: bytes, begin: int) -> tuple[int, bool]:
        first = not self.buffer
        end = self._brackets.feed(data, begin)
        piece = data[begin : end if end >= 0 else len(data)]
        try:
            self._grow(piece)
            if first and end < 0:
                check_start(piece)
        except OSError:
            self.reset()
            raise
        return (end, True) if end >= 0 else (len(data), False)

    def _take_text(self, data: bytes) -> tuple[int, bool]:
        if len(self.buffer) + len(data) > self._limit:
            self._grow(data)
        state = self._decoder.getstate()
        try:
            self._decoder.decode(data)
        except UnicodeDecodeError as exc:
            self._decoder.setstate(state)
            if not self.buffer.strip():
                self.reset()
            raise error(errno.EILSEQ, detail=f"byte {exc.start}") from exc
        self._grow(data)
        return len(data), False

    def _grow(self, data: bytes) -> None:
        if len(self.buffer) + len(data) > self._limit:
            raise error(errno.EFBIG, detail=f"document over {self._limit} bytes")
        self.buffer += data

    def finish(self) -> bytes:
        """The unit as it stands, and a new one begun. EINVAL for JSON cut off, EILSEQ for UTF-8 cut off."""
        doc, is_json = bytes(self.buffer), self.is_json
        try:
            if is_json:
                check_json(doc)
            else:
                doc.decode()
        except UnicodeDecodeError as exc:
            raise error(errno.EILSEQ, detail=f"byte {exc.start}") from exc
        finally:
            self.reset()
        return doc
