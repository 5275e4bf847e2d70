"""The author's declarations: `File Queue Ctl Call Stream Data Dir Graft`, each a plain table entry.

A node says what a file can do and which functions do it; how handles behave is in the sibling modules.
"""

from __future__ import annotations

import inspect
import stat as _stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeAlias

import msgspec

from agentfs.record import Log
from agentfs.service import FileService
from agentfs.types import NO_WANT, OPERATOR, Facet, Kind, Path, Principal, Want


class At(msgspec.Struct, frozen=True):
    """Where and for whom a function of the tree runs: ``at["id"]`` is what matched ``{id}`` on the way.

    ``until``: the facets without a change of which the path leads there; None: who knows.
    """

    path: Path
    params: Mapping[str, str] = msgspec.field(default_factory=dict)
    principal: Principal = OPERATOR
    want: Want = NO_WANT
    until: tuple[Facet, ...] | None = None

    def __getitem__(self, name: str) -> str:
        return self.params[name]


class Info(msgspec.Struct, frozen=True):
    """What the author knows cheaply of a file: ``version`` rises with every change, ``size`` in bytes (0: unknown).

    ``until``: the facets without a change of which all this stays as it is, and the file there with what is in it;
    None: who knows.
    """

    version: int = 0
    size: int = 0
    mtime_ns: int = 0
    until: tuple[Facet, ...] | None = None


class Entry(msgspec.Struct, frozen=True):
    """One name of a keyed directory, with its info where listing has it at hand."""

    key: str
    info: Info | None = None


class Sink(Protocol):
    """What an open `Queue` handle writes to; it may hold a reserved place."""

    async def put(self, doc: bytes, *, is_json: bool) -> bytes:
        """Accept one document durably; its receipt."""
        ...

    def close(self) -> None:
        """Give back what was reserved. Never fails."""
        ...


