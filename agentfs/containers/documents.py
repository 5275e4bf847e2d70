"""The documents of /containers: the request and what it asks for; checked once, at the door."""

from __future__ import annotations

import errno
import posixpath
import re
from typing import Final, Literal, TypeAlias, TypeVar

import msgspec

from agentfs.budget import check_usd
from agentfs.errors import error

KEY_MAX: Final = 200  # characters of an idempotency key
COMMANDS_MAX: Final = 100
ARTIFACTS_MAX: Final = 100  # patterns, each matched with every file there is
PATTERN_MAX: Final = 1000  # characters
TIME_MAX_S: Final = 86_400
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
Kind: TypeAlias = Literal["ephemeral", "interactive", "build"]
Words: TypeAlias = str | list[str]
"""A line for ``sh -c``, or the words of one program."""
D = TypeVar("D")


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a session may use at most; memory, disk and the largest file in MiB, time in seconds."""

    max_time_secs: int = 300
    max_memory_mb: int = 1024
    max_disk_mb: int = 512
    max_file_mb: int = 4096
    max_cpu_cores: float = 1.0
    max_processes: int = 256
    max_files: int = 100_000
    allow_network: bool = False

    @property
    def file_bytes(self) -> int:
        """The size of the largest file."""
        return min(self.max_file_mb, self.max_disk_mb) << 20


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The field ``limits`` of a request: what is null is as the policy has it."""

    max_time_secs: int | None = None
    max_memory_mb: int | None = None
    max_disk_mb: int | None = None
    max_file_mb: int | None = None
    max_cpu_cores: float | None = None
    max_processes: int | None = None
    max_files: int | None = None
    allow_network: bool | None = None


class Repo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A git repository that is cloned into the workdir; ``auth`` is the name of a secret of the agent's."""

    url: str
    git_ref: str = ""
    subdir: str = ""
    auth: str = ""


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ContainerRequest: the document written to ``containers/new``; amounts are micro-USD.

    ``stdin`` is for the first of ``commands``. ``keep_secs``: how long it is kept behind its end, if that is shorter
    than the runtime keeps them. Values of ``env`` may be ``secret:NAME``.
    """

    kind: Kind = "ephemeral"
    provider: str = ""
    image: str = ""
    repo: Repo | None = None
    commands: list[Words] = []
    stdin: str = ""
    artifacts: list[str] = []
    workdir: str = "/work"
    env: dict[str, str] = {}
    limits: Wanted = Wanted()
    max_cost_usd: int | None = None
    idempotency_key: str = ""
    timeout_ms: int | None = None
    keep_secs: int | None = None


class Exec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The document written to ``exec/new``."""

    command: Words
    env: dict[str, str] = {}
    cwd: str = ""
    stdin: str = ""
    timeout_ms: int | None = None
    idempotency_key: str = ""


def argv_of(words: Words) -> list[str]:
    """What is run: a line by the sandbox's shell."""
    return ["/bin/sh", "-c", words] if isinstance(words, str) else words


def parse(doc: bytes) -> Request:
    """*doc* as a `Request`. EINVAL naming the field."""
    request = _decoded(doc, Request)
    check_limits(request.limits)
    if len(request.commands) > COMMANDS_MAX:
        raise _wrong("commands", f"over {COMMANDS_MAX}")
    if request.kind != "interactive" and not request.commands:
        raise _wrong("commands", f"a session of kind {request.kind} needs at least one")
    for number, words in enumerate(request.commands):
        _words(f"commands[{number}]", words)
    _artifacts(request)
    if not re.fullmatch(r"(/[A-Za-z0-9._-]+)+", request.workdir) or _is_odd(request.workdir):
        raise _wrong("workdir", "want an absolute path of plain names that is not one of the system's")
    _env(request.env)
    _key(request.idempotency_key)
    if request.max_cost_usd is not None:
        check_usd("max_cost_usd", request.max_cost_usd)
    if request.repo is not None:
        _repo(request.repo)
    _time(request.timeout_ms)
    if request.keep_secs is not None and request.keep_secs <= 0:
        raise _wrong("keep_secs", "want more than 0")
    return request


