"""`Docker`: sandboxes as containers of an engine on this machine that speaks Docker's API.

A session is one container that waits; each command is an exec in it, ended with all it began. One that is made for a
single command has that as its main process, and ends with it. How closed it is: see
`hardened`. The engine must share its process ids and its files with this process. It never trusts an image.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import posixpath
import re
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from agentfs.containers.documents import Limits, Repo
from agentfs.containers.port import Command, Exit, Happening, Spec, Used
from agentfs.errors import error
from agentfs.providers.containers import git
from agentfs.providers.containers.besides import besides
from agentfs.providers.containers.bubblewrap import Bubblewrap
from agentfs.providers.containers.daemon import LONG_S, Daemon
from agentfs.providers.containers.files import HostFiles
from agentfs.providers.containers.hardened import RUNTIME, SESSION, config, keeper, name_of
from agentfs.providers.containers.images import Images, known_as
from agentfs.providers.containers.inmates import Inmates
from agentfs.providers.containers.names import Names
from agentfs.providers.containers.room import Room
from agentfs.providers.containers.running import Box, Running, swept
from agentfs.providers.containers.script import WAIT, told
from agentfs.providers.containers.single import Single
from agentfs.providers.containers.workdir import Owner, Workdir
from agentfs.service import FileService

log = logging.getLogger(__name__)
_ABLE: Final = frozenset({"cpu", "memory", "processes", "disk", "view"})
_HEALTH_S: Final = 3.0
_SECRET_MIN: Final = 6  # characters: what is shorter is no secret, and stands in every text
_INIT: Final = ["/sbin/docker-init", "-s", "--"]
_ENTER: Final = ["/bin/sh", "-c", 'cd -- "$1" || exit 126; shift; exec "$@"', "sh"]
"""The directory is entered inside: the engine would follow a link there with rights that no code has."""
_MAIN: Final = "main"
_MARKS: Final = ".fetched"
_PROFILE: Final = ".seccomp.json"
_NO_PROGRAM: Final = 127
_BEGINS_S: Final = 10.0
_LOOK_S: Final = 0.001
_ID: Final = re.compile(r"[a-z0-9-]{1,64}\Z")


class Docker:
    """Provider ``docker``: see `agentfs.containers.port.ContainerProvider`."""

    def __init__(
        self, top: Path, owner: Owner, runtime: str, socket: str, *, pull: bool = False, network: str = "bridge",
        cloner: Bubblewrap | None = None,
    ) -> None:  # fmt: skip
        """*top* holds the workdirs of this provider and nothing else: what is there `found` shows.

        *runtime*: whose the containers are. *socket*: the path of the engine's. *pull*: images that are not there are
        fetched. *network*: the engine's for sessions that may have one, "" for none. Code runs as *owner*.
        *cloner*: git runs in a sandbox of it, where it is well.
        """
        self._top, self._owner, self._runtime, self._network = top, owner, runtime, network
        self._daemon, self._boxes, self._names = Daemon(socket), dict[str, Box](), Names()
        self._images = Images(self._daemon, top / _MARKS, pull=pull)
        self._rooms, self._cloner = dict[str, Room](), cloner

    @property
    def capabilities(self) -> frozenset[str]:
        return _ABLE | ({"network"} if self._network else set())

    async def health(self) -> str:
        try:
            with anyio.fail_after(2 * _HEALTH_S):
                await self._daemon.call(lambda client: client.ping(), seconds=_HEALTH_S)
        except OSError as exc:  # TimeoutError is one
            return exc.strerror or "container engine: too many wait for it"
        return ""

    async def images(self) -> Sequence[str]:
        found = await self._daemon.call(lambda client: client.images())
        tags = {tag for image in found for tag in image.get("RepoTags") or () if tag != "<none>:<none>"}
        return sorted(map(known_as, tags))

    async def make(self, spec: Spec) -> None:
        if spec.limits.allow_network:
            await self._see_network()
        workdir, image = self._workdir(spec.id), await self._images.get(spec)
        await anyio.to_thread.run_sync(workdir.make)
        try:
            await self._create(spec, image, workdir)
        except BaseException:
            with anyio.CancelScope(shield=True), contextlib.suppress(OSError):  # what is left then, `found` shows
                await self.remove(spec.id)
            raise

    async def _see_network(self) -> None:
        """EOPNOTSUPP when there is none: an engine without a bridge would say nothing and give none."""
        try:
            if not self._network:
                raise error(errno.ENOENT, detail="none is configured")
            await self._daemon.call(lambda client: client.inspect_network(self._network), codes={404: errno.ENOENT})
        except FileNotFoundError as exc:
            raise error(errno.EOPNOTSUPP, detail=f"network: {exc.strerror}") from None

    async def _create(self, spec: Spec, image: Any, workdir: Workdir) -> None:
        profile = "" if await self._daemon.is_docker() else await besides(self._top / _PROFILE, spec)
        cpus = await self._daemon.cpus()
        where = {"workdir": workdir.path, "network": self._network, "cpus": cpus, "profile": profile}
        main = [*_INIT, *WAIT] if await self._is_single(spec) else ()
        asked = config(spec, image, self._owner, self._runtime, main, **where)
        codes = {409: errno.EEXIST, 404: errno.ENOENT, 400: errno.EINVAL}
        made = await self._daemon.call(lambda client: _made(client, asked), seconds=LONG_S, codes=codes)
        _check(made.get("Warnings") or ())
        absent = {404: errno.EOPNOTSUPP}  # a network
        await self._daemon.call(lambda client: client.start(made["Id"]), seconds=LONG_S, codes=absent)
        await self._see_begun(spec, made["Id"])

    async def _is_single(self, spec: Spec) -> bool:
        """Whether the container is to end with one command; what went over a network could not be told then."""
        return bool(spec.main) and not spec.limits.allow_network and await self._daemon.is_docker()

    async def _see_begun(self, spec: Spec, container: str) -> None:
        """Return once the shell of *container* is there. EOPNOTSUPP when its image has none, or nothing is seen."""
        with contextlib.suppress(FileNotFoundError):
            box = await self._box(spec.id)
            if not box.inmates.is_seen() and not box.inmates.is_gone():
                raise error(errno.EOPNOTSUPP, detail="container engine: its processes are not to be seen from here")
            if root := await _begun(box):
                box.roots |= {_MAIN: root} if await self._is_single(spec) else {}
                return
        with contextlib.suppress(FileNotFoundError):  # it has ended
            await self._daemon.call(lambda client: client.kill(container), codes={409: errno.ENOENT})
        code = (await self._daemon.call(lambda client: client.wait(container)))["StatusCode"]
        is_told = await self._daemon.is_docker()  # by others it is not, but nothing else ends it so soon
        if code == _NO_PROGRAM or not is_told:
            raise error(errno.EOPNOTSUPP, detail="image: it has no /bin/sh")
        raise error(errno.EREMOTEIO, detail=f"container engine: its container does not begin, and ends with {code}")

    async def _box(self, id: str) -> Box:
        """The container of session *id*, running. ENOENT."""
        about = await self._daemon.call(lambda client: client.inspect_container(name_of(id)), codes={404: errno.ENOENT})
        state, known = about["State"], self._boxes.get(id)
        if (about["Config"]["Labels"] or {}).get(RUNTIME) != self._runtime or not state["Running"]:
            raise error(errno.ENOENT, detail=f"session {id}: its container does not run")
        if state["Paused"] and (known is None or not known.lock.locked()):  # as a crash may leave it
            await self._daemon.call(lambda client: client.unpause(about["Id"]))
        if known is None or (known.id, known.inmates.pid) != (about["Id"], state["Pid"]):
            inmates = Inmates(about["Id"], state["Pid"], keeper(self._owner))
            known = self._boxes[id] = Box(about["Id"], inmates, self._workdir(id))
        return known

    async def run(self, spec: Spec, command: Command) -> AsyncGenerator[Happening]:
        is_main = command.id == spec.main and await self._is_single(spec)
        made = self._boxes.get(spec.id) if is_main else None
        box = made if made is not None and not made.inmates.is_gone() else await self._box(spec.id)
        env = {"HOME": spec.workdir, **spec.env, **command.env}
        hide = [value for value in env.values() if len(value) >= _SECRET_MIN and value != spec.workdir]
        cwd = posixpath.join(spec.workdir, command.cwd)
        running: Running
        if is_main:
            running = Single(self._daemon, box, spec.limits, hide, told(command.argv, env, cwd))
        else:
            words = [*await self._init(box), *_ENTER, cwd, *command.argv]
            asked = {"cmd": words, "environment": env, "workdir": spec.workdir}
            asked["user"] = f"{self._owner.uid}:{self._owner.gid}"
            running = Running(self._daemon, box, spec.limits, hide, asked)
        with self._room(spec.id).commanded():
            try:
                await running.begin(command.stdin)
                while True:
                    happening = await running.next()
                    yield happening
                    if isinstance(happening, Exit):
                        return
            finally:
                with anyio.CancelScope(shield=True):
                    await running.close()

    async def _init(self, box: Box) -> Sequence[str]:
        """What a command is begun with, to keep what it leaves behind among its own: the init that is inside."""
        if await self._daemon.is_docker():
            return _INIT
        own = box.inmates.init()  # never the code's, which is the main process of no such engine
        return [own, "--"] if own else []

    async def clone(self, spec: Spec, repo: Repo, secret: str) -> None:
        workdir, cloner = (await self._box(spec.id)).workdir, self._cloner
        if cloner is not None and (reason := await cloner.health()):
            log.warning("git runs in no sandbox: %s", reason)
            cloner = None
        with self._room(spec.id).commanded():
            run = cloner.enclose if cloner else None
            await git.clone(workdir, self._owner, repo, secret, spec.limits, run)

    async def quiet(self, spec: Spec) -> None:
        box = await self._box(spec.id)
        with anyio.CancelScope(shield=True):
            async with box.lock:
                box.roots.clear()
                await swept(self._daemon, box)

    async def found(self) -> Sequence[str]:
        ours = {"label": [f"{RUNTIME}={self._runtime}"]}
        made = await self._daemon.call(lambda client: client.containers(all=True, filters=ours))
        return sorted({one["Labels"][SESSION] for one in made} | await anyio.to_thread.run_sync(self._kept))

    def _kept(self) -> set[str]:
        return {path.name for path in self._top.iterdir() if _ID.match(path.name)} if self._top.is_dir() else set()

    async def end(self, id: str) -> None:
        ours = {"label": [f"{RUNTIME}={self._runtime}", f"{SESSION}={id}"]}
        with anyio.CancelScope(shield=True):
            made = await self._daemon.call(lambda client: client.containers(all=True, filters=ours))
            for one in made:
                await self._daemon.drop(one["Id"])
            self._boxes.pop(id, None)

    async def remove(self, id: str) -> None:
        workdir = self._workdir(id)
        await self.end(id)
        await anyio.to_thread.run_sync(workdir.remove)
        self._rooms.pop(id, None)

    def _workdir(self, id: str) -> Workdir:
        if not _ID.match(id):
            raise error(errno.EINVAL, detail="id: want a-z, 0-9 and -, at most 64")
        return Workdir(self._top, id, self._owner)

    def files(self, id: str, limits: Limits) -> FileService:
        room = self._room(id)
        room.limits, path = limits, self._workdir(id).path
        return HostFiles(path, self._owner, file_bytes=limits.file_bytes, names=self._names, room=room)

    def _room(self, id: str) -> Room:
        return self._rooms.setdefault(id, Room(self._workdir(id)))

    async def used(self, id: str) -> Used:
        known = self._boxes.get(id)
        if known is not None and known.used is not None:  # it has ended, and all that counted
            size, _ = await anyio.to_thread.run_sync(known.workdir.used)
            return replace(known.used, disk_bytes=size)
        box = await self._box(id)
        said = await self._daemon.call(
            lambda client: client.stats(box.id, stream=False, one_shot=True), codes={404: errno.ENOENT}
        )
        size, _ = await anyio.to_thread.run_sync(box.workdir.used)
        network = sum(one["rx_bytes"] + one["tx_bytes"] for one in (said.get("networks") or {}).values())
        cpu_ns = said["cpu_stats"]["cpu_usage"]["total_usage"]
        return Used(cpu_ns // 1_000_000, box.inmates.peak_bytes(), size, network)

    async def aclose(self) -> None:
        self._daemon.close()
        if self._cloner is not None:
            await self._cloner.aclose()


def _made(client: Any, asked: dict[str, Any]) -> Any:
    return client.create_container(**asked | {"host_config": client.create_host_config(**asked["host_config"])})


async def _begun(box: Box) -> int:
    """The first process of *box* below its init, once that is a program; 0 when it ends instead."""
    until = time.monotonic() + _BEGINS_S
    while time.monotonic() < until:
        if (root := box.inmates.begun()) or box.inmates.is_gone():
            return root
        await anyio.sleep(_LOOK_S)
    return 0


def _check(warnings: Sequence[str]) -> None:
    """EOPNOTSUPP when the engine says that it leaves out a limit; that there is no swap to limit is no loss."""
    for words in warnings:
        if "discarded" in words.lower() and "swap" not in words.lower():
            raise error(errno.EOPNOTSUPP, detail=f"container engine: {words[:500]}")
