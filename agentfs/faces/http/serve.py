"""Serving the application with hypercorn on trio: bind, announce, drain."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import repr_socket_addr

from agentfs.errors import error
from agentfs.faces.http.app import Face
from agentfs.faces.http.connection import Connection

GRACE_SECONDS = 10.0


def _settings() -> Config:
    config = Config()
    config.ssl_handshake_timeout = GRACE_SECONDS
    config.accesslog = config.errorlog = None
    config.include_server_header = False
    config.h11_max_incomplete_size = 64 << 10
    return config


async def serve(
    face: Face, listen: str, *, shutdown: Callable[[], Awaitable[object]], tls: ssl.SSLContext | None = None,
    local: Path | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:  # fmt: skip
    """Serve *face* at ``HOST:PORT`` (port 0: any) until *shutdown* returns, then at most 10 s for what runs.

    Over *tls* only where that is given. *local*: a socket in the file system that is served too, without TLS; whoever
    can open it needs a token all the same. Started with the address bound. Raises OSError (EADDRINUSE ...) when it
    cannot bind.
    """
    listener: trio.abc.Listener[Any] = trio.SocketListener(trio.socket.from_stdlib_socket(bound := _bind(listen)))
    if tls is not None:
        listener = trio.SSLListener(listener, tls, https_compatible=True)
    listeners = [listener] if local is None else [listener, _local(local)]
    config = _settings()
    context, app = WorkerContext(None), ASGIWrapper(face)  # type: ignore[arg-type]  # hypercorn's own typing of ASGI

    async def talk(stream: Any) -> None:
        await Connection(app, config, context, ConnectionState({}), stream)

    async with trio.open_nursery() as connections, trio.open_nursery() as accepting:
        accepting.start_soon(partial(trio.serve_listeners, talk, listeners, handler_nursery=connections))
        task_status.started(repr_socket_addr(bound.family, bound.getsockname()))
        await shutdown()
        await face.close()
        await context.terminated.set()
        accepting.cancel_scope.cancel()
        connections.cancel_scope.deadline = trio.current_time() + GRACE_SECONDS


def _local(path: Path) -> trio.SocketListener:
    """A listener at *path*, in the place of what a runtime that died left there."""
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    top = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        bound.bind(f"/proc/self/fd/{top}/{path.name}")  # the path itself may be longer than such an address may be
    finally:
        os.close(top)
    path.chmod(0o666)  # who may come this far is said by the directory, and who may do what by the token
    bound.listen(128)
    return trio.SocketListener(trio.socket.from_stdlib_socket(bound))


def _bind(listen: str) -> socket.socket:
    """A socket bound to ``HOST:PORT``. EBUSY when the address is taken, EACCES or EINVAL when it cannot be had."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    try:
        bound = socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as exc:
        code = {errno.EADDRINUSE: errno.EBUSY, errno.EACCES: errno.EACCES}.get(exc.errno or 0, errno.EINVAL)
        raise error(code, listen, exc.strerror or str(exc)) from exc
    # connections inherit it: hypercorn shields its sends, so only the kernel can end one to a client that never reads
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(GRACE_SECONDS * 1000))
    return bound
