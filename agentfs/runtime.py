"""The composition root: builds the house from a `Config` and runs it until a signal; the only place where wings meet.

It decides nothing about files, ticks or protocols.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path as FsPath
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from agentfs import logline
from agentfs.checked import Checked
from agentfs.compute.port import ComputeProvider
from agentfs.config import Config, Sandboxes
from agentfs.containers.port import VIEW, ContainerProvider, Inside, Offer
from agentfs.engine.agent import Program
from agentfs.engine.engine import Engine
from agentfs.engine.housing import Housing
from agentfs.engine.journal import hash_of
from agentfs.engine.settings import InlineProgram, LlmProgram, Settings, parse_settings
from agentfs.engine.warm import Run
from agentfs.errors import only
from agentfs.faces.fuse.mount import serve as serve_mount
from agentfs.faces.http import Face, app, serve
from agentfs.house import build
from agentfs.ports import Clock, Signer, Store
from agentfs.providers.clock import SystemClock
from agentfs.providers.compute import catalog
from agentfs.providers.containers import catalog as boxes
from agentfs.providers.keys.kept import keeping
from agentfs.providers.keys.wire import Source
from agentfs.providers.programs.enclosed import Enclosed
from agentfs.providers.programs.execute import Execute
from agentfs.providers.programs.inline import Inline, load_class
from agentfs.providers.programs.llm import Llm
from agentfs.providers.store.memory import MemoryStore
from agentfs.providers.store.sqlite import SqliteStore
from agentfs.spaces import Spaces
from agentfs.state import Running, StateDir
from agentfs.types import Principal
from agentfs.watchdog import watching

if TYPE_CHECKING:
    from agentfs.faces.http.tls import Gate

log = logging.getLogger(__name__)
SOCKET: Final = "/run/agentfs.sock"
"""Where HTTP is inside a sandbox."""


class Programs:
    """Loads programs; knows what environment an exec program gets. ``url`` is set once HTTP listens."""

    def __init__(self, config: Config, clock: Clock, token: Callable[[str], str], enclosed: Run) -> None:
        self._config, self._clock, self._token, self._enclosed = config, clock, token, enclosed
        self.url = ""

    def load(self, agent: str, settings: Settings) -> Program:
        """The program of *agent*. EINVAL when an inline class cannot be loaded."""
        program = settings.program
        if isinstance(program, InlineProgram):
            return Inline(program)
        if isinstance(program, LlmProgram):
            return Llm(program, self._clock)
        if program.sandbox is not None:
            return Enclosed(program, self._enclosed, self._config.limits.output_bytes)
        workdir = self._config.state / "work" / agent
        return Execute(program, self._environment(agent, workdir), workdir, self._config.limits.output_bytes)

    def _environment(self, agent: str, workdir: FsPath) -> Mapping[str, str]:
        known = {
            "PATH": os.environ.get("PATH", os.defpath), "HOME": str(workdir), "LANG": "C.UTF-8",
            "AGENTFS_AGENT": agent, "AGENTFS_URL": self.url, "AGENTFS_TOKEN": self._token(agent),
        }  # fmt: skip
        ca = StateDir(self._config.state).ca / "ca.pem"
        known |= {"AGENTFS_CA": str(ca)} if self._config.tls_cert and ca.exists() else {}
        root = {"AGENTFS_ROOT": str(self._config.mount / "views" / agent)} if self._config.mount else {}
        return known | root

    @staticmethod
    def check(settings: Settings) -> None:
        """EINVAL when an inline class cannot be loaded."""
        if isinstance(settings.program, InlineProgram):
            load_class(settings.program.ref)


@asynccontextmanager
async def opened(config: Config, clock: Clock) -> AsyncIterator[Store]:
    """The store *config* names, closed at the end."""
    store: Store
    if config.store == "memory":
        store = MemoryStore(clock)
    else:
        store = await SqliteStore.open(StateDir(config.state).store, clock)
    try:
        yield store
    finally:
        with trio.CancelScope(shield=True):
            await store.aclose()


@asynccontextmanager
async def models(config: Config) -> AsyncIterator[Mapping[str, tuple[ComputeProvider, str]]]:
    """The servers of models that *config* names, and those that are found here; closed at the end.

    EINVAL, or ENOENT where the package that a named one needs is missing.
    """
    named = {name: (catalog.make(place.kind, place.url), place.key) for name, place in config.providers.items()}
    here = {**await catalog.found(), **catalog.here()} if config.discover else {}
    providers = {name: (provider, "") for name, provider in here.items()} | named
    try:
        yield providers
    finally:
        with trio.CancelScope(shield=True):
            for provider, _ in providers.values():
                await provider.aclose()


@asynccontextmanager
async def engines(config: Config) -> AsyncIterator[Mapping[str, Offer]]:
    """The engines of sandboxes that *config* names, and those that work here; closed at the end, sandboxes stay."""
    home = StateDir(config.state)
    place = boxes.Place(home.sandboxes, home.images, boxes.owner(), hash_of(str(config.state))[:12])
    named = {
        name: Offer(_engine(name, place, each), each.usd_per_hour, each.image)
        for name, each in config.sandboxes.items()
    }
    here = await boxes.found(place) if config.discover else {}
    offers = {name: Offer(provider) for name, provider in here.items() if name not in named} | named
    try:
        yield offers
    finally:
        with trio.CancelScope(shield=True):
            for offer in offers.values():
                await offer.provider.aclose()


def _engine(name: str, place: boxes.Place, wanted: Sandboxes) -> ContainerProvider:
    if wanted.kind == "bubblewrap":
        return boxes.bubblewrap(name, place)
    return boxes.docker(name, place, wanted.socket, pull=wanted.pull, network=wanted.network)


@asynccontextmanager
async def signing(config: Config, clock: Clock, phrase: int) -> AsyncIterator[Signer]:
    """The keys *config* names, opened with the passphrase on the descriptor *phrase* if that is not -1."""
    home = StateDir(config.state)
    source = Source(config.keys, str(home.keys), str(home.keys_key), phrase)
    if config.keeper == "process":
        async with keeping(source, clock) as kept:
            yield kept
    else:
        from agentfs.providers.keys.opening import opened as opened_here  # else this process knows no way to a key

        yield opened_here(source)


class Runtime:
    """One runtime: an engine over a store, its house, and the faces that serve it."""

    def __init__(
        self, config: Config, store: Store, clock: Clock, operator_token: str, signer: Signer,
        providers: Mapping[str, tuple[ComputeProvider, str]], offers: Mapping[str, Offer],
        gate: Gate | None = None,
    ) -> None:  # fmt: skip
        self.config, self.clock, self._store, self._gate = config, clock, store, gate
        self._is_open = trio.Event()  # every door is: what is bound into sandboxes is there
        self._programs = Programs(
            config, clock, lambda agent: self.tokens.of_agent(agent), lambda *given: self.engine.warm.run(*given)
        )
        self.engine = Engine(
            store, clock, config.limits, self._programs.load, self._view, secret=operator_token, signer=signer,
            providers=providers, housing=Housing(offers, self._inside, self._is_open.wait),
        )  # fmt: skip
        self.tokens = self.engine.tokens
        default = parse_settings(msgspec.json.encode({"program": dict(config.default_program)}))
        self._spaces: Spaces
        self.house, self._spaces = build(self.engine, default, Programs.check, _shown(config))
        self._tree = Checked(self.house, config.limits)
        self._missing: str | None = "starting"
        self._served = trio.Event()  # the HTTP face has ended its requests and watches

    def _view(self, agent: str) -> Any:
        return self._spaces.view(Principal("agent", agent))

    async def _inside(self, agent: str) -> Inside:
        """What every sandbox of *agent* gets: its namespace as files and over HTTP, by its own token."""
        home, view = StateDir(self.config.state), ""
        env = {
            "AGENTFS_AGENT": agent,
            "AGENTFS_TOKEN": self.tokens.of_agent(agent),
            "AGENTFS_SOCKET": SOCKET,
            "AGENTFS_URL": "http://localhost",
        }
        if self.config.mount is not None:
            env, view = {**env, "AGENTFS_ROOT": VIEW}, str(self.config.mount / "views" / agent)
        return Inside(env, view, {SOCKET: str(home.socket)})

    def ready(self) -> str | None:
        """None when everything answers, else what is missing."""
        return self._missing

    async def run(self, stop: trio.Event) -> None:
        """Serve until *stop*, then drain."""
        with watching() as heartbeat:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(heartbeat)
                await nursery.start(lambda task_status: self.engine.run(task_status=task_status))
                mounting = trio.CancelScope()
                listening = trio.Event()
                await self._open_doors(nursery, mounting, listening)
                await stop.wait()
                log.info("draining")
                self._missing, self.house.door.is_shut = "stopping", True
                listening.set()
                await self.engine.drain(self.config.drain_seconds)
                with trio.move_on_after(self.config.drain_seconds):
                    await self._served.wait()
                mounting.cancel()
                nursery.cancel_scope.cancel()

    async def _open_doors(self, nursery: trio.Nursery, mounting: trio.CancelScope, stopping: trio.Event) -> None:
        config = self.config
        hosts = {config.address[0], *config.hosts}
        note = self._spaces.report
        certified = self._gate.certified if self._gate else None
        asgi = app(
            self._tree, self.tokens.check, config.limits, hosts=hosts, ready=self.ready, note=note, certified=certified,
            requests=self.engine.requests,
        )  # fmt: skip
        address = await nursery.start(self._serve, asgi, stopping)
        self._programs.url = f"https://{_named(address)}" if self._gate else f"http://{address}"
        if config.mount is not None:
            await nursery.start(self._mount, config.mount, mounting)
        self._missing = None
        self._is_open.set()
        self._announce()

    async def _serve(
        self, face: Face, stopping: trio.Event, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            await serve(
                face, self.config.listen, shutdown=stopping.wait, tls=self._gate, task_status=task_status,
                local=StateDir(self.config.state).socket,
            )  # fmt: skip
        finally:
            self._served.set()

    async def _mount(
        self, at: FsPath, scope: trio.CancelScope, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async def usage() -> tuple[int, int]:
            used, free = await self._store.usage()
            return used, used + free

        with scope:
            service = self._tree.attach(Principal("operator"))
            whose = boxes.owner()
            await serve_mount(
                service, at, usage=usage, lent=(whose.uid, whose.gid), binding=self.config.fuse_binding,
                changes=self.engine.core.versions.telling, task_status=task_status,
            )  # fmt: skip
        if not scope.cancelled_caught and self._missing is None:
            log.warning("unmounted from outside: stopping")
            os.kill(os.getpid(), signal.SIGTERM)

    def _announce(self) -> None:
        place = str(self.config.mount) if self.config.mount else None
        running = Running(url=self._programs.url, pid=os.getpid(), mount=place, version=version("agentfs"))
        StateDir(self.config.state).publish(running)
        log.info("ready at %s, mount %s", running.url, place)


def _named(address: str) -> str:
    """*address* as a certificate can name it: of every interface, loopback."""
    host, _, port = address.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    return f"{host}:{port}"


def _shown(config: Config) -> Mapping[str, Any]:
    return {k: str(v) if isinstance(v, FsPath) else v for k, v in asdict(config).items()}


def _gate(config: Config) -> Gate | None:
    if config.tls_cert is None:
        return None
    from agentfs.faces.http.tls import gate  # here: only a face with TLS waits for what certificates need

    return gate(config.tls_cert, config.tls_key, config.tls_client_ca)


async def _signals(stop: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        async for number in received:
            log.info("signal %s", signal.Signals(number).name)
            stop.set()


async def run(config: Config, phrase: int = -1) -> None:
    """Run one runtime in the foreground until SIGTERM or SIGINT; the caller holds the state directory's lock.

    *phrase* is a descriptor with the passphrase of the keys, or -1; it is closed. EINVAL, EACCES when they do not open.
    ENOENT or EINVAL names a TLS option whose file will not do, before anything is opened.
    """
    gate = _gate(config)
    logline.configure(config.log_level)
    clock, stop, home = SystemClock(), trio.Event(), StateDir(config.state)
    token = home.token.read_text().strip()
    try:
        async with (
            signing(config, clock, phrase) as signer, opened(config, clock) as store, models(config) as providers,
            engines(config) as offers, trio.open_nursery() as nursery,
        ):  # fmt: skip
            nursery.start_soon(_signals, stop)
            await Runtime(config, store, clock, token, signer, providers, offers, gate).run(stop)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise only(group) from group
