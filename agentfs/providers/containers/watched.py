"""`Watched`: what lies in a workdir, measured by a thread while a command runs, whoever reads its output.

It decides nothing but that there is too much.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from agentfs.containers.documents import Limits
from agentfs.containers.port import Cause
from agentfs.providers.containers.workdir import Workdir

log = logging.getLogger(__name__)
_SHORTEST_S: Final = 0.1
_SHARE: Final = 10  # measuring takes at most one part in so many of the time
TOO_LARGE: Final = 153  # the code of what SIGXFSZ ended


def past_file(limits: Limits) -> Cause:
    """Why a command ended that made a file larger than *limits* allow."""
    return "file" if limits.max_file_mb < limits.max_disk_mb else "disk"


class Watched:
    """Calls *end* with "disk", in a thread of its own, when more lies in *workdir* than *limits* allow."""

    def __init__(self, workdir: Workdir, limits: Limits, end: Callable[[Cause], None]) -> None:
        self._workdir, self._limits, self._end = workdir, limits, end
        self._done = threading.Event()

    def start(self) -> None:
        """Begin to measure."""
        threading.Thread(target=self._watch, name="agentfs-disk", daemon=True).start()

    def stop(self) -> None:
        """Measure no more. Idempotent; also without a start."""
        self._done.set()

    def _watch(self) -> None:
        pause_s = _SHORTEST_S
        while not self._done.wait(pause_s):
            begun = time.monotonic()
            try:
                is_over = self._workdir.is_over(self._limits)
            except OSError as exc:
                log.warning("cannot measure %s: %s", self._workdir.path.name, exc)
                is_over = False
            if is_over and not self._done.is_set():
                self._end("disk")
                return
            pause_s = max(_SHORTEST_S, _SHARE * (time.monotonic() - begun))
