"""The short verbs: reserved names below ``/agents``, each exactly one file operation on the operator's tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agentfs.types import Path


@dataclass(frozen=True, slots=True)
class Verb:
    """``POST /agents/{id}/NAME``: the body, behind ``line`` if there is one, is written to ``file`` of that agent."""

    file: str
    line: str = ""
    text: str = ""


_CTL: Final = ("tick", "hibernate", "wake", "pause", "resume", "stop", "recover", "terminate")
VERBS: Final = {
    "send": Verb("inbox", text="Enqueue one message; the receipt is the answer."),
    **{name: Verb("ctl", name, f"Write `{name}` to the agent's ctl.") for name in _CTL},
}


def resolve(method: str, path: Path) -> tuple[Path, str]:
    """The file that a request really means, and the line its body goes behind."""
    parts = path.split("/")
    if method == "POST" and parts[0] == "agents":
        if len(parts) == 1:
            return Path("agents/new"), ""
        if len(parts) == 3 and parts[2] in VERBS:
            verb = VERBS[parts[2]]
            return Path(f"agents/{parts[1]}/{verb.file}"), verb.line
    return path, ""
