"""Who may ask the HTTP face and for which paths: tokens, hosts, readiness, bugs, and the one gate for names."""

from __future__ import annotations

import httpx
import pytest
from httpfs import World, ask, client, face, refused

from agentfs.limits import Limits


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def http(world: World) -> httpx.AsyncClient:
    return client(face(world))


# -- who may ask -------------------------------------------------------------------------------------------------------


async def test_token_selects_the_principal(world: World) -> None:
    asgi = face(world)
    await client(asgi, "a1").post("/ctl", content=b"pause")
    assert world.done == ["a1 pause"]
    assert (await client(asgi, "op").put("/policy", content=b"{}")).status_code == 204
    refused(await client(asgi, "a1").put("/policy", content=b"{}"), "EACCES")


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer x", "Basic op", "op", "Bearer op x", "Bearer é"])
async def test_no_token_no_answer(http: httpx.AsyncClient, header: str) -> None:
    for path in ("/config", "/nosuch", "/agents/../x"):
        got = await http.get(path, headers=[(b"authorization", header.encode())])
        refused(got, "EACCES", status=401)
        assert got.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "[::2]", "", "localhost@evil"])
async def test_foreign_hosts_are_refused(http: httpx.AsyncClient, host: str) -> None:
    refused(await http.get("/config", headers={"Host": host}), "EACCES", status=421)
    refused(await http.get("/openapi.json", headers={"Host": host}), "EACCES", status=421)


@pytest.mark.parametrize("host", ["localhost:8080", "LOCALHOST", "[::1]:1", "agentfs.test", "127.0.0.1:9"])
async def test_own_hosts(http: httpx.AsyncClient, host: str) -> None:
    assert (await http.get("/config", headers={"Host": host})).status_code == 200


async def test_health(world: World) -> None:
    ready, starting = client(face(world), "none"), client(face(world, missing="starting"), "none")
    assert (await ready.get("/healthz")).text == (await starting.get("/healthz")).text == "ok\n"
    assert (await ready.get("/readyz")).text == "ready\n"
    late = await starting.get("/readyz")
    assert (late.status_code, late.text) == (503, "starting\n")


async def test_a_bug_says_nothing_of_itself(http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    got = await http.post("/echo", content=b"break")
    refused(got, "EIO")
    assert "4711" not in got.text and "4711" in caplog.text


async def test_too_many_handles_ask_to_come_back(world: World) -> None:
    http = client(face(world, limits=Limits(handles=0)))
    got = await http.get("/config")
    refused(got, "EMFILE")
    assert got.headers["Retry-After"] == "1"


async def test_closed_face_refuses(world: World) -> None:
    asgi = face(world)
    await asgi.close()
    got = await client(asgi).get("/config")
    refused(got, "ENOTCONN")
    assert got.headers["Retry-After"] == "1"
    assert (await client(asgi).get("/readyz")).status_code == 503
    assert (await client(asgi).get("/healthz")).status_code == 200


# -- the paths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("/agents/../x", "EINVAL"), ("/agents/%2e%2e/x", "EINVAL"), ("/%2E", "EINVAL"), ("//config", "EINVAL"),
        ("/agents//a1", "EINVAL"), ("/agents%2fa1", "EINVAL"), ("/agents%2Fa1", "EINVAL"), ("/con%00fig", "EINVAL"),
        ("/%ff", "EILSEQ"), ("/%ed%a0%80", "EILSEQ"), ("/%252e%252e/config", "ENOENT"), ("/config%252f", "ENOENT"),
        ("/" + "x" * 256, "ENAMETOOLONG"), ("/a" * 65, "ENAMETOOLONG"), ("/" + "%C3%A9" * 128, "ENAMETOOLONG"),
        ("/%zz", "ENOENT"), ("/config?colour=red", "EINVAL"), ("/config?meta&watchh", "EINVAL"),
    ],
)  # fmt: skip
async def test_paths_are_decoded_once(world: World, raw: str, name: str) -> None:
    path, _, query = raw.encode().partition(b"?")
    status, headers, body = await ask(face(world), "GET", path, query)
    refused(httpx.Response(status, headers=headers, content=body), name)
