"""How this command prints: tables for people, one envelope for scripts, failures as one line.

It speaks to nothing but standard output and standard error.
"""

from __future__ import annotations

import enum
import errno
import sys
from collections.abc import Iterable, Mapping
from typing import NoReturn

import msgspec
import typer


class Format(enum.StrEnum):
    """What ``--output`` takes; as ``agentctl`` has it."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


def say(text: str) -> None:
    """One line on what was done."""
    typer.echo(text)


def note(text: str) -> None:
    """One line on standard error."""
    typer.echo(f"agentfs: {text}", err=True)


def fail(exc: OSError, code: int = 1) -> NoReturn:
    """End with *exc* as ``agentfs: ERRNO: path: detail`` and exit code *code*."""
    name = errno.errorcode.get(exc.errno or errno.EIO, "EIO")
    note(": ".join(part for part in (name, str(exc.filename or ""), exc.strerror or str(exc)) if part))
    raise typer.Exit(code) from exc


def rows(items: Iterable[Mapping[str, object]], form: Format | None) -> None:
    """*items*, which all have the same keys: columns, the envelope ``{"data", "error"}``, or an object a line."""
    listed = list(items)
    chosen = form or (Format.TABLE if sys.stdout.isatty() else Format.JSON)
    if chosen is Format.JSON:
        typer.echo(msgspec.json.encode({"data": listed, "error": None}))
    elif chosen is Format.JSONL:
        for item in listed:
            typer.echo(msgspec.json.encode(item))
    elif listed:
        _table([[key.upper() for key in listed[0]], *([_cell(v) for v in item.values()] for item in listed)])


def fields(item: Mapping[str, object], form: Format | None) -> None:
    """One object: its fields a line each, or as JSON."""
    chosen = form or (Format.TABLE if sys.stdout.isatty() else Format.JSON)
    if chosen is Format.TABLE:
        _table([[key, _cell(value)] for key, value in item.items()])
    else:
        typer.echo(msgspec.json.encode(item if chosen is Format.JSONL else {"data": item, "error": None}))


def _table(lines: list[list[str]]) -> None:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        typer.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
