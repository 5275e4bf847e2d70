"""What a token opens at a URL: whether it opens anything, and a mount that shows it, served in this process.

It starts no process; which place and token those are is `agentfs.cli.remote`'s business.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import trio

from agentfs import logline
from agentfs.cli.remote import SUBTYPE
from agentfs.client import Trust
from agentfs.errors import only
from agentfs.faces.fuse.mount import serve as serve_mount
from agentfs.providers.remote import RemoteService
from agentfs.types import ROOT


def check(url: str, token: str, trust: Trust) -> None:
    """That *token* opens a tree at *url*. EACCES, ENOTCONN."""
    trio.run(_check, url, token, trust)


async def _check(url: str, token: str, trust: Trust) -> None:
    async with RemoteService(url, token, trust=trust) as service:
        await service.stat(ROOT)


def serve(url: str, place: Path, trust: Trust, binding: str) -> None:
    """Serve the mount, with the token that is on standard input, until it is taken off or SIGTERM or SIGINT comes."""
    logline.configure("info")
    try:
        trio.run(_serve, url, sys.stdin.readline().strip(), place, trust, binding)
    except BaseExceptionGroup as group:
        raise only(group) from group


async def _serve(url: str, token: str, place: Path, trust: Trust, binding: str) -> None:
    async with RemoteService(url, token, trust=trust) as service, trio.open_nursery() as nursery:
        nursery.start_soon(_end, nursery.cancel_scope)
        await serve_mount(service, place, subtype=SUBTYPE, binding=binding)
        nursery.cancel_scope.cancel()


async def _end(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
        async for _ in received:
            scope.cancel()
