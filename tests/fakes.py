"""A fake server on a real socket of this machine, for whatever stands in for what is outside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette


@asynccontextmanager
async def listening(app: Starlette, release: Callable[[], object] = lambda: None) -> AsyncIterator[str]:
    """The root URL of *app* on a port of its own; *release* lets go at the end what it still holds."""
    config, over = Config(), trio.Event()
    config.bind, config.accesslog, config.errorlog, config.graceful_timeout = ["127.0.0.1:0"], None, None, 0.1
    async with trio.open_nursery() as nursery:
        binds = await nursery.start(
            lambda task_status: serve(
                app,  # type: ignore[arg-type]  # hypercorn's own typing of ASGI
                config, shutdown_trigger=over.wait, task_status=task_status,
            )
        )  # fmt: skip
        try:
            yield binds[0]
        finally:
            release()
            over.set()
            nursery.cancel_scope.cancel()
