"""What makes a signed request good: late, replayed and altered ones are refused, and nothing is touched by them."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from engines import Script, settle, still
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from signkit import BASE, FORMS, Answer, Peer, Place, place, sha

from agentfs.engine.claims import Sent, parse
from agentfs.limits import Limits
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.providers.keys import curve
from agentfs.rows import PeerRow
from agentfs.types import Path

SECOND = 10**9
PUT = ("PUT", "/agents/a/kv/x")
UNKNOWN = "signature: not one of a key that is let in here"
RESTARTED = "late: signed before this runtime started"
REPLAYED = "replayed: this request was let in already"
BODY = "body: altered, or the hash of another one was signed"


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
async def here(store: Store, clock: ManualClock, peer: Peer) -> AsyncIterator[Place]:
    async with place(store, clock) as found:
        await found.grant(peer, "/kv:read+write+manage", "/inbox:write")
        yield found


async def refused(here: Place, answer: Answer, why: str) -> None:
    """*answer* is a 401 that begins to say *why*, and no file was made."""
    assert answer.why[:2] == (401, "EACCES") and answer.why[2].startswith(why), answer.why
    assert answer.headers["www-authenticate"] == "Bearer"
    assert await here.tree.list(Path("agents/a/kv")) == []


def signed(here: Place, peer: Peer, form: str, body: bytes = b"1", seconds: float = 0, target: str = PUT[1]) -> str:
    at_ns = here.clock.now_ns() + int(seconds * SECOND)
    return peer.header(form, "PUT", f"{BASE}{target}", at_ns, body)


# -- once, and in time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
async def test_a_request_is_let_in_once(here: Place, peer: Peer, form: str) -> None:
    header = signed(here, peer, form)
    assert (await here.send(header, *PUT, b"1")).status == 201
    for seconds in (0, 30, 30):
        here.clock.advance(seconds)
        assert (await here.send(header, *PUT, b"1")).why == (401, "EACCES", REPLAYED)
    here.clock.advance(0.001)
    assert (await here.send(header, *PUT, b"1")).why[2].startswith("late")


@pytest.mark.parametrize("form", FORMS)
async def test_of_many_at_the_same_time_one_is_let_in(here: Place, peer: Peer, form: str) -> None:
    header, codes = signed(here, peer, form, b'{"payload": 1}', target="/agents/a/inbox"), []

    async def one() -> None:
        codes.append((await here.send(header, "PUT", "/agents/a/inbox", b'{"payload": 1}')).status)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one)
    await settle(here.engine)
    assert sorted(codes) == [204] + [401] * 19 and Script.ran == [(peer.pubkey, 1)]


@pytest.mark.parametrize("form", FORMS)
async def test_the_window_is_sixty_seconds_to_both_sides(here: Place, peer: Peer, form: str) -> None:
    here.clock.advance(100)
    for seconds, why in ((-61, "late: signed more"), (-3600, "late"), (61, "early"), (10**6, "early")):
        await refused(here, await here.send(signed(here, peer, form, seconds=seconds), *PUT, b"1"), why)
    for seconds in (-60, 60, -59):
        assert (await here.send(signed(here, peer, form, seconds=seconds), *PUT, b"1")).status in (201, 204)


@pytest.mark.parametrize("form", FORMS)
async def test_what_was_signed_before_the_start_is_late(
    store: Store, clock: ManualClock, peer: Peer, form: str
) -> None:
    """What the process before let in is forgotten, and so is what it could have let in."""
    async with place(store, clock) as here:
        await here.grant(peer, "/kv:read+write")
        header = signed(here, peer, form)
        assert (await here.send(header, *PUT, b"1")).status == 201
    started_ns = clock.now_ns()
    async with place(store, clock) as here:
        assert (await here.send(header, *PUT, b"2")).why[2] == RESTARTED
        for at_ns in (started_ns, started_ns - 1, started_ns - SECOND):
            again = peer.header(form, "GET", f"{BASE}{PUT[1]}", at_ns)
            assert (await here.send(again, "GET", PUT[1])).why[2] == RESTARTED
        again = peer.header(form, "GET", f"{BASE}{PUT[1]}", started_ns + SECOND)
        assert (await here.send(again, "GET", PUT[1])).body == b"1"


@pytest.mark.parametrize("form", FORMS)
async def test_a_fast_clock_wins_no_second_time_by_a_restart(
    store: Store, clock: ManualClock, peer: Peer, form: str
) -> None:
    """What was let in before it was due is still in time after a restart; it is told from what comes new."""
    async with place(store, clock) as here:
        await here.grant(peer, "/kv:read+write")
        header = signed(here, peer, form, seconds=50)
        assert (await here.send(signed(here, peer, form, seconds=20), *PUT, b"1")).status == 201
        assert (await here.send(header, *PUT, b"1")).status == 204
        assert (await here.send(signed(here, peer, form, seconds=30), *PUT, b"1")).status == 204
    for _ in range(2):
        async with place(store, clock) as here:
            assert (await here.send(header, *PUT, b"1")).why[2] == RESTARTED
            assert (await here.send(signed(here, peer, form, seconds=55), *PUT, b"1")).status == 204
            assert (await here.send(signed(here, Peer(), form, seconds=55), *PUT, b"1")).why[2] == UNKNOWN
    clock.advance(200)
    async with place(store, clock) as here:
        assert await store.scan(PeerRow) == []


async def test_a_clock_set_back_reopens_nothing(here: Place, peer: Peer) -> None:
    here.clock.advance(100)
    header = signed(here, peer, "own")
    assert (await here.send(header, *PUT, b"1")).status == 201
    here.clock.advance(61)
    assert (await here.ask(peer, "GET", PUT[1])).body == b"1"  # now the first one is forgotten
    here.clock.advance(-30)
    assert (await here.send(header, *PUT, b"2")).why[2].startswith("late")


async def test_a_body_that_is_long_in_coming_is_too_late(here: Place, peer: Peer) -> None:
    """Else two of the same request, both begun in time, could both be let in when the first is forgotten."""
    header, codes, go_on = signed(here, peer, "own"), [], trio.Event()

    async def one() -> None:
        codes.append(await slowly(here, header, go_on))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)
        await still(here.engine)
        here.clock.advance(61)
        go_on.set()
    assert codes == [401, 401] and await here.tree.list(Path("agents/a/kv")) == []


async def slowly(here: Place, header: str, go_on: trio.Event) -> int:
    scope = {
        "type": "http", "http_version": "1.1", "method": "PUT", "scheme": "http", "path": PUT[1],
        "raw_path": PUT[1].encode(), "query_string": b"", "root_path": "", "server": ("127.0.0.1", 80),
        "headers": [(b"host", b"127.0.0.1"), (b"authorization", header.encode()), (b"content-length", b"1")],
    }  # fmt: skip
    codes: list[int] = []

    async def receive() -> Any:
        await go_on.wait()
        return {"type": "http.request", "body": b"1", "more_body": False}

    async def send(message: Any) -> None:
        codes.append(message.get("status", 0))

    await here.face(scope, receive, send)
    return codes[0]


async def test_what_is_in_time_is_never_forgotten(store: Store, clock: ManualClock, peer: Peer) -> None:
    """Too many at once are asked to come again; they were not let in."""
    async with place(store, clock, Limits(nonces=5, peer_nonces=3)) as here:
        other = Peer()
        for one in (peer, other):
            await here.grant(one, "/kv:read+write")
        header = signed(here, peer, "own")
        assert (await here.send(header, *PUT, b"1")).status == 201
        codes = [(await here.ask(peer, "GET", PUT[1])).status for _ in range(4)]
        assert codes == [200, 200, 429, 429]
        full = await here.ask(peer, "GET", PUT[1])
        assert full.doc["errno"] == "ENOBUFS" and full.headers["retry-after"] == "1"
        assert (await here.send(header, *PUT, b"1")).why[2] == REPLAYED
        assert [(await here.ask(other, "GET", PUT[1])).status for _ in range(3)] == [200, 200, 429]
        clock.advance(61)
        assert (await here.ask(peer, "GET", PUT[1])).status == 200


# -- unaltered ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
async def test_an_altered_request_is_refused_and_burns_nothing(here: Place, peer: Peer, form: str) -> None:
    header = signed(here, peer, form)
    here_only = {"own": (UNKNOWN, UNKNOWN), "nostr": ("method: signed for PUT", "url: signed for http")}
    method, url = here_only[form]
    await refused(here, await here.send(header, *PUT, b"2"), BODY)
    await refused(here, await here.send(header, *PUT, b""), BODY)
    await refused(here, await here.send(header, "POST", PUT[1], b"1"), method)
    for target in ("/agents/a/kv/y", "/agents/a/kv/x?meta", "/agents/a/kv/x/", "/agents/a/kv/%78", "/agents/b/kv/x"):
        await refused(here, await here.send(header, "PUT", target, b"1"), url)
    for host in ("localhost", "127.0.0.1:80", "agentfs.test"):
        await refused(here, await here.send(header, *PUT, b"1", host=host), url)
    foreign = peer.header(form, "PUT", f"https://127.0.0.1{PUT[1]}", here.clock.now_ns(), b"1")
    await refused(here, await here.send(foreign, *PUT, b"1"), url)
    assert (await here.send(header, *PUT, b"1")).status == 201


async def test_headers_that_act_are_signed_too(here: Place, peer: Peer) -> None:
    """One that is added, taken away or changed on the way is an alteration; NIP-98 cannot sign any."""
    at_ns, acting = here.clock.now_ns(), [("If-None-Match", "*"), ("Idempotency-Key", "k1")]
    header = peer.own("PUT", f"{BASE}{PUT[1]}", at_ns, b"1", acting)
    for other in ([], acting[:1], [*acting, ("If-Match", '"1"')], [("If-None-Match", "*"), ("Idempotency-Key", "k2")],
                  [*acting, acting[0]]):  # fmt: skip
        await refused(here, await here.send(header, *PUT, b"1", other), UNKNOWN)
    assert (await here.send(header, *PUT, b"1", acting)).status == 201
    for name, value in (("Destination", "/agents/a/kv/y"), ("If-Match", '"1"'), ("Overwrite", "T")):
        nostr = peer.nostr("MOVE", f"{BASE}{PUT[1]}", at_ns)
        answer = await here.send(nostr, "MOVE", PUT[1], acting=[(name, value)])
        assert answer.why == (401, "EACCES", f"headers: {name.lower()}: this form does not sign them")
    moved = await here.ask(peer, "MOVE", PUT[1], acting=[("Destination", "/agents/a/kv/y")])
    assert moved.status == 204 and (await here.ask(peer, "GET", "/agents/a/kv/y")).body == b"1"


@pytest.mark.parametrize("form", FORMS)
async def test_strangers_are_told_nothing(here: Place, peer: Peer, form: str) -> None:
    """An unknown key and a wrong signature are the same, late or not; so nobody learns which keys are known."""
    url, at_ns = f"{BASE}{PUT[1]}", here.clock.now_ns()
    good, other = peer.header(form, "PUT", url, at_ns, b"1"), Peer()
    headers = [other.header(form, "PUT", url, at_ns - n * 100 * SECOND, b"1") for n in (0, 1)]
    for n in (0, 1):
        late = peer.header(form, "PUT", url, at_ns - n * 100 * SECOND, b"1")
        headers.append(late.replace(peer.pubkey, other.pubkey) if form == "own" else forged(late, other))
    if form == "own":
        sig = good.partition('sig="')[2][:128]
        headers += [good.replace(sig, s) for s in (sig[::-1], "0" * 128, sig[64:] + sig[:64])]
    for header in headers:
        await refused(here, await here.send(header, *PUT, b"1"), UNKNOWN)


def forged(header: str, by: Peer) -> str:
    """The event of *header* with the signature of another key."""
    event = json.loads(base64.b64decode(header.removeprefix("Nostr ")))
    event["sig"] = curve.sign(by.secret, bytes.fromhex(event["id"])).hex()
    return "Nostr " + base64.b64encode(json.dumps(event).encode()).decode()


def bad_events(peer: Peer, at_ns: int) -> dict[str, str]:
    url, hashed = f"{BASE}{PUT[1]}", sha(b"1")
    tags = [["u", url], ["method", "PUT"], ["payload", hashed]]

    def made(*tags: list[str], **other: Any) -> str:
        return peer.nostr("PUT", url, at_ns, b"1", tags, **other)

    good = made(*tags)
    return {
        "body: not signed": made(*tags[:2]),
        BODY: made(*tags[:2], ["payload", sha(b"2")]),
        "Authorization: want one tag 'u'": made(*tags[1:]),
        "Authorization: want one tag 'method'": made(tags[0], tags[2]),
        "Authorization: want one tag 'payload'": made(*tags, ["payload", sha(b"2")]),
        "Authorization: want an event of kind": made(*tags, kind=1),
        "Authorization: want Nostr": "Nostr " + good[6:] + "?",
        "Authorization: base64": spelled(good),
        "Authorization: id, pubkey": peer.nostr("PUT", url, at_ns, b"1", pubkey=peer.pubkey.upper()),
        "Authorization: over": "Nostr " + "A" * 20_000,
    }


def spelled(header: str) -> str:
    """The same bytes in base64 of another spelling: bits that nobody reads are set."""
    raw = base64.b64decode(header[6:])
    pad = json.dumps(json.loads(raw), separators=(",", ":"))
    while len(pad) % 3 != 1:
        pad += " "
    text = base64.b64encode(pad.encode()).decode()
    return "Nostr " + text[:-3] + chr(ord(text[-3]) + 1) + "=="


async def test_events_in_bad_form(here: Place, peer: Peer) -> None:
    for why, header in bad_events(peer, here.clock.now_ns()).items():
        await refused(here, await here.send(header, *PUT, b"1"), why)
    parts: list[Any] = [b"[]", b"{}", b"\xff", b'{"id": 1}', b"[" * 100_000]
    for part in parts:
        header = "Nostr " + base64.b64encode(part).decode()
        await refused(here, await here.send(header, *PUT, b"1"), "Authorization: ")
    without = peer.nostr("GET", f"{BASE}/agents/a/kv", here.clock.now_ns(), tags=[
        ["u", f"{BASE}/agents/a/kv"], ["method", "get"], ["payload", sha(b"")]])  # fmt: skip
    assert (await here.send(without, "GET", "/agents/a/kv")).status == 200


@pytest.mark.parametrize(
    "change",
    [
        ("at=", "At="), ('nonce="', 'nonce="!'), ('", nonce="', '", nonce="short", nonce2="'), ('body="', 'body="0'),
        ('pubkey="', 'pubkey="G'), ('at="', 'at="0'), ('at="', 'at="-'), ('sig="', 'sig="00'), (", sig", ""),
        ("Agentfs-Signature ", "Agentfs-Signature x="), (", sig=", ', x="y", sig='), ('at="', "at="), (", ", "; "),
    ],
)  # fmt: skip
async def test_headers_of_our_form_in_bad_form(here: Place, peer: Peer, change: tuple[str, str]) -> None:
    header = signed(here, peer, "own").replace(*change)
    await refused(here, await here.send(header, *PUT, b"1"), "Authorization: ")


async def test_the_parts_of_our_form_come_in_any_order(here: Place, peer: Peer) -> None:
    parts = signed(here, peer, "own").removeprefix("Agentfs-Signature ").split(", ")
    header = "agentfs-SIGNATURE  " + " ,\t".join(reversed(parts))
    assert (await here.send(header, *PUT, b"1")).status == 201


async def test_two_authorizations_are_none(here: Place, peer: Peer) -> None:
    good = signed(here, peer, "own")
    answer = await here.send(good, *PUT, b"1", [("Authorization", "Bearer x")])
    await refused(here, answer, "more than one Authorization header")
    operator = "Bearer the operator's own"
    answer = await here.send(operator, "GET", "/agents", acting=[("Authorization", operator)])
    assert answer.why == (401, "EACCES", "more than one Authorization header")


async def test_a_large_body_is_refused_as_ever(store: Store, clock: ManualClock, peer: Peer) -> None:
    async with place(store, clock, Limits(body_bytes=100)) as here:
        await here.grant(peer, "/kv:read+write")
        assert (await here.ask(peer, *PUT, b"x" * 101)).status == 413
        assert (await here.ask(peer, *PUT, b"x" * 100)).status == 201


async def test_paths_are_no_way_around(here: Place, peer: Peer) -> None:
    for target in ("/agents/a/kv/../status", "/agents/a/kv/%2e%2e/status", "/agents/a%2fkv", "//agents/a/kv",
                   "/agents/a/kv/..%2f..%2f../runtime/status", "/agents/a/kv/%00", "/agents/./a/kv"):  # fmt: skip
        assert (await here.ask(peer, "GET", target)).status == 400, target


CHANGES = st.tuples(st.sampled_from(["header", "target", "body", "method"]), st.integers(0, 10**6), st.integers(1, 127))


@given(form=st.sampled_from(FORMS), change=CHANGES)
@examples(max_examples=300, deadline=None)
def test_any_changed_byte_is_refused(form: str, change: tuple[str, int, int]) -> None:
    """But for white space and for the case of letters in the scheme's name, which say nothing (RFC 9110)."""
    which, at, xor = change
    peer = Peer(bytes(31) + b"\7")
    url = "http://127.0.0.1/agents/a/kv/x?meta=1"
    parts = {"target": url, "body": "some text", "method": "PUT"}
    parts["header"] = peer.header(form, "PUT", url, 10**18, b"some text")
    old = parts[which]
    at %= len(old)
    parts[which] = old[:at] + chr(ord(old[at]) ^ xor) + old[at + 1 :]
    if which == "header":
        is_space = (old[at], parts[which][at]) == (" ", "\t")
        is_case = parts[which].lower() == old.lower() and at < old.index(" ")
        if is_space or is_case:
            return
    assert not is_good(parts, peer)


def is_good(parts: dict[str, str], peer: Peer) -> bool:
    sent = Sent(parts["method"], parts["target"])
    try:
        claim = parse(parts["header"], sent)
    except PermissionError:
        return False
    is_signed = claim.pubkey == peer.pubkey and curve.verify(bytes.fromhex(claim.pubkey), claim.digest, claim.sig)
    return is_signed and claim.sent == sent and claim.body == sha(parts["body"].encode())
