"""A thread that notices when the event loop stands still, and logs where."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio

log = logging.getLogger(__name__)
_BEAT_SECONDS = 0.25
_STALL_SECONDS = 1.0


@contextmanager
def watching() -> Iterator[Callable[[], Awaitable[None]]]:
    """Watch the calling thread; the body must run the coroutine function given (the heartbeat) as a task."""
    beat, done = threading.Event(), threading.Event()
    loop_thread = threading.get_ident()

    def watch() -> None:
        while not done.is_set():
            if not beat.wait(_STALL_SECONDS) and not done.is_set():
                frame = sys._current_frames().get(loop_thread)
                stack = "".join(traceback.format_stack(frame)) if frame else "unknown"
                log.warning("event loop stalled over %s s\n%s", _STALL_SECONDS, stack)
                beat.wait()
            beat.clear()

    async def heartbeat() -> None:
        while True:
            beat.set()
            await anyio.sleep(_BEAT_SECONDS)

    thread = threading.Thread(target=watch, name="agentfs-watchdog", daemon=True)
    thread.start()
    try:
        yield heartbeat
    finally:
        done.set()
        beat.set()
        thread.join()
