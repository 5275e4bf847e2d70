"""How answers and errors are shown: tables for people, one envelope for scripts, exact bytes where asked for.

The envelope of ``json`` is ``{"data": ..., "error": null}``; nothing here speaks to a runtime.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import io
import itertools
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

import msgspec

from agentctl.sse import lines
from agentfs.errors import error

WIDTH_MAX: Final = 100_000


class Format(enum.StrEnum):
    """What ``--output`` takes."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


EXIT: Final = {
    3: ("absent", ("ENOENT", "ENODATA")),
    4: ("refused", ("EACCES", "EPERM", "EROFS")),
    5: ("conflict", ("EEXIST", "ESTALE", "EBUSY", "ENOTDIR", "EISDIR", "ENOTEMPTY", "EXDEV", "ELOOP", "EBADF")),
    6: ("invalid", ("EINVAL", "EILSEQ", "EFBIG", "ENAMETOOLONG", "EOPNOTSUPP")),
    7: ("full", ("EAGAIN", "ENOBUFS", "EMFILE", "EDQUOT", "ENOSPC")),
    8: ("runtime unreachable", ("ENOTCONN",)),
    9: ("too slow, or a provider failed", ("ETIMEDOUT", "EREMOTEIO")),
}
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141
STDOUT: Final = "standard output"
_NAMES: Final = dict(errno.errorcode) | {getattr(errno, name): name for _, names in EXIT.values() for name in names}
_CODES: Final = {getattr(errno, name): code for code, (_, names) in EXIT.items() for name in names}


def exit_code(exc: OSError) -> int:
    """The exit code of *exc*; 1 for what has none of its own."""
    return _CODES.get(exc.errno or 0, 1)


def interrupted(exc: KeyboardInterrupt) -> int:
    """The exit code where *exc*, with the number of a signal, or Ctrl-C without one, ended a command."""
    return 128 + exc.args[0] if exc.args else INTERRUPTED


def legend() -> str:
    """The exit codes as ``--help`` documents them."""
    rows = "; ".join(f"{code} {text} ({' '.join(names)})" for code, (text, names) in EXIT.items())
    ends = "130 interrupted (a session also: 129 SIGHUP, 143 SIGTERM); 141 the reader went away"
    return f"Exit codes: 0 done; 1 other failure; 2 usage; {rows}; {ends}."


def failure(exc: OSError, form: Format | None) -> str:
    """*exc* as one line: ``agentctl: ENOENT: path: text``, or as an envelope when a JSON form was asked for."""
    name = _NAMES.get(exc.errno or errno.EIO, "EIO")
    path, detail = str(exc.filename or ""), exc.strerror or str(exc)
    if form in (Format.JSON, Format.JSONL):
        fields = {"errno": name, "path": path, "detail": detail}
        return _dump({"data": None, "error": {k: v.encode(errors="replace").decode() for k, v in fields.items()}})
    return ": ".join(printable(part) for part in ("agentctl", name, path, detail) if part)


def printable(text: str) -> str:
    """*text* with everything escaped that could steer a terminal or begin a new line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def parse(raw: bytes) -> object:
    """A file's content as a JSON value: its document, the list of its lines' documents, its text, or ``{"base64"}``."""
    bad = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
    with contextlib.suppress(*bad):
        return msgspec.json.decode(raw)
    with contextlib.suppress(*bad):
        return [msgspec.json.decode(line) for line in raw.splitlines()] if b"\n" in raw.rstrip() else raw.decode()
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"base64": raw}  # msgspec writes bytes as base64


def silence() -> None:
    """Point standard output at nothing, so that the interpreter's last flush cannot fail again."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


