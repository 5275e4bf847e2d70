"""`Execute`: runs any executable as a program: the trigger as JSON on stdin, effects as JSON lines on stdout.

Exit 0 commits the effects, anything else rolls them back; stderr goes to the log. Killed, with all it started in its
session, when its tick is cancelled.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import anyio
import msgspec
from anyio.abc import ByteReceiveStream, Process

from agentfs.engine.context import AgentContext
from agentfs.engine.effects import decode_line
from agentfs.engine.settings import ExecProgram
from agentfs.errors import error, only

log = logging.getLogger(__name__)
_STDERR_LINE = 4096
_STDERR_LINES = 1000
_LINGER_S = 1.0


class Execute:
    """One agent's executable; *environment* is all it gets besides the program's own ``env``."""

    def __init__(self, program: ExecProgram, environment: Mapping[str, str], workdir: Path, output_bytes: int) -> None:
        self._program, self._environment, self._workdir = program, dict(environment), workdir
        self._output_bytes = output_bytes
        self._last_words = ""
        self._hidden: list[str] = []  # values of secrets this run was given: not to be repeated in any log

    @property
    def hooks(self) -> frozenset[str]:
        """None: an executable only sees triggers."""
        return frozenset()

    async def hook(self, name: str, ctx: AgentContext, error_text: str = "") -> None:
        """Never called: there are no hooks."""

    async def run(self, ctx: AgentContext) -> None:
        """Run it once. EREMOTEIO with its last words for a bad exit, EINVAL for a line that is no effect."""
        self._workdir.mkdir(parents=True, exist_ok=True, mode=0o700)
        # env(1) changes directory and searches PATH in a process of its own: nothing that may lie on a mount of ours
        # is touched between fork and exec, while this process could not answer
        argv = ["/usr/bin/env", "-C", str(self._workdir), "--", *self._program.argv]
        given = {name: await ctx.secret(value) for name, value in self._program.env.items()}
        self._hidden = [value for name, value in given.items() if value != self._program.env[name]]
        environment = {**self._environment, **given}
        try:
            process = await anyio.open_process(argv, env=environment, start_new_session=True)
        except OSError as exc:
            raise error(errno.EREMOTEIO, detail=f"cannot start a process: {exc.strerror}") from exc
        try:
            async with anyio.create_task_group() as group:
                out, err = anyio.CancelScope(), anyio.CancelScope()
                group.start_soon(self._feed, process, msgspec.json.encode(ctx.trigger) + b"\n")
                group.start_soon(self._linger, process, out, err)
                async with anyio.create_task_group() as readers:
                    readers.start_soon(self._read_stderr, process, ctx, err)
                    await self._read_effects(process, ctx, out)
                code = await process.wait()
                group.cancel_scope.cancel()
        except BaseExceptionGroup as group_error:
            raise only(group_error) from group_error
        finally:
            await self._end(process)
        if code != 0:
            what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
            raise error(errno.EREMOTEIO, detail=f"{self._program.argv[0]}: {what}: {self._last_words or 'no message'}")

    async def _linger(self, process: Process, *reading: anyio.CancelScope) -> None:
        """What it left behind may finish its words for a moment, but no tick waits for a child that stays."""
        await process.wait()
        await anyio.sleep(_LINGER_S)
        for scope in reading:
            scope.cancel()

    async def _feed(self, process: Process, data: bytes) -> None:
        assert process.stdin is not None
        try:
            await process.stdin.send(data)
            await process.stdin.aclose()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            log.debug("program closed its stdin early")

    async def _read_effects(self, process: Process, ctx: AgentContext, reading: anyio.CancelScope) -> None:
        assert process.stdout is not None
        rest, total = b"", 0
        with reading:
            async for piece in process.stdout:
                total += len(piece)
                if total > self._output_bytes:
                    raise error(errno.EFBIG, detail=f"program printed more than {self._output_bytes} bytes")
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    self._take(line, ctx)
        self._take(rest, ctx)

    def _take(self, line: bytes, ctx: AgentContext) -> None:
        if not line.strip():
            return
        try:
            effect = decode_line(line)
        except OSError as exc:
            raise OSError(exc.errno, self._clean(exc.strerror or "")) from None
        ctx.take(effect)

    def _clean(self, text: str) -> str:
        """*text* without the values of secrets."""
        for value in self._hidden:
            text = text.replace(value, "[secret]")
        return text

    async def _read_stderr(self, process: Process, ctx: AgentContext, reading: anyio.CancelScope) -> None:
        stream: ByteReceiveStream | None = process.stderr
        assert stream is not None
        rest, count = b"", 0
        with reading:
            async for piece in stream:
                *lines, rest = (rest + piece)[-(1 << 20) :].split(b"\n")
                for line in lines:
                    count += 1
                    self._say(line, ctx, count)
        self._say(rest, ctx, count + 1)

    def _say(self, line: bytes, ctx: AgentContext, count: int) -> None:
        text = self._clean(line.decode(errors="replace"))[:_STDERR_LINE].strip()
        if text and count <= _STDERR_LINES:
            self._last_words = text[-500:]
            ctx.note("log", text=text)

    async def _end(self, process: Process) -> None:
        """End the whole session of the program, however the tick ended."""
        with anyio.CancelScope(shield=True):
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                log.debug("program and all it started have ended")
            await process.wait()
            await process.aclose()
