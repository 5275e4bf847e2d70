"""containers/auth on every face: an agent's token lets it have the images of a real registry that asks who one is."""

from __future__ import annotations

import base64
import errno
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trio
from boxes import OWNER
from boxkit import ran
from dockerkit import BUSYBOX, Engine
from engines import fails
from faces import call, load, put, whole
from machine import free_port

from agentfs.containers.port import Offer
from agentfs.engine.housing import Housing
from agentfs.providers.containers.docker import Docker
from agentfs.service import FileService
from agentfs.types import Path as TreePath
from agentfs.views import Below
from conformance.drivers import Driver, Runtime, in_process

ADA, BOB = "hush-hush-ada", "hush-hush-bob"
USERS = """\
ada:$2y$04$1EuIGOUJHjIraIIDZWccIu2cJzIfA.CY4Ua6yf5ZaGdkzvWhdNyY2
bob:$2y$04$Rxe94ek1ASDvq1gTxJguL.SotWKv5h1p2uMKdStMBsWWEJyxqftRq
"""
CONFIG = """\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {top}/data}}}}
http: {{addr: "127.0.0.1:{port}"}}
auth: {{htpasswd: {{realm: closed, path: {top}/users}}}}
"""
# httpx leaves the generators of a stream that was cancelled half-way to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
TOKEN = "containers/auth/token"
STATUS = "containers/auth/status"


@dataclass(frozen=True)
class Registry:
    """A closed registry and the image it has."""

    host: str
    engine: Engine

    @property
    def image(self) -> str:
        return f"{self.host}/closed/busybox:1"

    @property
    def same(self) -> str:
        """An image there that is open to all under another name."""
        return f"{self.host}/closed/same:1"

    def token(self, username: str, password: str) -> dict[str, str]:
        return {"registry": self.host, "username": username, "password": password}

    def forget(self) -> None:
        """The engine has none of it."""
        self.engine.docker("rmi", "-f", self.image, self.same, check=False)


@pytest.fixture
def registry(served: Registry) -> Iterator[Registry]:
    served.forget()
    yield served
    served.forget()


