"""Signed requests: who is let in, to what, how often, and for how long."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import trio
from engines import Script, fails, lines, settings, settle, still
from faces import call, load, put, whole
from signkit import BASE, FORMS, Answer, Peer, Place, place

from agentfs.bech32 import npub
from agentfs.limits import Limits
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.service import FileService
from agentfs.types import Mode, Path, Principal
from agentfs.views import Below
from conformance.drivers import Driver

READ, WRITE = Mode.READ, Mode.WRITE
UNKNOWN = (401, "EACCES", "signature: not one of a key that is let in here")


@pytest.fixture
async def here(store: Store, clock: ManualClock) -> AsyncIterator[Place]:
    async with place(store, clock) as found:
        yield found


@pytest.fixture
def peer() -> Peer:
    return Peer()


# -- what it opens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
async def test_a_key_opens_what_was_granted(here: Place, peer: Peer, form: str) -> None:
    """Reading, writing, calling, listing; as whoever holds the key, and at nobody else's."""
    await here.grant(peer, "/kv:read+write", "/inbox:write", "/identity/sign:write")
    assert (await here.ask(peer, "PUT", "/agents/a/kv/colour", b"red", form=form)).status == 201
    assert (await here.ask(peer, "GET", "/agents/a/kv/colour", form=form)).body == b"red"
    assert (await here.ask(peer, "HEAD", "/agents/a/kv/colour", form=form)).status == 200
    assert (await here.ask(peer, "POST", "/agents/a/kv/colour", b" and blue", form=form)).status == 204
    names = [[e["name"] for e in (await here.ask(peer, "GET", path, form=form)).doc["entries"]]
             for path in ("/", "/agents/", "/agents/a", "/agents/a/kv?recursive=1")]  # fmt: skip
    assert names == [["agents"], ["a"], ["identity", "inbox", "kv"], ["colour"]]
    assert len((await here.ask(peer, "POST", "/agents/a/identity/sign", b"hello", form=form)).body) == 129
    receipt = (await here.ask(peer, "POST", "/agents/a/inbox", b'{"id": "m1", "payload": "hi"}', form=form)).doc
    assert (receipt["id"], receipt["to"]) == ("m1", "a")
    await settle(here.engine)
    assert Script.ran == [(peer.pubkey, "hi")]
    for target in ("/agents/b", "/agents/b/kv", "/agents/a/status", "/runtime", "/views/a/kv", "/agents/new", "/kv"):
        assert (await here.ask(peer, "GET", target, form=form)).status == 404, target
    assert (await here.ask(peer, "POST", "/agents", b"{}", form=form)).status == 409
    assert (await here.ask(peer, "DELETE", "/agents/a/kv/colour", form=form)).status == 403
    assert (await here.ask(peer, "GET", "/agents/a/inbox", form=form)).status == 403


async def test_several_agents_let_one_key_in(here: Place, peer: Peer) -> None:
    await here.grant(peer, "/status:read")
    await here.grant(peer, "/kv:read+write+manage", agent="b", name=npub(bytes.fromhex(peer.pubkey)), note="a friend")
    listed = (await here.ask(peer, "GET", "/agents/")).doc["entries"]
    assert [entry["name"] for entry in listed] == ["a", "b"]
    assert (await here.ask(peer, "GET", "/agents/b/status")).status == 404
    for method, target, body, acting in (
        ("PUT", "/agents/b/kv/x", b"1", [("If-None-Match", "*")]),
        ("MOVE", "/agents/b/kv/x", b"", [("Destination", "/agents/b/kv/y"), ("Overwrite", "F")]),
        ("PUT", "/agents/b/kv/y", b"2", [("If-Match", "*")]), ("DELETE", "/agents/b/kv/y", b"", []),
    ):  # fmt: skip
        assert (await here.ask(peer, method, target, body, acting)).status < 300, method
    (found,) = await here.tree.list(Path("agents/b/grants"))
    assert found.name == peer.pubkey
    doc = await load(here.tree, f"agents/b/grants/{npub(bytes.fromhex(peer.pubkey))}")
    assert doc == {"allow": ["/kv:manage+read+write"], "expires_at": None, "note": "a friend"}


async def test_a_peer_speaks_as_its_key_only(here: Place, peer: Peer) -> None:
    """And nobody speaks as it: no agent's id is as long as a key."""
    await here.grant(peer, "/:read+write+manage")
    for source in ("operator", "a", "b", "0" * 64):
        answer = await here.ask(peer, "POST", "/agents/a/inbox", msgspec.json.encode({"source": source, "payload": 1}))
        assert answer.why[:2] == (403, "EPERM")
    with pytest.raises(OSError, match="agent id"):
        await here.engine.create(peer.pubkey, settings())
    view = here.house.attach(Principal("agent", "b"))
    await fails(errno.EPERM, call(view, "inbox", {"source": peer.pubkey, "payload": 1}))
    trace = await whole(here.tree, "agents/a/logs/trace")
    assert f'"by":"{peer.pubkey}"'.encode() in trace


