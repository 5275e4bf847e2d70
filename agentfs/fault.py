"""Fault points: named places where a test has the process killed at once; off unless ``AGENTFS_FAULT`` names one.

Nothing else may depend on them.
"""

from __future__ import annotations

import os
import signal
from typing import Final

ENV: Final = "AGENTFS_FAULT"
_NAME: Final = os.environ.get(ENV, "")


def point(name: str) -> None:
    """Die as by ``kill -9`` if this is the place the environment named when the process began."""
    if name == _NAME:
        os.kill(os.getpid(), signal.SIGKILL)
