"""Capabilities as files, one a module; its docstring is its man page, its ``SERVICE`` mounts it in every agent.

A module that is added here appears in every namespace, in the conformance run and in the reference.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from agentfs.engine.engine import Engine
from agentfs.service import FileService
from agentfs.tree import Dir, Errors, Node, Tree

_INDENTED_MAX = 8192


class Table(Protocol):
    """The mount table of one agent."""

    async def script(self) -> str:
        """The table as text, one mount or bind a line."""
        ...

    async def budgeted(self) -> Sequence[str]:
        """The services that the agent has a budget for."""
        ...

    def check(self, script: str) -> None:
        """EINVAL naming line and reason unless *script* can be mounted."""
        ...


@dataclass(frozen=True, slots=True)
class Scope:
    """What an agent's service is built from. ``errors`` is shared by all services of the agent."""

    engine: Engine
    agent: str
    errors: Errors
    table: Table

    def tree(self, *entries: Node, root: Dir | None = None) -> Tree:
        """A tree with this agent's errors and limits."""
        core = self.engine.core
        return Tree(*entries, root=root, errors=self.errors, limits=core.limits, changed=core.versions.latest)


@dataclass(frozen=True, slots=True)
class Service:
    """A service of every agent: ``name`` in the mount table, ``at`` its mount point ("" the agent's root).

    ``needs_budget``: it spends money, so it can only be mounted with an account that pays. ``level``: what an agent is
    granted on it unless its autonomy or its operator says otherwise. ``is_confirmable``: all that it does for an agent
    it does in calls, so that a mount may have each of them confirmed.
    """

    name: str
    at: str
    build: Callable[[Scope], FileService]
    needs_budget: bool = False
    level: str = "read_write"
    is_confirmable: bool = False


def discover() -> Sequence[Service]:
    """Every module here that declares a ``SERVICE``, sorted by name."""
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    return sorted((m.SERVICE for m in modules if hasattr(m, "SERVICE")), key=lambda s: s.name)


def document(value: Any) -> bytes:
    """*value* as a JSON document for people and ``jq``; indented, unless that might make much of a little."""
    return indented(msgspec.json.encode(value))


def indented(doc: bytes) -> bytes:
    """The JSON *doc* for people: a large one stays as it is, for deep in a nest each value would cost a long line."""
    return (msgspec.json.format(doc, indent=2) if len(doc) <= _INDENTED_MAX else doc) + b"\n"


def jsonl(values: Sequence[Any]) -> bytes:
    """*values* as one JSON value a line."""
    return b"".join(msgspec.json.encode(value) + b"\n" for value in values)
