"""The socket in the file system: the same tree, tokens as everywhere, taken over from a runtime that died."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest
import trio
from httpfs import LIMITS, TOKENS, World, tree

from agentfs.faces.http import app, serve


@pytest.mark.parametrize("is_stale", [False, True])
async def test_the_socket_serves_what_the_address_serves(tmp_path: Path, *, is_stale: bool) -> None:
    at = tmp_path / "http.sock"
    if is_stale:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(at))
    asgi = app(tree(World(), LIMITS), TOKENS.get, LIMITS, hosts=[], ready=lambda: None, note=lambda *_: None)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        address = await nursery.start(
            lambda task_status: serve(asgi, "127.0.0.1:0", shutdown=stop.wait, local=at, task_status=task_status)
        )
        token = next(iter(TOKENS))
        async with (
            httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(at)), base_url="http://localhost") as near,
            httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as far,
        ):
            head = {"Authorization": f"Bearer {token}"}
            for path in ("/", "/status", "/none"):
                one, other = await near.get(f"/fs{path}", headers=head), await far.get(f"/fs{path}", headers=head)
                assert (one.status_code, one.content) == (other.status_code, other.content)
            assert (await near.get("/fs/")).status_code == 401
        stop.set()


async def test_its_path_may_be_long(tmp_path: Path) -> None:
    at = tmp_path / ("d" * 200) / "http.sock"
    at.parent.mkdir()
    asgi = app(tree(World(), LIMITS), TOKENS.get, LIMITS, hosts=[], ready=lambda: None, note=lambda *_: None)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda task_status: serve(asgi, "127.0.0.1:0", shutdown=stop.wait, local=at, task_status=task_status)
        )
        near = tmp_path / "near.sock"
        near.symlink_to(at)
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(near))) as client:
            assert (await client.get("http://localhost/fs/")).status_code == 401
        stop.set()