@pytest.fixture(scope="module")
def served(docker_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    top, port = tmp_path_factory.mktemp("registry"), free_port()
    (top / "users").write_text(USERS)
    (top / "config.yml").write_text(CONFIG.format(top=top, port=port))
    argv = ["setpriv", "--pdeathsig", "KILL", "docker-registry", "serve", str(top / "config.yml")]
    with (top / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        served = Registry(f"127.0.0.1:{port}", docker_engine)
        until = time.monotonic() + 60
        while not _answers(served.host):
            assert process.poll() is None and time.monotonic() < until, (top / "log").read_text()
            time.sleep(0.05)
        auth = base64.b64encode(f"ada:{ADA}".encode()).decode()
        (top / "config.json").write_text(json.dumps({"auths": {served.host: {"auth": auth}}}))
        (top / "Dockerfile").write_text(f"FROM {BUSYBOX}\nLABEL closed=yes\n")
        docker_engine.docker("build", "--network", "none", "-t", served.image, str(top))
        docker_engine.docker("tag", BUSYBOX, served.same)
        for image in (served.image, served.same):
            docker_engine.docker("--config", str(top), "push", image)
        yield served
    finally:
        process.kill()
        process.wait()


def _answers(host: str) -> bool:
    try:
        return httpx.get(f"http://{host}/v2/", trust_env=False).status_code == 401
    except httpx.TransportError:
        return False


@asynccontextmanager
async def housed(way: str, folder: Path, engine: Engine, *, pull: bool = True) -> AsyncIterator[Driver]:
    """The way *way* (DRIVER-STORE) to a runtime whose sandboxes are containers of *engine*."""
    name, _, store = way.rpartition("-")
    async with AsyncExitStack() as stack:
        if name == "in-process":
            box = Docker(folder / "containers", OWNER, "auth", str(engine.socket), pull=pull)
            stack.push_async_callback(box.aclose)
            housing = Housing({"docker": Offer(box, image=BUSYBOX)})
            yield await stack.enter_async_context(in_process(store, folder, housing=housing))
            return
        places = {"docker": {"kind": "docker", "socket": str(engine.socket), "image": BUSYBOX, "pull": pull}}
        runtime = Runtime(store, folder, fuse=name == "fuse", settings=[f"sandboxes={json.dumps(places)}"])
        await trio.to_thread.run_sync(runtime.start)
        stack.callback(runtime.stop)
        yield await stack.enter_async_context(runtime.fuse() if name == "fuse" else runtime.http())


@pytest.fixture(params=["in-process-sqlite", "http-memory", "fuse-sqlite"])
async def driver(request: pytest.FixtureRequest, tmp_path: Path, docker_engine: Engine) -> AsyncIterator[Driver]:
    async with housed(request.param, tmp_path, docker_engine) as driver:
        yield driver
    await trio.to_thread.run_sync(untold, tmp_path, docker_engine)


def untold(top: Path, engine: Engine) -> None:
    """No password is in a file of the runtime, in its log or in the engine's."""
    for path in [*top.glob("log"), *top.glob("**/*.db*"), engine.top / "log"]:
        assert ADA.encode() not in path.read_bytes() and BOB.encode() not in path.read_bytes(), path


async def agents(driver: Driver, *names: str) -> list[FileService]:
    """New agents as they see themselves."""
    for name in names:
        await driver.agent(name)
    return [Below(driver.tree, TreePath(f"views/{name}")) for name in names]


async def refused(own: FileService, code: str, *words: str, **request: object) -> None:
    """A session fails so, and does not tell a password."""
    result = await ran(own, "true", **request)
    assert result["errno"] == code and all(word in result["error"] for word in words), result
    assert ADA not in str(result) and BOB not in str(result)


async def test_a_token_opens_a_registry_for_its_agent_alone(driver: Driver, registry: Registry) -> None:
    ada, bob, eve = await agents(driver, "ada", "bob", "eve")
    await refused(ada, "EACCES", registry.image, "without a token", image=registry.image)
    await put(ada, json.dumps(registry.token("ada", "wrong")).encode(), TOKEN)
    await refused(ada, "EACCES", registry.image, "with the agent's token", image=registry.image)
    await put(ada, json.dumps(registry.token("ada", ADA)).encode(), TOKEN)
    await refused(eve, "EACCES", "without a token", image=registry.image)
    assert (await ran(ada, "echo got it", image=registry.image))["stdout"] == "got it\n"
    await refused(eve, "EACCES", "without a token", image=registry.image)  # though the engine has it now
    await put(eve, json.dumps(registry.token("ada", "wrong")).encode(), TOKEN)
    await refused(eve, "EACCES", "with the agent's token", image=registry.image)
    id = registry.engine.docker("inspect", "--format", "{{.Id}}", registry.image).stdout.strip()
    for name in (id, id.removeprefix("sha256:")[:12]):
        assert (await ran(eve, "true", image=name))["errno"], name
    await put(bob, json.dumps(registry.token("bob", BOB)).encode(), TOKEN)
    assert (await ran(bob, "echo too", image=registry.image))["stdout"] == "too\n"
    await put(bob, json.dumps({"registry": registry.host}).encode(), TOKEN)
    assert await load(bob, STATUS) == {}
    await refused(bob, "EACCES", "without a token", image=registry.image)
    absent = registry.image.replace("busybox", "nothing")
    await refused(ada, "ENOENT", absent, "with the agent's token", image=absent)
    assert (await ran(ada, "true", image=registry.same))["exit_code"] == 0
    await refused(eve, "EACCES", "with the agent's token", image=registry.same)
    assert (await ran(eve, "echo open"))["stdout"] == "open\n"  # it was there without a token


async def test_a_token_is_never_read_and_told_only_to_be_there(driver: Driver, registry: Registry) -> None:
    (ada,) = await agents(driver, "ada")
    assert await load(ada, STATUS) == {}
    await put(ada, json.dumps(registry.token("ada", ADA)).encode(), TOKEN)
    await fails(errno.EACCES, whole(ada, TOKEN))
    status = await load(ada, STATUS)
    assert set(status) == {registry.host} and set(status[registry.host]) == {"set", "at"}
    secret = await whole(ada, "secrets/status")
    assert registry.host.encode() not in secret
    for reference in (f"registries/{registry.host}", registry.host):
        result = await ran(ada, "echo $X", env={"X": f"secret:{reference}"})
        assert result["errno"] == "ENOENT" and reference in result["error"]
    for wrong, word in [
        (json.dumps([ADA]), "token"),
        (json.dumps({"registry": "no host/x", "username": "ada", "password": ADA}), "registry"),
        (json.dumps({"registry": registry.host, "password": ADA}), "username"),
        (json.dumps({"registry": registry.host, "username": "a\nb", "password": ADA}), "username"),
        (json.dumps(registry.token("ada", ADA) | {"more": 1}), "more"),
        (json.dumps({"registry": "elsewhere.example"}), ""),
    ]:
        with pytest.raises(OSError) as caught:
            await put(ada, wrong.encode(), TOKEN)
        assert caught.value.errno == (errno.EINVAL if word else errno.ENOENT) and ADA not in str(caught.value)
        assert driver.name == "fuse" or word in str(caught.value)


async def test_what_may_not_be_fetched_is_told(tmp_path: Path, docker_engine: Engine, registry: Registry) -> None:
    async with housed("in-process-memory", tmp_path / "one", docker_engine) as driver:
        (ada,) = await agents(driver, "ada")
        await put(ada, json.dumps(registry.token("ada", ADA)).encode(), TOKEN)
        await put(driver.tree, b'{"allow_pull": false}', "agents/ada/containers/policy")
        await refused(ada, "EACCES", registry.image, "not here", "policy", image=registry.image)
        await put(driver.tree, b'{"allowed_images": ["mine/*"]}', "agents/ada/containers/policy")
        await fails(errno.EACCES, call(ada, "containers/new", {"commands": ["true"], "image": registry.image}))
    async with housed("in-process-memory", tmp_path / "two", docker_engine, pull=False) as driver:
        (ada,) = await agents(driver, "ada")
        await put(ada, json.dumps(registry.token("ada", ADA)).encode(), TOKEN)
        await refused(ada, "ENOENT", registry.image, "not here", "fetches none", image=registry.image)


async def test_what_the_runtimes_user_is_logged_in_to_is_no_agents(
    tmp_path: Path, docker_engine: Engine, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth = base64.b64encode(f"ada:{ADA}".encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
    monkeypatch.setitem(os.environ, "DOCKER_CONFIG", str(tmp_path))
    async with housed("in-process-memory", tmp_path, docker_engine) as driver:
        (eve,) = await agents(driver, "eve")
        await refused(eve, "EACCES", "without a token", image=registry.image)