@pytest.mark.parametrize("allow", ["/:read+write+manage", "/grants:read+write+manage"])
async def test_a_peer_cannot_widen_or_hand_on_what_it_has(here: Place, peer: Peer, allow: str) -> None:
    await here.grant(peer, allow, "/tokens:read+write")
    other = Peer()
    for pubkey in (peer.pubkey, other.pubkey):
        answer = await here.ask(peer, "PUT", f"/agents/a/grants/{pubkey}", b'{"allow": ["/:read+write+manage"]}')
        assert answer.why[:2] == (403, "EPERM")
    assert (await here.ask(peer, "DELETE", f"/agents/a/grants/{peer.pubkey}")).why[:2] == (403, "EPERM")
    assert (await here.ask(peer, "POST", "/agents/a/tokens/new", b"{}")).why[:2] == (403, "EPERM")
    assert (await here.ask(peer, "GET", f"/agents/a/grants/{peer.pubkey}")).status == 200
    assert await here.ask(other, "GET", "/") and (await here.ask(other, "GET", "/")).why == UNKNOWN
    if allow.startswith("/:"):
        for path, body in (("ns", b"mount kv /kv\n"), ("identity/ctl", b"rotate\n"), ("config", b"{}")):
            assert (await here.ask(peer, "POST", f"/agents/a/{path}", body)).status == 403, path


async def test_who_may_grant(here: Place, peer: Peer) -> None:
    """The operator and the agent itself; a bearer of a token could make more of it than it is."""
    view, doc = here.house.attach(Principal("agent", "a")), b'{"allow": ["/status:read"]}'
    async with await view.create(Path(f"grants/{peer.pubkey}"), WRITE) as handle:
        await handle.write(doc, 0)
    assert (await here.ask(peer, "GET", "/agents/a/status")).status == 200
    made = await call(view, "tokens/new", {"allow": ["/grants:read+write+manage"]})
    bearer = here.engine.tokens.check(made["token"])
    assert bearer is not None
    tree = here.house.attach(bearer)
    await fails(errno.EPERM, put(tree, doc, f"grants/{peer.pubkey}"))
    await fails(errno.EPERM, tree.create(Path(f"grants/{Peer().pubkey}"), WRITE))
    await fails(errno.EPERM, tree.remove(Path(f"grants/{peer.pubkey}")))
    trail = [line for line in await lines(here.engine, "a", "trajectory") if line.get("event") == "granted"]
    assert [(line["pubkey"], line["allow"], line["by"]) for line in trail] == [(peer.pubkey, ["/status:read"], "a")]


@pytest.mark.parametrize(
    ("doc", "field"),
    [
        (b"{}", "allow"), (b'{"allow": []}', "allow"), (b'{"allow": ["/kv:fly"]}', "allow"), (b"no", "grant"),
        (b'{"allow": ["/kv"], "expires_at": "2020-01-01T00:00:00Z"}', "expires_at"), (b'{"allow": "/kv"}', "allow"),
        (b'{"allow": ["/kv"], "expires_at": "9999-01-01T00:00:00Z"}', "expires_at"), (b'{"alow": []}', "alow"),
        (b'{"allow": ["/../x"]}', "segment"),
    ],
)  # fmt: skip
async def test_a_grant_in_bad_form_names_the_field(here: Place, peer: Peer, doc: bytes, field: str) -> None:
    handle = await here.tree.create(Path(f"agents/a/grants/{peer.pubkey}"), WRITE)
    exc = await fails(errno.EINVAL, _written(handle, doc))
    assert field in str(exc)
    assert await here.tree.list(Path("agents/a/grants")) == []


async def _written(handle: Any, doc: bytes) -> None:
    async with handle:
        await handle.write(doc, 0)
        await handle.flush(final=True)


@pytest.mark.parametrize("name", ["x", "AB" * 32, "ab" * 31, "npub1x", "nsec1x", "ab " * 21 + "a", "ab" * 33])
async def test_a_grant_is_named_by_a_key(here: Place, name: str) -> None:
    await fails(errno.EINVAL, here.tree.create(Path(f"agents/a/grants/{name}"), WRITE))


