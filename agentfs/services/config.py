"""config: how an agent runs. The operator writes it, the agent reads it.

``config`` (RW) is one JSON object: program ({"kind":"exec","argv":[...],"env":{},
"sandbox":null or {provider image limits workdir}} or {"kind":"inline", "ref":"module:Class"}), retry {attempts base_ms
factor max_ms}, overflow {policy max_depth dead_letter_max}, tick_timeout_ms, quarantine_after, autonomy (supervised,
semi_autonomous or autonomous: what is granted, see ns).
Writing replaces it whole; a new program takes effect after the running tick. An unknown field is EINVAL.
"""

from __future__ import annotations

import msgspec

from agentfs.engine.settings import parse_settings
from agentfs.services import Scope, Service
from agentfs.tree import At, File, Info, Tree


def config(scope: Scope) -> Tree:
    """The file ``config`` of one agent."""
    engine, agent = scope.engine, scope.agent

    async def read(at: At) -> bytes:
        return msgspec.json.format((await engine.row(agent)).config.encode(), indent=2) + b"\n"

    async def write(at: At, doc: bytes) -> None:
        await engine.configure(agent, parse_settings(doc), at.want.match)

    async def info(at: At) -> Info:
        row = await engine.row(agent)
        return Info(row.config_at_ns, len(await read(at)), row.config_at_ns)

    return scope.tree(File(name="config", read=read, write=write, info=info, operator=True))


SERVICE = Service("config", "", config)
