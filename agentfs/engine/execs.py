"""`Outcome` and `Runner`: one command in a sandbox: what comes out goes into a log as it comes, how it ended is told.

It keeps no row and knows no money: sessions and their execs do.
"""

from __future__ import annotations

import base64
import errno
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from agentfs.containers.port import Command, ContainerProvider, Exit, Spec
from agentfs.engine.core import Core
from agentfs.engine.scribe import Page, Scribe
from agentfs.errors import error
from agentfs.ports import Append

_AHEAD_BYTES: Final = 256 << 10  # what may wait to be stored before the command is held back
_RECORD_BYTES: Final = 64 << 10
KEPT_BYTES: Final = 128 << 10  # of each of stdout and stderr in a result


@dataclass(slots=True)
class _Stream:
    """What came out of one of the two: the beginning is kept, and the bytes of a character that is not whole yet."""

    name: str
    most: int
    data: bytearray = field(default_factory=bytearray)
    size: int = 0
    rest: bytes = b""

    def add(self, data: bytes) -> bytes:
        """Take *data*; what of it can be told now, without the beginning of a character at its end."""
        self.size += len(data)
        self.data += data[: max(0, self.most - len(self.data))]
        whole = self.rest + data
        cut = len(whole) - _unfinished(whole)
        self.rest = whole[cut:]
        return whole[:cut]

    def end(self) -> bytes:
        """What waited."""
        rest, self.rest = self.rest, b""
        return rest

    def shown(self) -> str:
        """The beginning as text; what is no UTF-8 is replaced here, and whole in the output."""
        return self.data.decode(errors="replace")


def _unfinished(data: bytes) -> int:
    """How many bytes at the end begin a character that goes on in what follows: 0 to 3."""
    for count in range(1, min(3, len(data)) + 1):
        byte = data[-count]
        if byte >= 0xC0:
            return count if count < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else 0
        if byte < 0x80:
            return 0
    return 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended; ``code`` None: it did not, it was cut off."""

    code: int | None
    cause: str
    stdout: str
    stderr: str
    is_whole: bool
    duration_ms: int
    used: Mapping[str, int | None]

    def shown(self, command: Any) -> dict[str, object]:
        """One of ``command_results``, and the result of an exec."""
        return {
            "command": command, "exit_code": self.code, "stdout": self.stdout, "stderr": self.stderr,
            "truncated": not self.is_whole, "duration_ms": self.duration_ms, "limit": self.cause or None,
            "usage": dict(self.used),
        }  # fmt: skip


class Runner:
    """Runs commands in the sandbox of *spec* at *provider*; what comes out goes into *log* of the agent's.

    *kept_bytes* of each of stdout and stderr are told in the outcome.
    """

    def __init__(
        self, core: Core, scribe: Scribe, provider: ContainerProvider, spec: Spec, log: str,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:  # fmt: skip
        self._core, self._scribe, self._provider, self._spec, self._log = core, scribe, provider, spec, log
        self._kept_bytes = kept_bytes

    async def run(self, command: Command) -> Outcome:
        """Run it to its end, or until this is cancelled: then everything it began is ended. Raises as the port does."""
        streams, page = {name: _Stream(name, self._kept_bytes) for name in ("stdout", "stderr")}, Page(self._spec.agent)
        teller, ended = _Teller(self._scribe, page, self._log), None
        begun_ns = self._core.clock.monotonic_ns()
        with page.scope:
            async with aclosing(self._provider.run(self._spec, command)) as happenings:
                async for happening in happenings:
                    if isinstance(happening, Exit):
                        ended = happening
                        break
                    teller.tell(happening.stream, streams[happening.stream].add(happening.data))
                    if page.weight > _AHEAD_BYTES:
                        await page.stored()
            for stream in streams.values():
                teller.tell(stream.name, stream.end())
        await page.stored()
        if page.failure is not None:
            raise page.failure
        if ended is None:
            raise error(errno.EREMOTEIO, detail="the sandbox did not tell how the command ended")
        return Outcome(
            ended.code, ended.cause, streams["stdout"].shown(), streams["stderr"].shown(),
            all(stream.size <= stream.most for stream in streams.values()),
            (self._core.clock.monotonic_ns() - begun_ns) // 1_000_000, msgspec.to_builtins(ended.used),
        )  # fmt: skip


@dataclass(slots=True)
class _Teller:
    """Puts what comes out on *page*; small pieces that come while the page waits become one record."""

    scribe: Scribe
    page: Page
    log: str
    name: str = ""
    data: bytes = b""
    told: Append | None = None

    def tell(self, name: str, data: bytes) -> None:
        """Take a piece of the stream *name*. Raises what became of earlier ones."""
        if not data:
            return
        waiting = self.page.waiting
        is_more = bool(waiting) and waiting[-1] is self.told and name == self.name
        if is_more and len(self.data) + len(data) <= _RECORD_BYTES:
            self.data += data
            self.told = waiting[-1] = Append(self.page.agent, self.log, _record(name, self.data))
            return
        self.name, self.data = name, data
        self.told = Append(self.page.agent, self.log, _record(name, data))
        self.scribe.write(self.page, self.told)


def _record(name: str, data: bytes) -> bytes:
    """A record of an output: its bytes as ``data``, or where they are no UTF-8 as ``base64``."""
    try:
        return msgspec.json.encode({"stream": name, "data": data.decode()})
    except UnicodeDecodeError:
        return msgspec.json.encode({"stream": name, "base64": base64.b64encode(data).decode()})


def last(exit_code: int | None, reason: str, **about: str) -> bytes:
    """The last record of an output."""
    why = {**about, "error": reason} if reason else about
    return msgspec.json.encode({"stream": "stdout", "data": "", "done": True, "exit_code": exit_code, **why})
