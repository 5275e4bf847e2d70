"""Fault points: named places where a test has the process killed at once; off unless ``AGENTFS_FAULT`` names one.

``NAME`` stands for the first time it is passed, ``NAME:3`` for the third.

Nothing else may depend on them.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Final

ENV: Final = "AGENTFS_FAULT"
_NAME, _, _TIMES = os.environ.get(ENV, "").partition(":")
_passed: Counter[str] = Counter()


def point(name: str) -> None:
    """Die as by ``kill -9`` if this is the place the environment named when the process began."""
    if name != _NAME:
        return
    _passed[name] += 1
    if _passed[name] == int(_TIMES or 1):
        os.kill(os.getpid(), signal.SIGKILL)