@dataclass(slots=True)
class Output:
    """Standard output in the form asked for; *form* None: a table on a terminal, JSON (or exact bytes) otherwise."""

    form: Format | None = None

    def raw(self, data: bytes) -> None:
        """Exactly *data*, at once. ENOSPC and the like name the standard output."""
        out = self._stream()
        try:
            out.write(data)
            out.flush()
        except BrokenPipeError:
            raise
        except OSError as exc:
            silence()
            raise OSError(exc.errno, exc.strerror, STDOUT) from exc

    def value(self, data: object) -> None:
        """One document: a table of its fields, the envelope, or its items a line each."""
        form = self._structured()
        if form is Format.JSON:
            self._line(_dump({"data": data, "error": None}))
        elif form is Format.JSONL:
            for item in data if isinstance(data, list) else [data]:
                self._line(_dump(item))
        elif isinstance(data, dict):
            self._table((), ([key, cell(value)] for key, value in data.items()))
        else:
            self._line(printable(cell(data)))

    def rows(self, items: Iterable[Mapping[str, object]], columns: Sequence[str], *, header: bool = True) -> None:
        """A list of objects; a table shows only *columns*, JSON all."""
        form = self._structured()
        if form is Format.JSONL:
            for item in items:
                self._line(_dump(item))
        elif form is Format.JSON:
            self._line(_dump({"data": list(items), "error": None}))
        else:
            shown = ([cell(item.get(column)) for column in columns] for item in items)
            self._table([column.upper() for column in columns] if header else (), shown)

    def content(self, raw: bytes) -> None:
        """A file's content: exact unless a JSON form was asked for."""
        if self.is_json:
            self.value(parse(raw))
        else:
            self.raw(raw)

    def record(self, cursor: str, line: bytes) -> None:
        """One record of a stream: readable on a terminal, else its exact line; with ``json`` also its cursor."""
        if self.form is Format.JSON:
            self._line(_dump({"data": {"cursor": cursor, "record": parse(line)}, "error": None}))
        elif self.form is Format.TABLE or (self.form is None and self._is_terminal()):
            self._line(_event(line))
        else:
            item = line if self.form is None or not isinstance(parse(line), str) else _dump(line.decode()).encode()
            self.raw(item + b"\n")

    def records(self, chunks: Iterable[bytes], limit: int = 0) -> None:
        """The first *limit* records (0: all) of a log that is read to its end; ``json``: one list."""
        found = (line for line in lines(chunks) if line)
        kept = itertools.islice(found, limit or None)
        if self.form is Format.JSON:
            self.value([parse(line) for line in kept])
        else:
            for line in kept:
                self.record("", line)

    def done(self, answer: bytes = b"") -> None:
        """A change was made: quiet unless there is an answer, or JSON was asked for."""
        if self.is_json:
            self.value(parse(answer) if answer else None)
        else:
            self.raw(answer)

    @property
    def is_json(self) -> bool:
        """True when a JSON form was asked for by name."""
        return self.form in (Format.JSON, Format.JSONL)

    def _structured(self) -> Format:
        return self.form or (Format.TABLE if self._is_terminal() else Format.JSON)

    def _table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        from rich.console import Console  # here: only a table waits for it
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=bool(header), header_style="", pad_edge=False, padding=(0, 2, 0, 0))
        lines = [[Text(printable(value)) for value in row] for row in rows]
        for title in header or (lines[0] if lines else ()):
            table.add_column(title if header else "", overflow="fold")
        for line in lines:
            table.add_row(*line)
        width = shutil.get_terminal_size().columns if self._is_terminal() else WIDTH_MAX
        screen = Console(file=io.StringIO(), width=max(width, 40), color_system=None, markup=False, highlight=False)
        if header or lines:
            with screen.capture() as shown:
                screen.print(table)
            self.raw("".join(line.rstrip() + "\n" for line in shown.get().splitlines()).encode())

    def _line(self, text: str) -> None:
        self.raw(text.encode(errors="replace") + b"\n")

    def _is_terminal(self) -> bool:
        return sys.stdout is not None and sys.stdout.isatty()

    def _stream(self) -> BinaryIO:
        if sys.stdout is None:
            raise error(errno.EBADF, STDOUT)
        return sys.stdout.buffer


def cell(value: object) -> str:
    """*value* as a table shows it: text as it is, nothing as ``-``, the rest as compact JSON."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else _dump(value)


def _event(line: bytes) -> str:
    record = parse(line)
    if not isinstance(record, dict):
        return printable(line.decode(errors="replace"))
    head = [cell(record.pop(key)) for key in ("ts", "type") if key in record]
    return printable(" ".join([*head, *(f"{key}={cell(value)}" for key, value in record.items())]))


def _dump(value: object) -> str:
    return msgspec.json.encode(value).decode()
