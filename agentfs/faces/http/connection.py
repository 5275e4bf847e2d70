"""`Connection`: one client's connection as hypercorn speaks it; what fails in it ends this connection and no other.

hypercorn 0.18 on trio runs all connections in one nursery and lets out whatever a client provokes in its HTTP/2 and
WebSocket code, so that one odd frame would end every connection, and the runtime with them. It answers nothing itself.
"""

from __future__ import annotations

import logging

from hypercorn.trio.tcp_server import TCPServer

log = logging.getLogger(__name__)


class Connection(TCPServer):
    """See the module."""

    async def run(self) -> None:
        """Serve this client until either side hangs up."""
        try:
            await super().run()
        except Exception as exc:  # noqa: BLE001  # a client can do this as often as it likes: no traceback
            log.warning("a connection failed: %r", exc)
