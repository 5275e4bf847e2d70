"""`Execute`: runs any executable as a program: the trigger as JSON on stdin, effects as JSON lines on stdout.

Exit 0 commits the effects, anything else rolls them back; stderr goes to the log. Killed, with all it started in its
session, when its tick is cancelled.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio
from anyio.abc import ByteReceiveStream, Process

from agentfs.engine.context import AgentContext
from agentfs.engine.settings import ExecProgram
from agentfs.errors import error, only
from agentfs.providers.programs.said import Said, environment, stdin_of

log = logging.getLogger(__name__)
_LINGER_S = 1.0


class Execute:
    """One agent's executable; *environment* is all it gets besides the program's own ``env``."""

    def __init__(self, program: ExecProgram, environment: Mapping[str, str], workdir: Path, output_bytes: int) -> None:
        self._program, self._environment, self._workdir = program, dict(environment), workdir
        self._output_bytes = output_bytes

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
        given, hidden = await environment(ctx, self._program.env)
        said = Said(ctx, hidden, self._output_bytes)
        try:
            process = await anyio.open_process(argv, env={**self._environment, **given}, start_new_session=True)
        except OSError as exc:
            raise error(errno.EREMOTEIO, detail=f"cannot start a process: {exc.strerror}") from exc
        failure: OSError | None = None
        try:
            async with anyio.create_task_group() as group:
                out, err = anyio.CancelScope(), anyio.CancelScope()
                group.start_soon(self._feed, process, stdin_of(ctx))
                group.start_soon(self._linger, process, out, err)
                async with anyio.create_task_group() as readers:
                    readers.start_soon(self._read, process.stderr, said.err, err)
                    try:
                        await self._read(process.stdout, said.out, out)
                    except OSError as exc:  # what it said on stderr before is told all the same
                        failure = exc
                        self._kill(process)
                said.end(is_whole=failure is None)
                code = await process.wait()
                group.cancel_scope.cancel()
        except BaseExceptionGroup as group_error:
            raise only(group_error) from group_error
        finally:
            await self._end(process)
        if failure is not None:
            raise failure
        if code != 0:
            what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
            raise error(errno.EREMOTEIO, detail=f"{self._program.argv[0]}: {what}: {said.last_words or 'no message'}")

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

    async def _read(
        self, stream: ByteReceiveStream | None, take: Callable[[bytes], None], reading: anyio.CancelScope
    ) -> None:
        assert stream is not None
        with reading:
            async for piece in stream:
                take(piece)

    def _kill(self, process: Process) -> None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            log.debug("program and all it started have ended")

    async def _end(self, process: Process) -> None:
        """End the whole session of the program, however the tick ended."""
        with anyio.CancelScope(shield=True):
            self._kill(process)
            await process.wait()
            await process.aclose()