async def test_grants_are_bounded_and_expired_ones_make_room(store: Store, clock: ManualClock) -> None:
    async with place(store, clock, Limits(grants=2)) as here:
        first, second, third = Peer(), Peer(), Peer()
        await here.grant(first, "/kv:read", expires_at="2026-01-01T00:01:00Z")
        await here.grant(second, "/kv:read")
        await fails(errno.ENOSPC, here.grant(third, "/kv:read"))
        clock.advance(60)
        assert (await here.ask(first, "GET", "/agents/a/kv")).why == UNKNOWN
        await here.grant(third, "/kv:read")
        assert {st.name for st in await here.tree.list(Path("agents/a/grants"))} == {second.pubkey, third.pubkey}


async def made(tree: FileService, path: str) -> None:
    async with await tree.create(Path(path), WRITE) as handle:
        await handle.write(b'{"allow": ["/kv"]}', 0)
        await handle.flush(final=True)


async def test_grants_are_files_on_every_face(driver: Driver) -> None:
    agent, peer = await driver.agent("host"), Peer()
    own = Below(driver.tree, Path("views/host"))
    name = f"grants/{npub(bytes.fromhex(peer.pubkey))}"
    await made(own, name)
    assert [st.name for st in await agent.list(Path("grants"))] == [peer.pubkey]
    assert (await load(own, name))["allow"] == (await load(agent, f"grants/{peer.pubkey}"))["allow"] == ["/kv:read"]
    await put(agent, b'{"allow": ["/kv:write"], "note": "x"}', f"grants/{peer.pubkey}")
    assert await load(own, name) == {"allow": ["/kv:write"], "expires_at": None, "note": "x"}
    await fails(errno.EINVAL, put(agent, b'{"allow": []}', f"grants/{peer.pubkey}"))
    await own.remove(Path(name))
    assert await agent.list(Path("grants")) == []
    await fails(errno.EINVAL, made(own, "grants/somebody"))


# -- when it ends ------------------------------------------------------------------------------------------------------


Ending = Callable[[Place, Peer], Any]


async def _expired(here: Place, peer: Peer) -> None:
    here.clock.advance(60)


async def _removed(here: Place, peer: Peer) -> None:
    await here.withdraw(peer)


async def _narrowed(here: Place, peer: Peer) -> None:
    await here.grant(peer, "/status:read")


async def _agent_removed(here: Place, peer: Peer) -> None:
    await put(here.tree, b"terminate\n", "agents/a/ctl")
    await settle(here.engine)
    await here.tree.remove(Path("agents/a"))


@pytest.mark.parametrize("end", [_expired, _removed, _narrowed, _agent_removed])
async def test_what_is_open_ends_with_the_grant(here: Place, peer: Peer, end: Ending) -> None:
    """The blocked reader wakes, the writer is refused, the watch is closed, and nothing opens any more."""
    await here.grant(peer, "/outbox:read", "/kv:read+write", expires_at="2026-01-01T00:01:00Z")
    tree = here.house.attach(Principal("peer", peer.pubkey))
    following = await tree.open(Path("agents/a/outbox@follow"), READ)
    writing = await tree.create(Path("agents/a/kv/x"), WRITE)
    codes: list[int | None] = []
    watched: list[bytes] = []

    async def read() -> None:
        codes.append((await fails(errno.EACCES, following.read(100, 0))).errno)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(_watch, here, peer, watched)
        await still(here.engine)
        assert len(watched) == 1
        await end(here, peer)
        with trio.fail_after(10):
            while not (codes and watched[-1] == b""):
                await still(here.engine)
        nursery.cancel_scope.cancel()
    assert codes == [errno.EACCES] and b"event: closing" in b"".join(watched)
    await fails(errno.EACCES, writing.write(b"x", 0))
    with pytest.raises(OSError) as caught:
        await tree.open(Path("agents/a/kv"), READ)
    assert caught.value.errno == errno.ENOENT
    expected = 404 if end is _narrowed else 401
    assert (await here.ask(peer, "GET", "/agents/a/kv")).status == expected


async def _watch(here: Place, peer: Peer, got: list[bytes]) -> None:
    """What a signed watch of the outbox answers, piece by piece; an empty one at its end."""
    header = peer.own("GET", f"{BASE}/agents/a/outbox?watch=1", here.clock.now_ns())
    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "path": "/agents/a/outbox",
        "raw_path": b"/agents/a/outbox", "query_string": b"watch=1", "root_path": "", "server": ("127.0.0.1", 80),
        "headers": [(b"host", b"127.0.0.1"), (b"authorization", header.encode())],
    }  # fmt: skip
    pending: list[Any] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if not pending:
            await trio.sleep_forever()
        return pending.pop()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200
            got.append(b"start")
        elif message["body"] or not message.get("more_body"):
            got.append(message["body"])

    await here.face(scope, receive, send)


