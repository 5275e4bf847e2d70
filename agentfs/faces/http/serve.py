"""Serving the application with hypercorn on trio: bind, announce, drain."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Awaitable, Callable

import trio
from hypercorn.config import Config
from hypercorn.trio import serve as hypercorn_serve

from agentfs.errors import error
from agentfs.faces.http.app import Face

GRACE_SECONDS = 10.0


class _Settings(Config):
    """hypercorn's settings with a TLS context made here, where hypercorn would read certificate files once."""

    ssl_handshake_timeout = GRACE_SECONDS

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        super().__init__()
        self._tls = tls

    @property
    def ssl_enabled(self) -> bool:
        """Whether this face speaks TLS, and nothing else."""
        return self._tls is not None

    def create_ssl_context(self) -> ssl.SSLContext | None:
        """The context of every connection."""
        return self._tls


async def serve(
    face: Face, listen: str, *, shutdown: Callable[[], Awaitable[object]], tls: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:  # fmt: skip
    """Serve *face* at ``HOST:PORT`` (port 0: any) until *shutdown* returns, then at most 10 s for what runs.

    Over *tls* only where that is given. Started with the address bound. Raises OSError (EADDRINUSE ...) when it
    cannot bind.
    """
    config = _Settings(tls)
    config.bind = [f"fd://{_bind(listen).detach()}"]
    config.graceful_timeout = GRACE_SECONDS
    config.accesslog = config.errorlog = None
    config.include_server_header = False
    config.h11_max_incomplete_size = 64 << 10

    async def trigger() -> None:
        await shutdown()
        await face.close()

    async with trio.open_nursery() as nursery:
        binds = await nursery.start(
            lambda task_status: hypercorn_serve(
                face,  # type: ignore[arg-type]  # hypercorn's own typing of ASGI
                config, shutdown_trigger=trigger, mode="asgi", task_status=task_status,
            )
        )  # fmt: skip
        task_status.started(binds[0].partition("://")[2])


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
