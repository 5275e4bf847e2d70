"""An agent's own configuration document (the file ``config``): programs, retry, overflow, time limits.

Values and their checks only.
"""

from __future__ import annotations

import errno
from functools import lru_cache
from typing import Final, Literal, TypeAlias, get_args

import msgspec

from agentfs.budget import check_usd
from agentfs.containers import documents
from agentfs.containers.documents import Request, Wanted
from agentfs.errors import detail_of, error

Tool = Literal["list", "read", "write", "call", "watch", "run"]
TOOLS: Final[tuple[Tool, ...]] = get_args(Tool)


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Sandbox(_Strict, frozen=True, kw_only=True):
    """Where the ticks of an exec program run: fields as in a request to ``containers/new``, under the same policy.

    It is made at the first tick and kept for the next ones while they come; what lies in ``workdir`` goes with it.
    """

    provider: str = ""
    image: str = ""
    limits: Wanted = Wanted()
    workdir: str = "/work"


class ExecProgram(_Strict, frozen=True, kw_only=True, tag_field="kind", tag="exec"):
    """Any executable: the trigger as JSON on stdin, effects as JSON lines on stdout. ``env`` is added to a bare one.

    With ``sandbox`` it runs there, else as a process of this machine with the runtime's rights.
    """

    argv: list[str]
    env: dict[str, str] = {}
    sandbox: Sandbox | None = None


class InlineProgram(_Strict, frozen=True, kw_only=True, tag_field="kind", tag="inline"):
    """A trusted `Agent` subclass run in the runtime: ``module:Class`` or ``/path/file.py:Class``."""

    ref: str


class LlmProgram(_Strict, frozen=True, kw_only=True, tag_field="kind", tag="llm"):
    """A prompt: a model of ``compute/`` answers each message, with the agent's own namespace as its tools.

    ``max_steps``: model calls for one message; ``max_cost_usd``: micro-USD that all jobs for one message may cost, on
    top of what the mount limits. ``context_tokens``: what fits into one request. ``tools``: which it has; null is all,
    and ``run`` is one where ``containers`` is mounted.
    """

    prompt: str
    model: str = ""
    max_steps: int = 16
    max_cost_usd: int | None = None
    temperature: float | None = None
    context_tokens: int = 8000
    tools: list[Tool] | None = None


Program: TypeAlias = ExecProgram | InlineProgram | LlmProgram


class Retry(_Strict, frozen=True, kw_only=True):
    """How a failed tick is tried again: ``attempts`` in all, waiting base, base*factor, ... at most ``max_ms``."""

    attempts: int = 5
    base_ms: int = 200
    factor: float = 2.0
    max_ms: int = 60_000

    def delay_ns(self, attempts: int) -> int:
        """The wait behind the *attempts*-th failure."""
        return int(min(self.base_ms * self.factor ** min(attempts - 1, 60), self.max_ms) * 1_000_000)


class Overflow(_Strict, frozen=True, kw_only=True):
    """What a full inbox does: refuse, or move the new or the oldest envelope to ``deadletter/`` while that has room."""

    policy: Literal["reject", "dead_letter", "drop_oldest"] = "reject"
    max_depth: int = 1000
    dead_letter_max: int = 1000


class Settings(_Strict, frozen=True, kw_only=True):
    """The document ``config``. ``quarantine_after`` failed ticks in a row stop the agent until ``recover``.

    ``autonomy`` stands for a set of mount grants, unless the operator wrote a table of his own.
    """

    v: int = 1
    program: Program
    retry: Retry = Retry()
    overflow: Overflow = Overflow()
    tick_timeout_ms: int = 60_000
    quarantine_after: int = 20
    autonomy: Literal["supervised", "semi_autonomous", "autonomous"] = "semi_autonomous"


def parse_settings(doc: bytes | str) -> Settings:
    """*doc* as `Settings`. EINVAL naming field and reason."""
    try:
        settings = msgspec.json.decode(doc, type=Settings)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise error(errno.EINVAL, detail=f"config: {exc}") from exc
    _check(settings)
    return settings


@lru_cache(maxsize=1024)
def settings_of(config: str) -> Settings:
    """The settings in the row of an agent, shared by all who ask. EINVAL."""
    return parse_settings(config)


@lru_cache(maxsize=1024)
def cap_of(config: str) -> int | None:
    """What the jobs for one message may cost at most, micro-USD, where the program of *config* says so."""
    program = settings_of(config).program
    return program.max_cost_usd if isinstance(program, LlmProgram) else None


def _check(settings: Settings) -> None:
    retry, overflow, program = settings.retry, settings.overflow, settings.program
    bounds: dict[str, tuple[float, float, float]] = {
        "v": (settings.v, 1, 1),
        "retry.attempts": (retry.attempts, 1, 100),
        "retry.base_ms": (retry.base_ms, 0, 86_400_000),
        "retry.factor": (retry.factor, 1, 100),
        "retry.max_ms": (retry.max_ms, 0, 86_400_000),
        "overflow.max_depth": (overflow.max_depth, 1, 100_000),
        "overflow.dead_letter_max": (overflow.dead_letter_max, 0, 100_000),
        "tick_timeout_ms": (settings.tick_timeout_ms, 1, 86_400_000),
        "quarantine_after": (settings.quarantine_after, 1, 1_000_000),
    }
    if isinstance(program, LlmProgram):
        bounds["program.max_steps"] = (program.max_steps, 1, 1000)
        bounds["program.context_tokens"] = (program.context_tokens, 256, 10_000_000)
        bounds["program.temperature"] = (program.temperature or 0.0, 0, 10)
    for name, (value, low, high) in bounds.items():
        if not low <= value <= high:
            raise error(errno.EINVAL, detail=f"config: {name}: {value} is not within {low}..{high}")
    _check_program(program)


def _check_program(program: Program) -> None:
    match program:
        case ExecProgram():
            _check_exec(program)
        case InlineProgram() if ":" not in program.ref:
            raise error(errno.EINVAL, detail="config: program.ref: want module:Class or /path/file.py:Class")
        case LlmProgram() if not program.prompt.strip():
            raise error(errno.EINVAL, detail="config: program.prompt: empty")
        case LlmProgram() if program.max_cost_usd is not None:
            check_usd("config: program.max_cost_usd", program.max_cost_usd)


def _check_exec(program: ExecProgram) -> None:
    if not program.argv or not program.argv[0]:
        raise error(errno.EINVAL, detail="config: program.argv: needs at least the program's name")
    if any("\0" in word for word in [*program.argv, *program.env, *program.env.values()]):
        raise error(errno.EINVAL, detail="config: program: a word holds a NUL byte")
    if any(not name or "=" in name for name in program.env):
        raise error(errno.EINVAL, detail="config: program.env: a name is empty or holds =")
    if program.sandbox is not None:
        try:
            documents.parse(msgspec.json.encode(request_of(program)))
        except OSError as exc:
            raise error(errno.EINVAL, detail=f"config: program.sandbox: {detail_of(exc)}") from None


def request_of(program: ExecProgram) -> Request:
    """What the sandbox of *program* would be as a session."""
    wanted = program.sandbox or Sandbox()
    return Request(
        kind="interactive", provider=wanted.provider, image=wanted.image, workdir=wanted.workdir, limits=wanted.limits,
        env=program.env, idempotency_key="tick",
    )  # fmt: skip