def parse_exec(doc: bytes) -> Exec:
    """*doc* as an `Exec`: a JSON document, or a line of shell. EINVAL naming the field."""
    if not doc.lstrip().startswith(b"{"):
        try:
            asked = Exec(command=doc.decode().rstrip("\n"))
        except UnicodeDecodeError as exc:
            raise _wrong("command", f"not UTF-8: {exc.reason}") from exc
    else:
        asked = _decoded(doc, Exec)
    _words("command", asked.command)
    _env(asked.env)
    _key(asked.idempotency_key)
    _time(asked.timeout_ms)
    if asked.cwd and (("\0" in asked.cwd) or not (asked.cwd.startswith("/") or _is_below(asked.cwd))):
        raise _wrong("cwd", "want an absolute path, or one below the workdir")
    return asked


def _decoded(doc: bytes, kind: type[D]) -> D:
    try:
        return msgspec.json.decode(doc, type=kind)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise error(errno.EINVAL, detail=f"request: {exc}") from None  # its context holds the document


BOUNDS: Final = {
    "max_time_secs": TIME_MAX_S, "max_memory_mb": 1 << 20, "max_disk_mb": 1 << 22, "max_file_mb": 1 << 22,
    "max_cpu_cores": 1024, "max_processes": 1 << 16, "max_files": 1 << 24,
}  # fmt: skip


def check_limits(limits: Wanted | Limits) -> None:
    """EINVAL naming the field that no session can have."""
    for name, most in BOUNDS.items():
        value = getattr(limits, name)
        if value is not None and not 0 < value <= most:
            raise _wrong(f"limits.{name}", f"want more than 0 and at most {most}")


def _artifacts(request: Request) -> None:
    if len(request.artifacts) > ARTIFACTS_MAX:
        raise _wrong("artifacts", f"over {ARTIFACTS_MAX}")
    for number, pattern in enumerate(request.artifacts):
        if request.kind != "build" or not _is_below(pattern) or len(pattern) > PATTERN_MAX:
            raise _wrong(f"artifacts[{number}]", "want a pattern below the workdir, in a session of kind build")


def _words(field: str, words: Words) -> None:
    every = [words] if isinstance(words, str) else words
    if not every or not every[0].strip() or any("\0" in word for word in every):
        raise _wrong(field, "want a line of shell or a list of words, without NUL")
    if sum(len(word.encode()) for word in every) > 100_000:
        raise _wrong(field, "over 100000 bytes")


def _env(env: dict[str, str]) -> None:
    for name, value in env.items():
        if not _NAME.match(name) or "\0" in value or len(value) > 32_768:
            raise _wrong(f"env.{name[:40]!r}", "want NAME in letters, digits and _, and a value without NUL of 32 KiB")
        if name.startswith("AGENTFS_"):
            raise _wrong(f"env.{name[:40]}", "names that begin with AGENTFS_ are the runtime's")


def _repo(repo: Repo) -> None:
    if not re.fullmatch(r"https?://[^\s\0@]+", repo.url):
        raise _wrong("repo.url", "want https://... without a user name: the secret goes by its name in auth")
    if repo.git_ref and (repo.git_ref.startswith("-") or not re.fullmatch(r"[A-Za-z0-9._/+-]{1,200}", repo.git_ref)):
        raise _wrong("repo.git_ref", "want the name of a branch or tag, or a commit")
    if repo.subdir and not _is_below(repo.subdir):
        raise _wrong("repo.subdir", "want a path below the repository")


def _is_below(path: str) -> bool:
    parts = path.split("/")
    return bool(path) and not path.startswith("/") and ".." not in parts and "\0" not in path


def _is_odd(path: str) -> bool:
    top = posixpath.normpath(path)
    system = ("/proc", "/sys", "/dev", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/agent", "/tmp", "/run")
    return top != path or any(top == name or top.startswith(f"{name}/") for name in system)


def _key(key: str) -> None:
    if len(key) > KEY_MAX:
        raise _wrong("idempotency_key", f"over {KEY_MAX} characters")


def _time(timeout_ms: int | None) -> None:
    if timeout_ms is not None and not 0 < timeout_ms <= TIME_MAX_S * 1000:
        raise _wrong("timeout_ms", f"want 1..{TIME_MAX_S * 1000}")


def _wrong(field: str, reason: str) -> OSError:
    return error(errno.EINVAL, detail=f"{field}: {reason}")
