"""The demo agent answers messages and keeps reminders: an exec program, trigger on stdin, effects on stdout."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

REMINDER = re.compile(r"remind me in (\d+(?:\.\d+)?) (second|minute|hour)s? to (.+)", re.IGNORECASE)
SECONDS = {"second": 1, "minute": 60, "hour": 3600}


def effects(trigger: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The effects of one trigger, as dicts."""
    if trigger["kind"] == "alarm":
        yield {"type": "reply", "payload": f"reminder: {trigger['payload']}"}
    elif wish := REMINDER.match(str(trigger["payload"])):
        number, unit, what = wish.groups()
        wait_ms = int(float(number) * SECONDS[unit.lower()] * 1000)
        yield {"type": "alarm", "name": trigger["id"], "in_ms": wait_ms, "payload": what}
        yield {"type": "reply", "payload": f"ok, in {number} {unit}s: {what}"}
    elif trigger["kind"] == "message":
        count = (trigger["state"] or {}).get("messages", 0) + 1
        yield {"type": "state", "state": {"messages": count}}
        yield {"type": "reply", "payload": f"message {count}: {trigger['payload']}"}


if __name__ == "__main__":
    for effect in effects(json.load(sys.stdin)):
        print(json.dumps(effect))  # noqa: T201  # stdout is how a program speaks
