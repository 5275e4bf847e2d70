"""The three ways to the same tree: in this process, over HTTP, and on a mount; each a `FileService` for the suites.

`EXPRESSES` is the one table of what a way cannot say; nothing is left out anywhere else.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path as FsPath
from typing import Final

import anyio
import msgspec

from agentfs.checked import Checked
from agentfs.compute.port import ComputeProvider
from agentfs.engine.agent import Program
from agentfs.engine.audit import audit
from agentfs.engine.engine import NO_PROVIDERS, NO_SANDBOXES, Engine
from agentfs.engine.housing import Housing
from agentfs.engine.settings import ExecProgram, InlineProgram, LlmProgram, Settings
from agentfs.house import build
from agentfs.limits import Limits
from agentfs.ports import Store
from agentfs.providers.clock import SystemClock
from agentfs.providers.keys.keeper import Keeper
from agentfs.providers.programs.enclosed import Enclosed
from agentfs.providers.programs.inline import Inline, load_class
from agentfs.providers.programs.llm import Llm
from agentfs.providers.store.memory import MemoryStore
from agentfs.providers.store.sqlite import SqliteStore
from agentfs.service import FileService
from agentfs.spaces import Spaces
from agentfs.state import StateDir
from agentfs.types import Kind, Mode, Path, Principal
from agentfs.views import Below
from conformance.overhttp import HttpTree, Wire
from conformance.overmount import KindOf, MountTree

PROGRAM: Final = {"kind": "inline", "ref": "conformance.program:Echo"}
STORES: Final = ("memory", "sqlite")
START_S: Final = 60.0

ALL: Final = frozenset(
    {
        "open",  # opening is an act of its own: it can refuse, reserve, and fix a snapshot
        "handle",  # a closed handle, or one opened for less, answers EBADF
        "short",  # a write tells how much of it was taken
        "pieces",  # one document may come in several writes of one handle
        "stale",  # a handle outlives its file, and what it then commits is ESTALE
        "qid",  # a file has an identity number
        "kind",  # a file says its kind
        "version",  # a file says its version, and a change may name the one it wants (If-Match)
        "cursor",  # a record comes with its cursor
        "noreplace",  # a rename may refuse to replace
        "group",  # modes have bits for others than the owner
    }
)
EXPRESSES: Final = {
    "in-process": ALL,
    # HTTP has requests, not handles: one request is open, write, flush and close.
    "http": ALL - {"open", "handle", "short", "pieces", "stale", "qid"},
    # A mount has no words for kinds, versions and cursors, and shows the owner's bits only; renameat2 is not in Python.
    "fuse": ALL - {"kind", "version", "cursor", "noreplace", "group"},
}


@dataclass(frozen=True, slots=True)
class Driver:
    """One way to one runtime: the operator's tree, and what this way can express.

    ``place`` is the mount point, where there is one; ``wire`` the HTTP client.
    """

    name: str
    tree: FileService
    expresses: frozenset[str]
    place: FsPath | None = None
    wire: Wire | None = None

    async def agent(self, name: str, **config: object) -> FileService:
        """A new agent that runs `conformance.program`: its directory as the operator sees it."""
        doc = msgspec.json.encode({"name": name, "program": PROGRAM, **config})
        async with await self.tree.open(Path("agents/new"), Mode.READ | Mode.WRITE) as handle:
            await handle.write(doc, 0)
            answer = msgspec.json.decode(await handle.read(1 << 16, 0))
        assert answer["id"] == name, answer
        return Below(self.tree, Path(f"agents/{name}"))


async def open_store(name: str, folder: FsPath) -> Store:
    """A fresh store of the provider *name* in *folder*."""
    clock = SystemClock()
    return MemoryStore(clock) if name == "memory" else await SqliteStore.open(folder / "store.db", clock)


@asynccontextmanager
async def in_process(
    store_name: str, folder: FsPath, providers: Mapping[str, tuple[ComputeProvider, str]] = NO_PROVIDERS,
    housing: Housing = NO_SANDBOXES,
) -> AsyncIterator[Driver]:  # fmt: skip
    """A house over a running engine, in this event loop, behind the same checks as every face."""
    store = await open_store(store_name, folder)
    spaces: list[Spaces] = []

    def load(agent: str, settings: Settings) -> Program:
        if isinstance(settings.program, LlmProgram):
            return Llm(settings.program, SystemClock())
        if isinstance(settings.program, ExecProgram):
            return Enclosed(settings.program, engine.warm.run, Limits().output_bytes)
        assert isinstance(settings.program, InlineProgram)
        return Inline(settings.program)

    def check(settings: Settings) -> None:
        if isinstance(settings.program, InlineProgram):
            load_class(settings.program.ref)

    def view(agent: str) -> FileService:
        return spaces[0].view(Principal("agent", agent))

    engine = Engine(
        store, SystemClock(), Limits(), load, view, signer=Keeper.fresh(), providers=providers, housing=housing
    )
    default = Settings(program=InlineProgram(ref=str(PROGRAM["ref"])))
    house, made = build(engine, default, check, {"store": store_name})
    spaces.append(made)
    try:
        async with anyio.create_task_group() as group:
            await group.start(lambda task_status: engine.run(task_status=task_status))
            yield Driver("in-process", Checked(house, Limits()).attach(Principal("operator")), EXPRESSES["in-process"])
            group.cancel_scope.cancel()
        assert list(await store.check()) == [] and list(await audit(store)) == []
    finally:
        await store.aclose()


class Runtime:
    """A whole runtime in a child process, with an HTTP address and, if wanted, a mount."""

    def __init__(self, store_name: str, folder: FsPath, *, fuse: bool = True, settings: Sequence[str] = ()) -> None:
        self.state, self.place = StateDir(folder / "state"), folder / "mnt"
        self.log = folder / "log"
        place = ["--mount", str(self.place)] if fuse else ["--no-fuse"]
        self._argv = [
            sys.executable, "-m", "agentfs.cli", "serve", "--state", str(self.state.path), "--store", store_name,
            "--listen", "127.0.0.1:0", *place,
            *(f"--set={setting}" for setting in ("discover=false", "keeper=inline", *settings)),
        ]  # fmt: skip

    def start(self) -> None:
        """Start it and wait until it is ready. It must be stopped, whatever happens."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("AGENTFS_")}
        self.state.prepare()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self._argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for _ in range(int(START_S / 0.05)):
            running = self.state.running()
            if running is not None and running.pid == self.process.pid:
                self.url, self.token = running.url, self.state.token.read_text().strip()
                return
            if self.process.poll() is not None:
                break
            select.select([], [], [], 0.05)
        self.stop()
        raise RuntimeError(f"the runtime did not start: {self.log.read_text()[-2000:]}")

    def stop(self) -> int:
        """SIGTERM, then SIGKILL and a lazy unmount where that does not end it; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait(60)
        while f" {self.place} " in FsPath("/proc/self/mountinfo").read_text():
            subprocess.run(["umount", "-l", str(self.place)], timeout=20, check=True)
        return code

    @asynccontextmanager
    async def http(self, token: str = "") -> AsyncIterator[Driver]:
        """This runtime over HTTP."""
        wire = Wire(self.url, token or self.token)
        async with wire.client:
            yield Driver("http", HttpTree(wire), EXPRESSES["http"], self.place, wire)

    @asynccontextmanager
    async def fuse(self) -> AsyncIterator[Driver]:
        """This runtime on its mount; kinds come from HTTP."""
        wire = Wire(self.url, self.token)
        async with wire.client:
            tree = HttpTree(wire)
            yield Driver("fuse", MountTree(self.place, _kinds(tree)), EXPRESSES["fuse"], self.place, wire)


def _kinds(tree: HttpTree) -> KindOf:
    known: dict[Path, Kind] = {}

    async def kind_of(path: Path) -> Kind:
        if path not in known:
            try:
                found = (await tree.stat(path)).kind
            except OSError as exc:
                if exc.errno != errno.ENOENT:
                    raise
                return Kind.FILE  # gone since, or not there yet
            if len(known) > 10_000:
                known.clear()
            known[path] = found
        return known[path]

    return kind_of


DRIVERS: Final = tuple(EXPRESSES)
