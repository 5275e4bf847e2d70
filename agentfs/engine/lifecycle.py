"""The lifecycle of an agent as a pure function of its records: state, and which verbs each state takes."""

from __future__ import annotations

import errno
from typing import Final

from agentfs.errors import error

CREATING, ACTIVE, DORMANT, FAILED, TERMINATED = "creating", "active", "dormant", "failed", "terminated"

VERBS: Final[dict[str, frozenset[str]]] = {
    "tick": frozenset({DORMANT, ACTIVE}),
    "wake": frozenset({DORMANT, ACTIVE}),
    "hibernate": frozenset({DORMANT, ACTIVE, FAILED}),
    "pause": frozenset({DORMANT, ACTIVE, FAILED}),
    "resume": frozenset({DORMANT, ACTIVE, FAILED}),
    "stop": frozenset({DORMANT, ACTIVE, FAILED}),
    "recover": frozenset({DORMANT, ACTIVE, FAILED}),
    "terminate": frozenset({DORMANT, ACTIVE, FAILED, TERMINATED}),
}


def state_of(*, is_terminated: bool, failures: int, quarantine_after: int, is_loaded: bool) -> str:
    """The state that follows from the rows and from whether a worker holds the agent in memory."""
    if is_terminated:
        return TERMINATED
    if failures >= quarantine_after:
        return FAILED
    return ACTIVE if is_loaded else DORMANT


def check_verb(verb: str, state: str) -> None:
    """EPERM when an agent in *state* does not take *verb*."""
    if state not in VERBS[verb]:
        hint = ": recover it first" if state == FAILED else ""
        raise error(errno.EPERM, detail=f"{verb}: agent is {state}{hint}")
