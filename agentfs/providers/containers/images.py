"""`Images`: the image of a sandbox: there, or fetched with its agent's own login, and only for who may have it.

What was fetched with a login is marked: before it is used again the registry is asked whether that agent may read it.
"""

from __future__ import annotations

import base64
import errno
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
from docker.errors import APIError

from agentfs.containers.port import Spec
from agentfs.containers.registries import Login, registry_of
from agentfs.errors import error
from agentfs.providers.containers.daemon import AWAY, LONG_S, Client, Daemon, cleaned

_INSPECT: Final = {404: errno.ENOENT, 400: errno.EINVAL}
_REFUSED: Final = ("unauthorized", "denied", "no basic auth", "forbidden", "authentication required", "incorrect user")
_ABSENT: Final = ("not found", "manifest unknown", "name unknown")


class Images:
    """The images of the engine *daemon*; the marks lie in the directory *marks*. Safe for concurrent use."""

    def __init__(self, daemon: Daemon, marks: Path, *, pull: bool) -> None:
        self._daemon, self._marks, self._pull = daemon, marks, pull

    async def get(self, spec: Spec) -> Any:
        """What the engine knows of the image of *spec*, which is fetched when it is not there.

        ENOENT there is none and it may not be fetched, or its registry has none; EACCES the policy or the registry
        refuses; EINVAL it is no name; EREMOTEIO the registry is away.
        """
        if not spec.image:
            raise error(errno.EINVAL, detail="image: name one")
        try:
            image = await self._inspected(spec.image)
        except FileNotFoundError:
            await self._fetch(spec)
            return await self._inspected(spec.image)
        if await anyio.to_thread.run_sync(self._is_marked, spec.image, image["Id"]):
            await self._see_right(spec)
        return image

    async def _inspected(self, name: str) -> Any:
        return await self._daemon.call(lambda client: client.inspect_image(name), codes=_INSPECT)

    async def _fetch(self, spec: Spec) -> None:
        if not self._pull:
            raise error(errno.ENOENT, detail=f"image: {spec.image!r} is not here, and this provider fetches none")
        if not spec.may_pull:
            raise error(errno.EACCES, detail=f"image: {spec.image!r} is not here, and the policy forbids to fetch it")
        if spec.login is not None:  # before: a crash must not leave it open to others
            await anyio.to_thread.run_sync(self._mark, spec.image)
        await self._asked(spec, lambda client, auth: _pulled(client, spec.image, auth))
        if spec.login is not None:
            image = await self._inspected(spec.image)
            await anyio.to_thread.run_sync(self._close, image["Id"], image.get("RepoTags") or ())

    def _close(self, id: str, names: Sequence[str]) -> None:
        """Mark the image *id*, unless it is open to all under another of its *names* already."""
        if all(self._is_marked(name) for name in names):
            self._mark(id)

    async def _see_right(self, spec: Spec) -> None:
        await self._asked(spec, lambda client, auth: _read(client, spec.image, auth))

    async def _asked(self, spec: Spec, what: Callable[[Client, dict[str, str]], str]) -> None:
        """Ask a registry as the agent of *spec*, and hear no complaint; given up when cancelled."""
        auth = _auth(spec.login)
        try:
            said = await anyio.to_thread.run_sync(
                lambda: what(self._daemon.client(LONG_S), auth), abandon_on_cancel=True, limiter=self._daemon.registries
            )
        except APIError as exc:
            raise _failed(spec, str(exc.explanation or exc)) from None
        except AWAY as exc:
            raise self._daemon.away(exc) from None
        if said:
            raise _failed(spec, said)

    def _is_marked(self, *names: str) -> bool:
        return any((self._marks / _file(name)).exists() for name in names)

    def _mark(self, name: str) -> None:
        self._marks.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._marks.mkdir(mode=0o700, exist_ok=True)
        (self._marks / _file(name)).touch()


def _auth(login: Login | None) -> dict[str, str]:
    """Nobody, when there is none: what the user of the runtime is logged in to is no agent's."""
    return {} if login is None else {"username": login.username, "password": login.password}


def _pulled(client: Client, image: str, auth: dict[str, str]) -> str:
    """Fetch *image*; what went wrong in the midst of it."""
    lines = client.pull(image, auth_config=auth, stream=True, decode=True)
    return next((str(line["error"]) for line in lines if "error" in line), "")


def _read(client: Client, image: str, auth: dict[str, str]) -> str:
    """Ask the registry what *image* is."""
    client.inspect_distribution(image, auth_config=auth)
    return ""


def _failed(spec: Spec, words: str) -> OSError:
    """What the engine's *words* on a registry mean."""
    code = errno.EREMOTEIO
    if any(said in words.lower() for said in _REFUSED):
        code = errno.EACCES
    elif any(said in words.lower() for said in _ABSENT):
        code = errno.ENOENT
    whose = "with the agent's token" if spec.login is not None else "without a token"
    registry = registry_of(spec.image)
    return error(code, detail=f"image: {spec.image!r} of {registry}, {whose}: {cleaned(words, _hidden(spec.login))}")


def _hidden(login: Login | None) -> Sequence[str]:
    """The forms in which a password may be told."""
    if login is None:
        return ()
    pair = base64.b64encode(f"{login.username}:{login.password}".encode()).decode()
    return login.password, pair


def _file(name: str) -> str:
    return hashlib.sha256(known_as(name).encode()).hexdigest()


def known_as(name: str) -> str:
    """The one way to write *name*, as the engine tells it."""
    short = name.removeprefix("index.").removeprefix("docker.io/").removeprefix("library/")
    return short if ":" in short.rpartition("/")[2] or "@" in short else f"{short}:latest"