Read: TypeAlias = Callable[[At], Awaitable[bytes]]
Write: TypeAlias = Callable[[At, bytes], Awaitable[None]]
Answer: TypeAlias = Callable[[At, bytes], Awaitable[bytes]]
Act: TypeAlias = Callable[[At], Awaitable[None]]
Look: TypeAlias = Callable[[At], Awaitable[Info]]
Verb: TypeAlias = Callable[..., Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """What every file has in common. ``operator``: only the operator may write.

    ``pays``: its functions pay for what is written by themselves; else a budgeted mount takes its price for each unit.
    """

    name: str
    info: Look | None = None
    operator: bool = False
    pays: bool = False
    remove: Act | None = None
    kind: ClassVar[Kind]

    @property
    def is_readable(self) -> bool:
        """Implements reading."""
        return True

    @property
    def is_writable(self) -> bool:
        """Implements writing."""
        return True

    def may_write(self, principal: Principal) -> bool:
        """Implements writing, and the grant of *principal* allows it."""
        return self.is_writable and (principal.is_operator or not self.operator)

    def mode(self, principal: Principal) -> int:
        """Type and permission bits: what is implemented and granted."""
        return _stat.S_IFREG | (0o444 if self.is_readable else 0) | (0o222 if self.may_write(principal) else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class File(Leaf):
    """Reads are a snapshot taken at open; what is written on one handle is exactly one document.

    ``is_text``: that document is never taken for JSON, whatever it begins with.
    """

    kind = Kind.FILE
    read: Read | None = None
    write: Write | None = None
    is_text: bool = False

    @property
    def is_readable(self) -> bool:
        return self.read is not None

    @property
    def is_writable(self) -> bool:
        return self.write is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue(Leaf):
    """Takes many documents per open, each acknowledged by its write; reads list what is pending."""

    kind = Kind.QUEUE
    read: Read
    sink: Callable[[At], Awaitable[Sink]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Leaf):
    """Write a request, read its answer on the same handle; with no request yet a read gives ``usage``.

    ``harmless``: it uses nothing that is the agent's, so a mount that has each use confirmed lets it through.
    """

    kind = Kind.CALL
    answer: Answer
    usage: str
    harmless: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream(Leaf):
    """A record log: ``X`` reads what there is, ``X@follow`` and ``X@<cursor>`` block for more, ``X.1`` is older."""

    kind = Kind.STREAM
    log: Callable[[At], Awaitable[Log]]

    @property
    def is_writable(self) -> bool:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Data(Leaf):
    """A whole value with random access on the handle's own copy, committed by flush, fsync and release, never torn."""

    kind = Kind.DATA
    read: Read
    write: Write
    limit: int = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Ctl(Leaf):
    """Verbs, one a line, shell quoting; a verb's arity is its function's signature after ``at``."""

    kind = Kind.CTL
    verbs: Mapping[str, Verb]
    operator_verbs: frozenset[str] = frozenset()
    arity: dict[str, tuple[int, int, str]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arity", {verb: _arity(run) for verb, run in self.verbs.items()})


def _arity(run: Verb) -> tuple[int, int, str]:
    params = list(inspect.signature(run).parameters.values())[1:]
    if any(p.kind is p.KEYWORD_ONLY for p in params):
        raise TypeError(f"{run.__qualname__}: a verb takes positional arguments only")
    needed = [p for p in params if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    many = 1 << 16 if any(p.kind is p.VAR_POSITIONAL for p in params) else len(params)
    words = [p.name.upper() if p in needed else f"[{p.name.upper()}]" for p in params]
    return len(needed), many, " ".join(words)


async def _no_entries(at: At, after: str, limit: int) -> Sequence[Entry]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dir:
    """A directory: fixed ``entries``, and ``each`` (named like ``{id}`` or ``{id}.json``) for every key.

    ``has(at, key)`` answers a walk; ``keys(at, after, limit)`` gives listing entries whose names sort behind the name
    ``after``, in order of names. ``create(at)`` may refuse a new name (the file appears when its document is
    written, or at once if ``create`` makes it), ``rename(old, new)`` moves a key of this directory within the tree.
    ``facets``: all that the names in it beside ``entries`` depend on; None: who knows.
    ``is_protected``: a walk that removes what it finds (``rm -r``) must not; shown as the sticky bit.
    """

    name: str = ""
    entries: Sequence[Node] = ()
    each: Node | None = None
    has: Callable[[At, str], Awaitable[bool]] | None = None
    keys: Callable[[At, str, int], Awaitable[Sequence[Entry]]] = _no_entries
    create: Act | None = None
    mkdir: Act | None = None
    remove: Act | None = None
    rename: Callable[[At, At], Awaitable[None]] | None = None
    operator: bool = False
    is_protected: Callable[[At], Awaitable[bool]] | None = None
    facets: tuple[Facet, ...] | None = None
    fixed: Mapping[str, Node] = field(init=False, repr=False)  # the entries by name
    has_logs: bool = field(init=False, repr=False)
    slot: tuple[str, str, str] = field(init=False, repr=False)  # prefix, parameter and suffix of the pattern of each
    kind: ClassVar[Kind] = Kind.DIR

    def __post_init__(self) -> None:
        object.__setattr__(self, "fixed", {entry.name: entry for entry in reversed(self.entries)})
        object.__setattr__(self, "has_logs", any(isinstance(node, Stream) for node in (*self.entries, self.each)))
        prefix, _, rest = (self.each.name if self.each else "{}").partition("{")
        param, _, suffix = rest.partition("}")
        object.__setattr__(self, "slot", (prefix, param, suffix))

    def may_change(self, principal: Principal) -> bool:
        """Names can be added or removed, and the grant of *principal* allows it."""
        each_changes = not isinstance(self.each, Graft) and self.each is not None and self.each.remove
        changes = self.create or self.mkdir or self.rename or each_changes
        return bool(changes) and (principal.is_operator or not self.operator)

    def mode(self, principal: Principal) -> int:
        """Type and permission bits."""
        return _stat.S_IFDIR | (0o777 if self.may_change(principal) else 0o555)

    def key_of(self, name: str) -> str | None:
        """The key that *name* stands for, or None when it does not fit the pattern."""
        if self.each is None:
            return None
        prefix, _, suffix = self.slot
        fits = name.startswith(prefix) and name.endswith(suffix) and len(name) > len(prefix) + len(suffix)
        return name[len(prefix) : len(name) - len(suffix)] if fits else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Graft:
    """A name below which everything is another service's, attached to whoever asks.

    ``service(at)`` gives it. Names below mean what that service says: a stream's twins do not exist there. Below it
    whoever may write by the mount table writes; each write is a unit that a budgeted mount takes its price for, unless
    the service ``pays`` by itself.
    """

    name: str
    service: Callable[[At], Awaitable[FileService]]
    pays: bool = False
    kind: ClassVar[Kind] = Kind.DIR


Node: TypeAlias = File | Queue | Call | Stream | Data | Ctl | Dir | Graft
