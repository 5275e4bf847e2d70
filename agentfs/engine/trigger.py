"""`Trigger`: why a tick runs and what it is given; validated, never raw bytes."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from agentfs.engine.envelope import Metadata

KINDS = ("message", "alarm", "event", "manual", "initialize")


class Trigger(msgspec.Struct, frozen=True, kw_only=True):
    """What woke the agent; an exec program reads exactly this as JSON on stdin.

    ``id`` is the envelope's, stable over attempts; ``attempt`` counts from 1; ``state`` is the program's own as it
    last committed (None at first); ``alarm`` names the alarm that fired.
    """

    v: int = 1
    kind: Literal["message", "alarm", "event", "manual", "initialize"]
    agent: str
    tick_id: str
    attempt: int
    at: str
    id: str
    source: str
    payload: Any
    metadata: Metadata
    alarm: str | None = None
    state: Any = None