async def test_the_same_grant_again_ends_nothing(here: Place, peer: Peer) -> None:
    await here.grant(peer, "/kv:read+write")
    tree = here.house.attach(Principal("peer", peer.pubkey))
    async with await tree.create(Path("agents/a/kv/x"), WRITE) as handle:
        await here.grant(peer, "kv:write+read", note="in other words")
        await handle.write(b"still", 0)
    assert await whole(here.tree, "agents/a/kv/x") == b"still"


async def test_a_new_agent_of_an_old_name_knows_nobody(here: Place, peer: Peer) -> None:
    await here.grant(peer, "/kv:read")
    await _agent_removed(here, peer)
    await here.engine.create("a", settings())
    assert (await here.ask(peer, "GET", "/agents/a/kv")).why == UNKNOWN


async def test_grants_survive_a_restart_and_their_expiry_too(store: Store, clock: ManualClock, peer: Peer) -> None:
    async with place(store, clock) as here:
        await here.grant(peer, "/kv:read", expires_at="2026-01-01T00:01:00Z")
    async with place(store, clock) as here:
        assert (await here.ask(peer, "GET", "/agents/a/kv")).status == 200
        clock.advance(60)
        assert (await here.ask(peer, "GET", "/agents/a/kv")).why == UNKNOWN


# -- what it may take --------------------------------------------------------------------------------------------------


async def test_a_peer_pays_from_the_budget_of_the_agent(here: Place, peer: Peer) -> None:
    """As a bearer of the agent's own token does."""
    table = (await whole(here.tree, "agents/a/ns")).decode().splitlines(keepends=True)
    kept = "".join(line for line in table if not line.startswith("mount effects "))
    await put(here.tree, f"{kept}mount effects /effects budgeted per_day_usd=15\n".encode(), "agents/a/ns")
    await here.grant(peer, "/effects:read+write")
    payment = {"provider": "bank", "key": "k", "request": 1, "max_cost_usd": 10}
    made = (await here.ask(peer, "POST", "/agents/a/effects/new", msgspec.json.encode(payment))).doc
    assert made["source"] == peer.pubkey
    second = await here.ask(peer, "POST", "/agents/a/effects/new", msgspec.json.encode({**payment, "key": "k2"}))
    assert second.status == 402
    assert (await load(here.tree, "agents/a/effects/usage"))["day"]["reserved_usd"] == 10


async def test_one_noisy_key_starves_nobody(store: Store, clock: ManualClock, peer: Peer) -> None:
    async with place(store, clock, Limits(agent_rate=20, watchers=1)) as here:
        other = Peer()
        for one in (peer, other):
            await here.grant(one, "/kv:read+write", "/outbox:read")
        codes = [(await here.ask(peer, "PUT", "/agents/a/kv/x", b"1")).status for _ in range(30)]
        assert 429 in codes and (await here.ask(other, "PUT", "/agents/a/kv/y", b"1")).status == 201
        clock.advance(1)
        watched: list[bytes] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, here, peer, watched)
            await still(here.engine)
            assert (await here.ask(peer, "GET", "/agents/a/outbox?watch=1")).status == 429
            nursery.cancel_scope.cancel()


async def test_what_a_peer_is_refused_is_on_record(here: Place, peer: Peer) -> None:
    """With the agent that knows it; what it tries elsewhere with the runtime, and nothing of strangers."""
    await here.grant(peer, "/kv:read")
    answers: list[Answer] = [
        await here.ask(peer, "PUT", "/agents/a/kv/x", b"1"), await here.ask(peer, "GET", "/runtime/status"),
        await here.ask(peer, "GET", "/agents/a%2f..%2fb/kv"), await here.ask(Peer(), "GET", "/agents/a/kv"),
    ]  # fmt: skip
    assert [answer.status for answer in answers] == [403, 404, 400, 401]
    late = peer.own("GET", f"{BASE}/agents/b/kv", here.clock.now_ns() - 61 * 10**9)
    assert (await here.send(late, "GET", "/agents/b/kv")).status == 401
    told = [msgspec.json.decode(line) for line in (await whole(here.tree, "agents/a/logs/trace")).splitlines()]
    seen = [(r["errno"], r["op"], r["by"]) for r in told if r["type"] == "error"]
    assert seen == [("EACCES", "open", peer.pubkey), ("EINVAL", "GET", peer.pubkey)]
    told = [msgspec.json.decode(line) for line in (await whole(here.tree, "runtime/errors")).splitlines()]
    assert [(r["errno"], r["path"], r["by"]) for r in told] == [
        ("ENOENT", "runtime/status", peer.pubkey), ("EACCES", "agents/b/kv", peer.pubkey),
    ]  # fmt: skip
    assert b"error" not in await whole(here.tree, "agents/b/logs/trace")
