"""The port `ContainerProvider`: what an engine of sandboxes can do for a session.

No implementation: those are in `agentfs.providers.containers`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeAlias

from agentfs.containers.documents import Limits, Repo
from agentfs.containers.registries import Login
from agentfs.service import FileService

WORKDIR: Final = "/work"
"""Where a session's own files are inside, unless the request says otherwise."""
VIEW: Final = "/agent"
"""Where the agent's own namespace is inside."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One sandbox to be made. ``id``: of its session, ``[a-z0-9-]{1,64}``; ``image`` "" is the provider's own choice.

    ``view``: the directory of this machine that is bound at `VIEW`, "" for none. ``sockets``: sockets of this machine
    by where they are inside. ``env`` may hold a token: it is never shown or logged. ``main``: the id of the one command
    it is made for, "" for none: what else is run in it runs beside that, and may end with it. ``login``: the agent's at
    the registry of its image. ``may_pull``: an image that is not there may be fetched.
    """

    id: str
    agent: str
    image: str = ""
    workdir: str = WORKDIR
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    limits: Limits = field(default_factory=Limits)
    view: str = ""
    sockets: Mapping[str, str] = field(default_factory=dict)
    main: str = ""
    login: Login | None = field(default=None, repr=False)
    may_pull: bool = True


@dataclass(frozen=True, slots=True)
class Command:
    """One program to run inside: ``id`` of its exec, ``argv`` as it is (no shell), ``cwd`` "" for the workdir."""

    id: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str = ""
    stdin: bytes = b""


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes that came out."""

    stream: Literal["stdout", "stderr"]
    data: bytes


@dataclass(frozen=True, slots=True)
class Used:
    """What was used so far, by one command or by a whole session; None: this provider cannot tell.

    ``disk_bytes``: what lies in the workdir now.
    """

    cpu_ms: int | None = None
    peak_memory_bytes: int | None = None
    disk_bytes: int | None = None
    network_bytes: int | None = None


Cause: TypeAlias = Literal["", "memory", "disk", "file", "gone"]
"""Which limit ended a command before its time: "" it ended by itself; "file": it made one too large; "gone": its
sandbox was taken away."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a command ended: ``code`` 0..255, 128 + N for signal N, as a shell has it."""

    code: int
    cause: Cause = ""
    used: Used = field(default_factory=Used)


Happening: TypeAlias = Output | Exit


@dataclass(frozen=True, slots=True)
class Inside:
    """What every sandbox of one agent gets: see `Spec`."""

    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    view: str = ""
    sockets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Offer:
    """A provider, what a session costs there in micro-USD an hour, and the image of one that names none."""

    provider: ContainerProvider
    usd_per_hour: int = 0
    image: str = ""


class ContainerProvider(Protocol):
    """An engine of sandboxes. Safe for concurrent use.

    Errors: ENOTCONN the engine is away; EREMOTEIO it failed, with its words in the detail, cleaned of secrets; ENOENT
    no such image, session, or (as Exit 127) program; EOPNOTSUPP what it cannot do, naming it; EINVAL naming the field.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """Of ``cpu memory processes disk network view warm``, what it can limit or give."""
        ...

    async def health(self) -> str:
        """ "" when it can be asked now, else why not. Gives up after a few seconds."""
        ...

    async def images(self) -> Sequence[str]:
        """The names of the images it has now. ENOTCONN."""
        ...

    async def make(self, spec: Spec) -> None:
        """Make the sandbox of *spec*, with an empty workdir. EEXIST when there is one of this id.

        Cancelled or failed half-way it leaves nothing behind that `found` does not show.
        """
        ...

    def run(self, spec: Spec, command: Command) -> AsyncGenerator[Happening]:
        """Run *command* in the sandbox of *spec*: what comes out as it comes, and at the end one `Exit`.

        Closing it ends the command and everything it began. ENOENT when the sandbox is gone. What is not read stops
        the command (a pipe's back-pressure): nothing piles up.
        """
        ...

    async def clone(self, spec: Spec, repo: Repo, secret: str) -> None:
        """Fill its workdir with what *repo* holds; *secret*, "" for none, is used and kept nowhere.

        EREMOTEIO with git's words, cleaned of the secret; EFBIG past the disk limit; ENOENT for a missing subdir.
        """
        ...

    async def quiet(self, spec: Spec) -> None:
        """End every command that runs in it; it stays. ENOENT when it is gone."""
        ...

    async def end(self, id: str) -> None:
        """End everything in the sandbox *id*; only its files stay, until `remove`. Idempotent."""
        ...

    async def found(self) -> Sequence[str]:
        """The ids of all of this runtime that are there: whole, half made, or only files; after a restart too."""
        ...

    async def remove(self, id: str) -> None:
        """End everything in the sandbox *id* and remove it with its files. Idempotent."""
        ...

    def files(self, id: str, limits: Limits) -> FileService:
        """Its workdir as files, none larger than *limits* allow; each call on it is ENOENT once the sandbox is gone."""
        ...

    async def used(self, id: str) -> Used:
        """What it used up to now. ENOENT."""
        ...

    async def aclose(self) -> None:
        """Give back connections. Sandboxes stay. Idempotent."""
        ...
