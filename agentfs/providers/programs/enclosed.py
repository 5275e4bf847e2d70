"""`Enclosed`: runs an exec program in a sandbox of its agent's, by the protocol of any exec program.

The sandbox is somebody else's: this hands over a command and reads what it says.
"""

from __future__ import annotations

import errno
from typing import Final

import anyio

from agentfs.containers.port import Command, Output
from agentfs.engine.context import AgentContext
from agentfs.engine.session import LIMITS
from agentfs.engine.settings import ExecProgram, request_of
from agentfs.engine.warm import Run
from agentfs.errors import error
from agentfs.providers.programs.said import Said, environment, stdin_of

_LINGER_S: Final = 1.0  # for a program that said what is no effect, before it is ended


class Enclosed:
    """One agent's program, run by *run*; it may print *output_bytes*."""

    def __init__(self, program: ExecProgram, run: Run, output_bytes: int) -> None:
        self._program, self._request, self._run = program, request_of(program), run
        self._output_bytes = output_bytes

    @property
    def hooks(self) -> frozenset[str]:
        """None: an executable only sees triggers."""
        return frozenset()

    async def hook(self, name: str, ctx: AgentContext, error_text: str = "") -> None:
        """Never called: there are no hooks."""

    async def run(self, ctx: AgentContext) -> None:
        """Run it once. As `Execute`; ENOMEM, ENOSPC when it ran into a limit; and what the sandbox refuses."""
        env, hidden = await environment(ctx, self._program.env)
        said, failures, scope = Said(ctx, hidden, self._output_bytes), list[OSError](), anyio.CancelScope()

        def take(output: Output) -> None:
            if output.stream == "stderr":
                said.err(output.data)
            elif not failures:
                try:
                    said.out(output.data)
                except OSError as exc:  # what it said on stderr before is on its way, and told all the same
                    failures.append(exc)
                    scope.deadline = anyio.current_time() + _LINGER_S

        command, ended = Command(ctx.tick_id, self._program.argv, env, stdin=stdin_of(ctx)), None
        with scope:
            ended = await self._run(ctx.agent, self._request, command, take)
        if failures or ended is None:
            said.end(is_whole=False)
            raise failures[0]
        name = self._program.argv[0]
        if ended.cause:
            raise error(LIMITS[ended.cause], detail=f"{name}: its sandbox ended it: {ended.cause}")
        said.end()
        if ended.code != 0:
            raise error(errno.EREMOTEIO, detail=f"{name}: exit {ended.code}: {said.last_words or 'no message'}")
