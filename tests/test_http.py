"""The HTTP face in this process: each method on each kind of file, who may ask, and what every error looks like."""

from __future__ import annotations

import stat
from dataclasses import replace
from typing import Any

import httpx
import pytest
from httpfs import LIMITS, World, client, face, refused

from agentfs.errors import BY_NAME
from agentfs.faces.http import openapi


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def http(world: World) -> httpx.AsyncClient:
    return client(face(world))


# -- reading -----------------------------------------------------------------------------------------------------------


async def test_get_says_what_a_file_is(http: httpx.AsyncClient, world: World) -> None:
    got = await http.get("/config")
    assert (got.status_code, got.content) == (200, b'{"a":1}\n')
    assert got.headers["ETag"] == '"1"' and got.headers["X-Agentfs-Kind"] == "file"
    assert got.headers["Content-Type"] == "application/json"
    assert (await http.get("/note")).headers["Content-Type"] == "text/plain; charset=utf-8"
    world.documents["note"], world.values["v"] = b"\xff\xfe", b"{}"
    assert (await http.get("/note")).headers["Content-Type"] == "application/octet-stream"
    assert (await http.get("/kv/v")).headers["Content-Type"] == "application/octet-stream"
    assert "Access-Control-Allow-Origin" not in got.headers


async def test_head_is_get_without_body(http: httpx.AsyncClient) -> None:
    got, head = await http.get("/config"), await http.head("/config", headers={"Range": "bytes=0-1"})
    assert head.content == b"" and head.status_code == 200
    for name in ("ETag", "Content-Type", "Content-Length", "X-Agentfs-Kind"):
        assert head.headers[name] == got.headers[name]
    assert (await http.head("/kv")).headers["X-Agentfs-Kind"] == "dir"


@pytest.mark.parametrize(
    ("asked", "status", "body"),
    [
        ("bytes=0-3", 206, b"some"), ("bytes=5-", 206, b"text\n"), ("bytes=-5", 206, b"text\n"),
        ("bytes=5-999", 206, b"text\n"), ("bytes=-999", 206, b"some text\n"), ("bytes=3-1", 200, b"some text\n"),
        ("bytes=0-1,3-4", 200, b"some text\n"), ("lines=0-1", 200, b"some text\n"), ("bytes=x-", 200, b"some text\n"),
    ],
)  # fmt: skip
async def test_range(http: httpx.AsyncClient, asked: str, status: int, body: bytes) -> None:
    got = await http.get("/note", headers={"Range": asked})
    assert (got.status_code, got.content) == (status, body)
    assert ("Content-Range" in got.headers) == (status == 206)


async def test_range_of_nothing_and_of_another_version(http: httpx.AsyncClient, world: World) -> None:
    for asked in ("bytes=10-", "bytes=99-100", "bytes=-0"):
        got = await http.get("/note", headers={"Range": asked})
        refused(got, "EINVAL", status=416)
        assert got.headers["Content-Range"] == "bytes */10"
    world.versions["note"] = 2
    got = await http.get("/note", headers={"Range": "bytes=5-", "If-Range": '"1"'})
    assert (got.status_code, got.content) == (200, b"some text\n")
    part = await http.get("/config", headers={"Range": "bytes=2-3"})
    assert part.status_code == 206 and part.headers["Content-Type"] == "application/json"


async def test_not_modified(http: httpx.AsyncClient, world: World) -> None:
    asked = {"If-None-Match": '"7", "1"'}
    got = await http.get("/config", headers=asked)
    assert (got.status_code, got.content) == (304, b"")
    world.versions["config"] = 2
    assert (await http.get("/config", headers=asked)).status_code == 200


async def test_meta(http: httpx.AsyncClient) -> None:
    assert (await http.get("/config?meta")).json() == {
        "name": "config", "kind": "file", "mode": "0666", "size": 8, "mtime": "2026-01-31T09:00:00.000Z",
        "version": 1, "path": "config",
    }  # fmt: skip
    assert (await http.get("/kv?meta=1")).json()["kind"] == "dir"


