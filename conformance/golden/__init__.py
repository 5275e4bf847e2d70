"""Transcripts of what a service answers, replayed on every driver: the protocol in a form that a person can read.

A line ``> open PATH r|w|rw``, ``> create PATH``, ``> write TEXT``, ``> read SIZE``, ``> flush``, ``> close``,
``> remove PATH`` or ``> rename OLD NEW`` does one operation; ``< count N``, ``< text TEXT`` or ``< ERRNO`` behind it is
its answer, no answer line means that it succeeds. ``\\n`` in TEXT is a newline; ``#`` begins a comment.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path as FsPath

from agentfs.service import FileHandle, FileService
from agentfs.types import Mode, Path

_MODES = {"r": Mode.READ, "w": Mode.WRITE, "rw": Mode.READ | Mode.WRITE}
TRANSCRIPTS = tuple(sorted(FsPath(__file__).parent.glob("*.txt")))


def needs(text: str) -> frozenset[str]:
    """The words of `conformance.drivers.EXPRESSES` that a transcript needs, from its lines ``# needs WORD``."""
    return frozenset(line.removeprefix("# needs ") for line in text.splitlines() if line.startswith("# needs "))


def steps(text: str) -> Iterator[tuple[str, str]]:
    """Each operation with the answer it must have ("" for success of any kind)."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    for i, line in enumerate(lines):
        if line.startswith("> "):
            after = lines[i + 1] if i + 1 < len(lines) else ""
            yield line[2:], after[2:] if after.startswith("<") else ""


class Player:
    """Replays a transcript on one service, one handle at a time."""

    def __init__(self, service: FileService) -> None:
        self._service = service
        self._handle: FileHandle | None = None

    async def play(self, text: str) -> Sequence[str]:
        """Every operation whose answer is not the one written down."""
        wrong = []
        for operation, expected in steps(text):
            found = await self._do(operation)
            if found != expected and not (expected == "" and not found.startswith("E")):
                wrong.append(f"{operation}: {found or 'done'} instead of {expected or 'success'}")
        await self._close()
        return wrong

    async def _do(self, operation: str) -> str:
        verb, _, rest = operation.partition(" ")
        try:
            return await self._run(verb, rest.replace("\\n", "\n"))
        except OSError as exc:
            return "EOPNOTSUPP" if exc.errno == errno.EOPNOTSUPP else errno.errorcode[exc.errno or errno.EIO]

    async def _run(self, verb: str, rest: str) -> str:
        words = rest.split()
        match verb:
            case "open":
                await self._close()
                self._handle = await self._service.open(Path(words[0]), _MODES[words[1]])
            case "create":
                await self._close()
                self._handle = await self._service.create(Path(words[0]), Mode.WRITE)
            case "remove":
                await self._service.remove(Path(words[0]))
            case "rename":
                await self._service.rename(Path(words[0]), Path(words[1]))
            case "close":
                await self._close()
            case _:
                return await self._transfer(verb, rest)
        return ""

    async def _transfer(self, verb: str, rest: str) -> str:
        assert self._handle is not None, f"{verb}: no file is open"
        if verb == "write":
            return f"count {await self._handle.write(rest.encode(), 0)}"
        if verb == "read":
            return f"text {(await self._handle.read(int(rest), 0)).decode()}".rstrip()
        assert verb == "flush", verb
        await self._handle.flush(final=True)
        return ""

    async def _close(self) -> None:
        if self._handle is not None:
            await self._handle.flush(final=True)
            await self._handle.aclose()
            self._handle = None
