"""What the gate for signed requests leaves to nobody on the way: where a request is good, and what its bytes mean."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from httpfs import ask
from signkit import BASE, Peer, Place, place

from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.providers.keys import curve

PUT = ("PUT", "/agents/a/kv/x")
UNKNOWN = "signature: not one of a key that is let in here"


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
async def here(store: Store, clock: ManualClock, peer: Peer) -> AsyncIterator[Place]:
    async with place(store, clock) as found:
        await found.grant(peer, "/kv:read+write")
        yield found


async def test_a_request_is_good_at_one_port(here: Place, peer: Peer) -> None:
    """Whoever was asked at another port of the same host cannot hand on what it got, signed for itself."""
    for host, is_good in (("127.0.0.1:9", False), ("localhost:8080", False), ("agentfs.test:81", False),
                          ("agentfs.test", True), ("agentfs.test:80", True), ("proxy.test:81", True),
                          ("[::1]", True), ("[::1]:9", False), ("127.0.0.1:x", False)):  # fmt: skip
        header = peer.own("PUT", f"http://{host}{PUT[1]}", here.clock.now_ns(), b"1")
        answer = await here.send(header, *PUT, b"1", host=host)
        assert answer.status < 300 if is_good else answer.why[2].startswith("Host: "), host


@pytest.mark.parametrize("odd", ["\xa0", "\x85", "\x1f"])
async def test_a_header_that_acts_is_signed_with_all_its_bytes(here: Place, peer: Peer, odd: str) -> None:
    """One more at its end, which some take for white space, would turn "only if it is new" into "replace it"."""
    assert (await here.ask(peer, *PUT, b"1")).status == 201
    header = peer.own("PUT", f"{BASE}{PUT[1]}", here.clock.now_ns(), b"2", [("If-None-Match", "*")])
    name, raw = b"if-none-match", f"*{odd}".encode("latin-1")
    pairs = [(b"authorization", header.encode()), (b"host", b"127.0.0.1"), (name, raw)]
    status, _, _ = await ask(here.face, "PUT", PUT[1].encode(), b"", pairs, b"2")
    assert status == 401 and (await here.ask(peer, "GET", PUT[1])).body == b"1"


async def test_the_time_an_answer_takes_tells_nothing(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signature of an unknown key is looked at too."""
    seen: list[str] = []

    def verify(pubkey: bytes, digest: bytes, signature: bytes) -> bool:
        seen.append(pubkey.hex())
        return curve.verify(pubkey, digest, signature)

    monkeypatch.setattr(here.engine.identities.signer, "verify", verify)
    other = Peer()
    assert (await here.ask(other, *PUT, b"1")).why[2] == UNKNOWN
    assert seen == [other.pubkey]
    odd = other.own("PUT", f"{BASE}{PUT[1]}", here.clock.now_ns(), b"1").replace(other.pubkey, "f" * 64)
    assert (await here.send(odd, *PUT, b"1")).why[2] == UNKNOWN  # no point of the curve
