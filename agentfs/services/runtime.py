"""runtime: the runtime itself, for the operator.

``status`` (R) is one JSON object: version, pid, started_at, uptime_s, agents, awake, is_draining, storage_bytes,
free_bytes. ``version`` (R), ``config`` (R, the effective configuration), ``errors`` (S): every error that a mount could
only say as a number, with path and detail. ``tokens/new`` (C), ``tokens/ctl`` (X)
and ``tokens/<id>`` (R) are the operator's: see tokens. ``secrets/<name>`` (W) are the runtime's: what the keys of its
providers refer to, see secrets. ``compute/prices`` (RW) is the price table {"providers": {NAME: {"input_usd"?,
"output_usd"?, "request_usd"?}}, "models": {MODEL: ...}}: micro-USD for 1000 tokens and for a request; names of models
may be globs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import msgspec

from agentfs.compute import prices
from agentfs.engine.engine import Engine
from agentfs.engine.models import PRICES, Models
from agentfs.record import Log
from agentfs.rows import AgentRow
from agentfs.services import document, secrets, tokens
from agentfs.tree import At, Dir, Errors, File, Stream, Tree
from agentfs.types import rfc3339


def _compute(models: Models) -> Dir:
    """The directory ``compute/``: what is the same for the jobs of all agents."""

    async def read(at: At) -> bytes:
        return document(msgspec.to_builtins(await models.prices()))

    async def write(at: At, doc: bytes) -> None:
        prices.parse(doc)
        await models.documents.put("", PRICES, doc, at.want.match)

    return Dir(name="compute", entries=[File(name="prices", read=read, write=write)])


def runtime(engine: Engine, config: Mapping[str, Any]) -> Tree:
    """The directory ``/runtime``; *config* is shown as it is and holds no secret."""
    core = engine.core
    started_ns = core.clock.now_ns()

    async def status(at: At) -> bytes:
        used, free = await core.store.usage()
        return document(
            {
                "version": version("agentfs"), "pid": os.getpid(), "started_at": rfc3339(started_ns),
                "uptime_s": (core.clock.now_ns() - started_ns) // 1_000_000_000,
                "agents": await core.store.count(AgentRow), "awake": engine.workers.busy,
                "is_draining": engine.workers.is_draining, "storage_bytes": used, "free_bytes": free,
            }
        )  # fmt: skip

    async def show_version(at: At) -> bytes:
        return f"{version('agentfs')}\n".encode()

    async def show_config(at: At) -> bytes:
        return document(config)

    async def errors(at: At) -> Log:
        return core.errors

    noted = Errors(lambda path, exc: engine.note_error("", f"runtime/{path}", exc))
    return Tree(
        File(name="status", read=status),
        File(name="version", read=show_version),
        File(name="config", read=show_config),
        Stream(name="errors", log=errors),
        tokens.table(engine, ""),
        secrets.table(engine, "", "secrets"),
        _compute(engine.jobs.models),
        errors=noted,
        limits=core.limits,
    )
