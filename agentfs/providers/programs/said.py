"""`Said`: what an exec program prints: effects, one a line, on stdout, and words for the log on stderr.

It starts nothing: whoever runs the program hands it the bytes.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

import msgspec

from agentfs.engine.context import AgentContext
from agentfs.engine.effects import decode_line
from agentfs.errors import error

_STDERR_LINE = 4096
_STDERR_LINES = 1000
_STDERR_HELD = 1 << 20


class Said:
    """What one run says; *hidden* are the values of secrets that are repeated nowhere, *most* bytes may be effects."""

    def __init__(self, ctx: AgentContext, hidden: list[str], most: int) -> None:
        self._ctx, self._hidden, self._most = ctx, hidden, most
        self._out, self._err = b"", b""
        self._size, self._count = 0, 0
        self.last_words = ""

    def out(self, piece: bytes) -> None:
        """More of stdout. EFBIG past the limit, EINVAL for a line that is no effect, and what the effect says."""
        self._size += len(piece)
        if self._size > self._most:
            raise error(errno.EFBIG, detail=f"program printed more than {self._most} bytes")
        *lines, self._out = (self._out + piece).split(b"\n")
        for line in lines:
            self._take(line)

    def err(self, piece: bytes) -> None:
        """More of stderr."""
        *lines, self._err = (self._err + piece)[-_STDERR_HELD:].split(b"\n")
        for line in lines:
            self._say(line)

    def end(self, *, is_whole: bool = True) -> None:
        """All has come: also what ends without a newline counts, of effects when *is_whole*. Errors as `out`."""
        self._say(self._err)
        if is_whole:
            self._take(self._out)

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            effect = decode_line(line)
        except OSError as exc:
            raise OSError(exc.errno, self._clean(exc.strerror or "")) from None
        self._ctx.take(effect)

    def _say(self, line: bytes) -> None:
        self._count += 1
        text = self._clean(line.decode(errors="replace"))[:_STDERR_LINE].strip()
        if text and self._count <= _STDERR_LINES:
            self.last_words = text[-500:]
            self._ctx.note("log", text=text)

    def _clean(self, text: str) -> str:
        """*text* without the values of secrets."""
        for value in self._hidden:
            text = text.replace(value, "[secret]")
        return text


def stdin_of(ctx: AgentContext) -> bytes:
    """What the program reads."""
    return msgspec.json.encode(ctx.trigger) + b"\n"


async def environment(ctx: AgentContext, env: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """*env* with its secrets, and what of that is secret. ENOENT."""
    given = {name: await ctx.secret(value) for name, value in env.items()}
    return given, [value for name, value in given.items() if value != env[name]]
