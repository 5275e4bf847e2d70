"""`Daemon`: a container engine behind its socket: calls of the `docker` package in threads, their failures as errnos.

It knows nothing of sandboxes: what is asked is in `agentfs.providers.containers.docker`.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias, TypeVar

import anyio
import anyio.to_thread
import requests
import urllib3
from docker import APIClient
from docker.errors import APIError, DockerException

from agentfs.errors import error

_QUICK_S: Final = 5.0  # for questions
_PODMAN_S: Final = 20.0  # for the same: its answers wait for locks that its own processes hold
LONG_S: Final = 30.0  # for what makes and unmakes
_AT_ONCE: Final = 16
_WORDS: Final = 500
_TRIES: Final = 100
_PAUSE_S: Final = 0.1
AWAY: Final = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)
_NO_VERSION: Final = "Error while fetching server API version"  # the words of the first question, unanswered
_FAILED: Final = 500
_MEANT: Final = {"already in use": 409, "can only kill running": 409, "invalid reference format": 400}
T = TypeVar("T")
Client: TypeAlias = Any  # the package has no types
Errnos: TypeAlias = Mapping[int, int]
"""The errno for each HTTP status of the engine that means more than "it failed"."""


class Daemon:
    """One engine. Safe for concurrent use; nothing here blocks the loop."""

    def __init__(self, path: str) -> None:
        """*path*: of its socket on this machine, where what it binds has to be."""
        self.path = path
        self._clients: dict[float, Client] = {}
        self._is_docker: bool | None = None
        self._cpus, self._version = 0, ""
        self._limiter = anyio.CapacityLimiter(_AT_ONCE)
        self.registries = anyio.CapacityLimiter(_AT_ONCE)
        """For what waits for others: it must not hold up the engine's own."""

    async def call(
        self,
        what: Callable[[Client], T],
        *,
        seconds: float | None = None,
        codes: Errnos | None = None,
        hide: Iterable[str] = (),
    ) -> T:
        """*what* of a client, in a thread; it is waited for even when cancelled, so that it is known what was done.

        ENOTCONN when there is no answer for *seconds* (else as a question takes); EREMOTEIO with the engine's words,
        without the values of *hide*.
        """
        question_s = _PODMAN_S if self._is_docker is False else _QUICK_S
        patience = question_s if seconds is None else seconds
        try:
            return await anyio.to_thread.run_sync(lambda: what(self.client(patience)), limiter=self._limiter)
        except APIError as exc:
            code = (codes or {}).get(_status(exc), errno.EREMOTEIO)
            raise error(code, detail=cleaned(str(exc.explanation or exc), hide)) from None
        except DockerException as exc:
            if _NO_VERSION in str(exc):
                raise self.away(exc) from None
            raise error(errno.EREMOTEIO, detail=cleaned(str(exc), hide)) from None
        except AWAY as exc:
            raise self.away(exc) from None

    def away(self, exc: BaseException) -> OSError:
        """The error of *exc*, one of `AWAY`."""
        return error(errno.ENOTCONN, detail=f"container engine at {self.path}: {_reason(exc)}")

    def client(self, seconds: float) -> Client:
        """The client that waits for an answer so long, in a thread. Raises one of `AWAY`."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as knock:
            knock.connect(self.path)  # the package would leave its socket open when nobody is there
        client = self._clients.get(seconds)
        if client is None:
            client = APIClient(base_url=f"unix://{self.path}", version="auto", timeout=seconds)
            client = self._clients.setdefault(seconds, client)
        return client

    async def drop(self, container: str) -> None:
        """Remove *container* with what runs in it, and see it gone. Idempotent."""
        codes = {404: errno.ENOENT, 409: errno.EAGAIN}  # 409: it is being removed
        for _ in range(_TRIES):
            try:
                await self.call(
                    lambda client: client.remove_container(container, v=True, force=True), seconds=LONG_S, codes=codes
                )
            except FileNotFoundError:
                return
            except BlockingIOError:
                await anyio.sleep(_PAUSE_S)
        raise error(errno.EREMOTEIO, detail="container engine: a container does not go")

    async def is_docker(self) -> bool:
        """Whether it is Docker itself, and not another engine that speaks its language."""
        if self._is_docker is None:
            about = await self.call(lambda client: client.version())
            self._is_docker = any(part.get("Name") == "Engine" for part in about.get("Components") or [])
        return self._is_docker

    async def cpus(self) -> int:
        """How many processors its machine has."""
        if not self._cpus:
            self._cpus = (await self.call(lambda client: client.info()))["NCPU"]
        return self._cpus

    async def version(self) -> str:
        """The version of the language both speak, such as ``1.41``."""
        if not self._version:
            self._version = str(await self.call(lambda client: client.api_version))
        return self._version

    def close(self) -> None:
        """Give back the connections. Idempotent."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()


def _status(exc: APIError) -> int:
    """The HTTP status of *exc*, or the one that is meant by an engine that answers 500 to nearly all."""
    status, words = exc.response.status_code if exc.response is not None else 0, str(exc.explanation or "")
    return next((meant for said, meant in _MEANT.items() if said in words), status) if status == _FAILED else status


def cleaned(words: str, hide: Iterable[str]) -> str:
    """The first of *words*, without the values of *hide*."""
    for value in hide:
        if value:
            words = words.replace(value, "[hidden]")
    return " ".join(words.split())[:_WORDS]


def _reason(exc: BaseException) -> str:
    if isinstance(exc, requests.exceptions.Timeout | urllib3.exceptions.TimeoutError) or "timed out" in str(exc):
        return "no answer"
    return "cannot be reached"
