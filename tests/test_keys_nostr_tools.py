"""Keys against another implementation, nostr-tools for JavaScript: each understands what the other makes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentfs import bech32 as bech
from agentfs.engine import claims
from agentfs.engine.claims import Sent
from agentfs.providers.keys import curve, nip04, nip44, seed

VERSION = "2.25.2"
PEER = Path(__file__).parent / "data" / "nostr_peer.cjs"
TEXTS = ["a", "hello", "x" * 32, "x" * 33, 'ünï¢ode 🦄\n\t"\\\x00\x7f', "表ポあA鷗" * 300, "x" * 65535]
ROUNDS = 8

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Asks the peer: its answer, or None where it refuses. Without npm there is no peer, and the test fails."""
    place = tmp_path_factory.mktemp("nostr-tools")
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    install = ["npm", "install", *options, "--prefix", str(place), f"nostr-tools@{VERSION}"]
    # node has a list of authorities of its own: those that this machine trusts are added
    env = {"NODE_EXTRA_CA_CERTS": "/etc/ssl/certs/ca-certificates.crt"} | dict(os.environ)
    subprocess.run(install, check=True, timeout=110, stdin=subprocess.DEVNULL, cwd=place, env=env)
    command = ["node", str(PEER), str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as peer:
        assert peer.stdin and peer.stdout

        def asked(verb: str, **request: object) -> Any:
            assert peer.stdin and peer.stdout
            peer.stdin.write(json.dumps({"verb": verb, **request}) + "\n")
            peer.stdin.flush()
            return json.loads(peer.stdout.readline()).get("ok")

        yield asked
        peer.stdin.close()
        assert peer.wait(timeout=20) == 0


def event_id(event: dict[str, Any]) -> bytes:
    """NIP-01: the SHA-256 of the event's parts as JSON without spaces."""
    parts = [0, *(event[name] for name in ("pubkey", "created_at", "kind", "tags", "content"))]
    return hashlib.sha256(json.dumps(parts, separators=(",", ":"), ensure_ascii=False).encode()).digest()


@pytest.mark.parametrize("content", [*TEXTS[:-1], ""])
def test_their_event_verifies_here(ask: Ask, content: str) -> None:
    secret = curve.fresh()
    draft = {"created_at": 1_700_000_000, "kind": 1, "tags": [["t", "agents"]], "content": content}
    event = ask("finish", secret=secret.hex(), event=draft)
    public, digest, signature = (bytes.fromhex(event[name]) for name in ("pubkey", "id", "sig"))
    assert public == curve.pubkey(secret)
    assert digest == event_id(event)
    assert curve.verify(public, digest, signature)
    assert not curve.verify(public, digest[::-1], signature)


@pytest.mark.parametrize("content", [*TEXTS[:-1], ""])
def test_our_event_verifies_there(ask: Ask, content: str) -> None:
    secret = curve.fresh()
    event: dict[str, Any] = {"pubkey": curve.pubkey(secret).hex(), "created_at": 1_700_000_000, "kind": 1, "tags": []}
    event["content"] = content
    digest = event_id(event)
    signed = event | {"id": digest.hex(), "sig": curve.sign(secret, digest).hex()}
    assert ask("public", secret=secret.hex()) == event["pubkey"]
    assert ask("verify", event=signed) is True
    assert ask("verify", event=signed | {"sig": curve.sign(curve.fresh(), digest).hex()}) is False


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: f"{len(text)}-{text[:4]!a}")
def test_nip44_both_ways(ask: Ask, text: str) -> None:
    mine, theirs = curve.fresh(), curve.fresh()
    key = nip44.conversation_key(mine, curve.pubkey(theirs))
    assert ask("key", secret=theirs.hex(), public=curve.pubkey(mine).hex()) == key.hex()
    assert nip44.decrypt(ask("encrypt", text=text, key=key.hex()), key) == text
    payload = nip44.encrypt(text, key)
    assert ask("decrypt", payload=payload, key=key.hex()) == text
    assert ask("decrypt", payload=payload, key=bytes(32).hex()) is None


@pytest.mark.parametrize("text", [*TEXTS, ""], ids=lambda text: f"{len(text)}-{text[:4]!a}")
def test_their_nip04_is_read_here(ask: Ask, text: str) -> None:
    mine, theirs = curve.fresh(), curve.fresh()
    payload = ask("encrypt04", text=text, secret=theirs.hex(), public=curve.pubkey(mine).hex())
    assert nip04.decrypt(payload, mine, curve.pubkey(theirs)) == text


def test_nip19_both_ways(ask: Ask) -> None:
    for _ in range(ROUNDS):
        key = curve.fresh()
        npub, nsec = ask("npub", key=key.hex()), ask("nsec", key=key.hex())
        assert (bech.npub(key), bech.nsec(key)) == (npub, nsec)
        assert bech.public_of(npub) == bech.secret_of(nsec) == key
        assert ask("decode", text=bech.npub(key)) == ["npub", key.hex()]
        assert ask("decode", text=bech.nsec(key)) == ["nsec", key.hex()]
        assert ask("decode", text=bech.npub(key)[:-1] + "b") is None


def test_nip06_both_ways(ask: Ask) -> None:
    for account in range(ROUNDS):
        for words in (ask("words"), seed.fresh_words(128), seed.fresh_words(256)):
            for passphrase in ("", "pässphrase"):
                mine = seed.secret_at(seed.seed_of(words, passphrase), account)
                assert ask("account", words=words, passphrase=passphrase, account=account) == mine.hex()


@pytest.mark.parametrize("payload", [None, {"payload": "hello", "ü": [1, None]}])
def test_their_token_is_read_here(ask: Ask, payload: object) -> None:
    """NIP-98, as a request signed by them says it."""
    secret, url = curve.fresh(), "https://example.org:8443/agents/a/inbox?x=1"
    header = ask("token", secret=secret.hex(), url=url, method="post", payload=payload)
    claim = claims.parse(header, Sent("POST", url))
    assert (claim.pubkey, claim.sent) == (curve.pubkey(secret).hex(), Sent("POST", url))
    assert curve.verify(curve.pubkey(secret), claim.digest, claim.sig)
    body = json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode()
    assert claim.body == (hashlib.sha256(body).hexdigest() if payload else None)


@pytest.mark.parametrize("payload", [None, {"payload": "hello", "ü": [1, None]}])
def test_our_token_is_read_there(ask: Ask, payload: object) -> None:
    secret, url = curve.fresh(), "https://example.org:8443/agents/a/inbox?x=1"
    body = json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode() if payload else b""
    digest = hashlib.sha256(body).hexdigest()
    event = claims.event(curve.pubkey(secret).hex(), Sent("POST", url), int(time.time()), "0123456789abcdef", digest)
    token = claims.nostr(event, curve.sign(secret, event_id(event)))
    about = {"url": url, "method": "post", "payload": payload}
    assert ask("check", token=token, **about) is True
    for name, other in (("url", url[:-1]), ("method", "get"), ("payload", {"payload": "bye"})):
        assert ask("check", token=token, **{**about, name: other}) is not True
