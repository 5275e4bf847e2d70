"""TOML text with the line of every key in it, so that an error can point at where it is.

It knows nothing of what the keys mean.
"""

from __future__ import annotations

import errno
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from agentfs.errors import error

SIZE_MAX: Final = 256 << 10
Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed document: ``values`` as tables within tables, ``lines`` the first line (from 1) that names each key."""

    name: str
    values: dict[str, Any]
    lines: dict[Key, int]

    def where(self, key: Key) -> str:
        """``file:line`` of *key*, or of the nearest table above it that has a line."""
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.name}:{self.lines[key]}" if key else self.name


def parse(raw: bytes, name: str) -> Document:
    """*raw* as a `Document`; *name* is what errors call it. EFBIG, EILSEQ, or EINVAL naming line and column."""
    if len(raw) > SIZE_MAX:
        raise error(errno.EFBIG, name, f"over {SIZE_MAX} bytes")
    try:
        text = raw.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as exc:
        raise error(errno.EILSEQ, name, f"byte {exc.start}") from exc
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise error(errno.EINVAL, name, str(exc)) from exc
    lines: dict[Key, int] = {}
    for line, key in _keys(text):
        lines.setdefault(key, line)
    return Document(name, values, lines)


def _keys(text: str) -> Iterator[tuple[int, Key]]:
    table: Key = ()
    for line, statement, values in _statements(text):
        if statement.lstrip().startswith("["):
            table = _only(values)
            yield from ((line, table[:depth]) for depth in range(1, len(table) + 1))
        else:
            yield from ((line, table + key) for key in _walk(values))


def _statements(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Every statement of a valid *text* with its first line: the fewest whole lines that parse on their own."""
    start, held = 1, ""
    for number, line in enumerate(text.split("\n"), 1):
        if not held:
            start = number
        held += line + "\n"
        try:
            values = tomllib.loads(held)
        except tomllib.TOMLDecodeError:
            continue
        yield start, held, values
        held = ""


def _only(values: dict[str, Any]) -> Key:
    """The key a table header names: the one path through what it parses to."""
    key: Key = ()
    node: Any = values
    while node:
        name, node = next(iter(node.items()))
        key += (name,)
        node = node[0] if isinstance(node, list) else node
    return key


def _walk(values: dict[str, Any]) -> Iterator[Key]:
    for name, value in values.items():
        yield (name,)
        if isinstance(value, dict):
            yield from ((name, *rest) for rest in _walk(value))
