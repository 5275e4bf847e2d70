"""The port `ComputeProvider`: what a server of models can do for a job, and how it says that it did nothing.

No implementation: those are in `agentfs.providers.compute`.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from agentfs.compute.documents import Usage
from agentfs.errors import error


@dataclass(frozen=True, slots=True)
class Task:
    """One request to one model. ``key``: the API key to use, "" for none; ``max_tokens``: no more may come out."""

    model: str
    kind: str
    input: Mapping[str, Any]
    is_stream: bool
    key: str = field(default="", repr=False)
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an answer: text, what else comes in pieces (tool calls), and at the end why it ended and the usage.

    ``output`` is what the whole answer adds to the text: a message's other fields, vectors, images.
    """

    text: str = ""
    data: Any = None
    finish_reason: str = ""
    usage: Usage | None = None
    output: Any = None


Why: TypeAlias = Literal["away", "busy", "failed", "denied", "refused"]
"""It cannot be reached; it has no room now; it failed; it does not take the key; it does not take the request."""


class Unserved(OSError):  # noqa: N818  # not a fault of ours: the provider's answer
    """A provider did nothing and charges nothing. errno EREMOTEIO, or ENOTCONN when it is away."""

    def __init__(self, why: Why, detail: str) -> None:
        told = error(errno.ENOTCONN if why == "away" else errno.EREMOTEIO, detail=detail)
        super().__init__(told.errno, told.strerror)
        self.why: Why = why

    @property
    def is_passing(self) -> bool:
        """Whether it may be otherwise soon, so that the breaker counts it and the same provider may be asked again."""
        return self.why in ("away", "busy", "failed")


class ComputeProvider(Protocol):
    """A server of models. Safe for concurrent use.

    Raises `Unserved` when nothing was done; any other OSError (EREMOTEIO) leaves open what was done. Its words are in
    the detail, cleaned of keys.
    """

    @property
    def kinds(self) -> frozenset[str]:
        """What it can be asked for."""
        ...

    @property
    def is_local(self) -> bool:
        """Whether it runs here and costs nothing unless the price table says otherwise."""
        ...

    @property
    def needs_key(self) -> bool:
        """Whether it answers nothing without a key."""
        ...

    async def models(self, key: str) -> Sequence[str]:
        """The names of the models it has now; it gives up after a few seconds (ETIMEDOUT)."""
        ...

    def run(self, task: Task) -> AsyncGenerator[Part]:
        """The answer in pieces as they come; without a stream one piece. The caller closes it."""
        ...

    async def aclose(self) -> None:
        """Give back connections. Idempotent."""
        ...