async def test_listing_comes_in_pages(http: httpx.AsyncClient, world: World) -> None:
    world.values = {f"k{n:04}": b"x" for n in range(1500)}
    first = (await http.get("/kv/")).json()
    assert (first["path"], len(first["entries"]), first["cursor"]) == ("kv", 1000, "k0999")
    second = (await http.get("/kv", params={"cursor": first["cursor"]})).json()
    assert second["cursor"] is None
    names = [entry["name"] for entry in first["entries"] + second["entries"]]
    assert names == sorted(world.values)
    assert stat.S_IMODE(int(first["entries"][0]["mode"], 8)) == 0o666


async def test_recursive_listing_resumes_where_it_ended(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in ("a", "a-b", "b"):
        assert (await http.request("MKCOL", f"/rooms/{room}")).status_code == 201
    whole = (await http.get("/?recursive")).json()
    names = [entry["name"] for entry in whole["entries"]]
    assert names == sorted(names, key=lambda name: name.split("/")) and whole["cursor"] is None
    assert {"agents/a1/rooms/a/note", "rooms/a-b", "rooms/b/note"} <= set(names)
    assert not [name for name in names if "@" in name]
    monkeypatch.setattr("agentfs.faces.http.files._WALK", 3)
    paged, cursor = [], ""
    while cursor is not None:
        page = (await http.get("/", params={"recursive": "1", "cursor": cursor})).json()
        assert len(page["entries"]) <= 3
        paged += [entry["name"] for entry in page["entries"]]
        cursor = page["cursor"]
    assert paged == names


async def test_following_needs_a_watch(http: httpx.AsyncClient, world: World) -> None:
    world.events.append(b'{"n":1}')
    assert (await http.get("/events")).content == b'{"seq":1,"n":1}\n'
    for name in ("events@follow", "events@0"):  # a plain read of these would never end
        refused(await http.get(f"/{name}"), "EOPNOTSUPP")
    refused(await http.get("/config?watch=1"), "EOPNOTSUPP")
    refused(await http.get("/kv?watch=1"), "EOPNOTSUPP")


async def test_a_finished_stream_is_watched_to_its_end(http: httpx.AsyncClient, world: World) -> None:
    cursors = [world.ended.append(b'{"n":%d}' % n).cursor for n in range(3)]
    world.ended.finish()
    got = await http.get("/ended?watch=1&since=0")
    assert got.headers["Content-Type"].startswith("text/event-stream") and b"\r" not in got.content
    events = got.text.split("\n\n")
    assert events[0] == f'id: {cursors[0]}\nevent: record\ndata: {{"seq":1,"n":0}}'
    assert [event.split("\n")[0] for event in events] == [*(f"id: {c}" for c in cursors), "event: end", ""]
    resumed = await http.get("/ended?watch=1&since=0", headers={"Last-Event-ID": cursors[1]})
    assert resumed.text.startswith(f"id: {cursors[2]}\n"), "a browser repeats its URL: the header counts"
    gap = await http.get(f"/ended?watch=1&since=0000-{7}")
    assert '"type":"gap"' in gap.text and '"n":0' in gap.text


@pytest.mark.parametrize("since", [".1", "follow", "x", "-1", "1-", "a/b", "a@b", "0-x", "٣-٣", "a-1\n", "9" * 99])
async def test_a_bad_cursor_is_refused(http: httpx.AsyncClient, since: str) -> None:
    assert "since" in refused(await http.get("/events", params={"watch": "1", "since": since}), "EINVAL")


# -- writing -----------------------------------------------------------------------------------------------------------


async def test_put_replaces_and_matches(http: httpx.AsyncClient, world: World) -> None:
    put = await http.put("/config", content=b'{"a":2}')
    assert (put.status_code, put.headers["ETag"], put.content) == (204, '"2"', b"")
    assert world.documents["config"] == b'{"a":2}'
    refused(await http.put("/config", content=b'{"a":3}', headers={"If-Match": '"1"'}), "ESTALE")
    assert (await http.put("/config", content=b'{"a":3}', headers={"If-Match": '"2"'})).status_code == 204
    assert world.documents["config"] == b'{"a":3}'
    refused(await http.put("/config", content=b"{}", headers={"If-Match": "what"}), "EINVAL")
    refused(await http.put("/config", content=b"{bad"), "EINVAL")
    assert world.documents["config"] == b'{"a":3}'
    refused(await http.put("/config", content=b"{} {}"), "EINVAL")


async def test_put_takes_text_whatever_its_end(http: httpx.AsyncClient, world: World) -> None:
    await http.put("/note", content=b"one\ntwo")
    assert world.documents["note"] == b"one\ntwo" and world.versions["note"] == 2, "one document, one commit"


async def test_put_creates(http: httpx.AsyncClient, world: World) -> None:
    made = await http.put("/kv/new", content=b"\x00\xff", headers={"If-None-Match": "*"})
    assert made.status_code == 201 and world.values == {"new": b"\x00\xff"}
    refused(await http.put("/kv/new", content=b"y", headers={"If-None-Match": "*"}), "EEXIST")
    assert (await http.put("/kv/empty", content=b"")).status_code == 201
    assert (await http.put("/kv/new", content=b"")).status_code == 204
    assert world.values == {"new": b"", "empty": b""}
    for tag in ('"1"', "*"):
        refused(await http.put("/kv/absent", content=b"y", headers={"If-Match": tag}), "ESTALE")
    refused(await http.put("/kv/a@b", content=b"y"), "EINVAL")
    refused(await http.put("/kv/", content=b"y"), "EISDIR")
    refused(await http.put("/kv", content=b"y"), "EISDIR")
    refused(await http.put("/nosuch/x", content=b"y"), "ENOENT")
    refused(await http.put("/note/x", content=b"y"), "ENOTDIR")
    refused(await http.put("/events", content=b"y"), "EACCES")


async def test_put_of_a_large_value_is_fed_in_pieces(world: World) -> None:
    big = bytes(range(256)) * 4096
    assert (await client(face(world)).put("/kv/big", content=big)).status_code == 201
    assert world.values["big"] == big


async def test_post_does_what_the_kind_does(http: httpx.AsyncClient, world: World) -> None:
    called = await http.post("/echo", content=b"a\nb\n")
    assert (called.status_code, called.content) == (200, b"you said a\nb\n")
    assert called.headers["Content-Type"].startswith("text/plain")
    headers = {"Idempotency-Key": "k1", "traceparent": "00-1-2-01"}
    sent = await http.post("/inbox", content=b'{"payload":1}', headers=headers)
    assert (sent.json(), world.queued) == ({"id": 1}, [b'{"payload":1}'])
    assert (world.wants[-1].key, world.wants[-1].trace) == ("k1", "00-1-2-01")
    assert (await http.post("/inbox", content=b"two\nlines")).json() == {"id": 2}
    assert world.queued[1] == b"two\nlines"
    assert (await http.post("/ctl", content=b"pause 'by hand'\nterminate")).status_code == 204
    assert world.done == ["operator pause by hand", "terminate"]
    await http.post("/kv/log", content=b"one")
    await http.post("/kv/log", content=b"two")
    assert world.values["log"] == b"onetwo"
    posted = await http.post("/note", content=b"posted")
    assert (posted.status_code, posted.headers["ETag"]) == (204, '"2"') and world.documents["note"] == b"posted"


async def test_post_is_refused_with_the_units_error(http: httpx.AsyncClient, world: World) -> None:
    assert "jump" in refused(await http.post("/ctl", content=b"pause\njump\nterminate\n"), "EINVAL")
    assert world.done == ["operator pause"], "the lines before the bad one ran, none behind it"
    refused(await http.post("/inbox", content=b'{"a":1}\n{bad'), "EINVAL")
    assert world.queued == [b'{"a":1}']
    refused(await http.post("/events", content=b"x"), "EOPNOTSUPP")
    refused(await http.post("/kv", content=b"x"), "EISDIR")
    refused(await http.post("/nosuch/x", content=b"x"), "ENOENT")


async def test_directories_and_names(http: httpx.AsyncClient, world: World) -> None:
    assert (await http.post("/rooms/one/")).status_code == 201
    assert (await http.request("MKCOL", "/rooms/two")).status_code == 201
    refused(await http.request("MKCOL", "/rooms/two"), "EEXIST")
    assert (await http.delete("/rooms/one")).status_code == 204
    refused(await http.delete("/rooms/one"), "ENOENT")
    refused(await http.delete("/config"), "EACCES")
    refused(await http.get("/config/"), "ENOTDIR")


async def test_move(http: httpx.AsyncClient, world: World) -> None:
    world.values = {"a": b"A", "b": b"B"}

    async def move(target: str, **headers: str) -> httpx.Response:
        return await http.request("MOVE", "/kv/a", headers={"Destination": target, **headers})

    refused(await move("/kv/b", Overwrite="F"), "EEXIST")
    refused(await move("kv/c"), "EINVAL")
    refused(await move("/kv/%2e%2e/c"), "EINVAL")
    refused(await move("/kv/c?x"), "EINVAL")
    refused(await move("http://elsewhere/kv/c"), "EXDEV")
    refused(await http.request("MOVE", "/kv/a"), "EINVAL")
    assert world.values == {"a": b"A", "b": b"B"}
    assert (await move("http://127.0.0.1/kv/c%20d")).status_code == 204
    assert world.values == {"b": b"B", "c d": b"A"}


async def test_body_limit(world: World) -> None:
    http = client(face(world, limits=replace(LIMITS, body_bytes=1000)))

    async def pieces(count: int) -> Any:
        for _ in range(count):
            yield b"x" * 100

    assert (await http.put("/kv/a", content=pieces(10))).status_code == 201
    for method, target in (("PUT", "/kv/b"), ("POST", "/inbox"), ("POST", "/kv/a")):
        refused(await http.request(method, target, content=pieces(11)), "EFBIG")
        refused(await http.request(method, target, content=b"x" * 1001), "EFBIG")
    assert world.values == {"a": b"x" * 1000} and world.queued == []


# -- verbs -------------------------------------------------------------------------------------------------------------


async def test_short_verbs(http: httpx.AsyncClient, world: World) -> None:
    assert (await http.post("/agents", content=b"{}")).json() == {"id": "made"}
    assert (await http.post("/agents/a1/send", content=b"hello")).json() == {"id": 1}
    assert (await http.post("/agents/a1/pause", content=b"'for lunch'\n")).status_code == 204
    assert (await http.post("/agents/a1/terminate")).status_code == 204
    assert world.done == ["operator pause for lunch", "terminate"]
    refused(await http.post("/agents/a1/pause", content=b"x\nterminate"), "EINVAL")
    assert len(world.done) == 2, "a body is arguments, not more verbs"
    assert [entry["name"] for entry in (await http.get("/agents")).json()["entries"]] == ["a1", "new"]


async def test_verbs_are_the_operators(world: World) -> None:
    refused(await client(face(world), "a1").post("/agents/a1/terminate"), "EACCES")
    assert world.done == []


# -- the rest ---------------------------------------------------------------------------------------------------------


async def test_unknown_methods(http: httpx.AsyncClient) -> None:
    for method in ("PATCH", "OPTIONS", "PROPFIND", "TRACE"):
        refused(await http.request(method, "/config"), "EOPNOTSUPP")


async def test_openapi_is_sound(http: httpx.AsyncClient) -> None:
    doc = (await http.get("/openapi.json")).json()
    assert doc == openapi.document() and doc["openapi"] == "3.1.0" and {"title", "version"} <= set(doc["info"])
    names = ("send", "tick", "hibernate", "wake", "pause", "resume", "stop", "recover", "terminate")
    verbs = {f"/agents/{{id}}/{name}" for name in names}
    assert verbs | {"/healthz", "/readyz", "/openapi.json", "/agents", "/agents/{id}", "/{path}"} == set(doc["paths"])
    for path, item in doc["paths"].items():
        named = {p["name"] for p in item.get("parameters", []) if p["in"] == "path"}
        assert named == {part[1:-1] for part in path.split("/") if part.startswith("{")}
        for method in set(item) & {"get", "head", "put", "post", "delete"}:
            assert item[method]["summary"] and item[method]["responses"]["default"]
            assert all(answer.get("description") or "$ref" in answer for answer in item[method]["responses"].values())
            for parameter in item[method].get("parameters", []):
                assert {"name", "in", "schema"} <= set(parameter)
    for ref in _refs(doc):
        found: Any = doc
        for part in ref.removeprefix("#/").split("/"):
            found = found[part]
    assert set(doc["components"]["schemas"]["Error"]["properties"]["errno"]["enum"]) == set(BY_NAME)


def _refs(doc: Any) -> list[str]:
    if isinstance(doc, dict):
        return [doc["$ref"]] if "$ref" in doc else [ref for value in doc.values() for ref in _refs(value)]
    return [ref for value in doc for ref in _refs(value)] if isinstance(doc, list) else []
