"""Capability tokens: a derived one never allows more, and nothing that was not minted here is accepted."""

from __future__ import annotations

import base64
import errno
import random
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from agentfs.capability import expired, is_id, mint, narrow, parse_allow, root_key, verify
from agentfs.guards.confined import allows, leads
from agentfs.types import OPERATIONS, Caveat, Path

KEY = root_key("secret")
FORGED = 10_000
SEGMENTS = ("agents", "a", "ab", "b", "inbox", "kv", "x")
PATHS = st.lists(st.sampled_from(SEGMENTS), max_size=4).map(lambda parts: Path("/".join(parts)))
OPS = st.sets(st.sampled_from(sorted(OPERATIONS)), min_size=1).map(frozenset)
CAVEATS = st.builds(
    Caveat, id=st.just(""), allow=st.none() | st.lists(st.tuples(PATHS, OPS), max_size=3).map(tuple),
    expires_ns=st.none() | st.integers(1, 100), budget_usd=st.none() | st.integers(0, 1000),
    depth=st.none() | st.integers(0, 3),
)  # fmt: skip
ASKED = st.lists(st.tuples(PATHS, st.sampled_from(sorted(OPERATIONS))), min_size=1, max_size=30)


def chain(caveats: list[Caveat]) -> list[str]:
    """The token after each caveat, as far as depth lets it grow."""
    made = [mint(KEY, "operator", 1)]
    for caveat in caveats:
        try:
            made.append(narrow(made[-1], caveat)[0])
        except PermissionError:
            break
    return made


@examples(max_examples=300, deadline=None)
@given(caveats=st.lists(CAVEATS, max_size=5), asked=ASKED, now=st.integers(0, 100))
def test_a_derived_token_is_a_subset_of_its_parent(
    caveats: list[Caveat], asked: list[tuple[Path, str]], now: int
) -> None:
    found = [verify(KEY, token) for token in chain(caveats)]
    for parent, child in pairwise(found):
        assert child.by == parent.by and child.caveats[:-1] == parent.caveats and parent.ids < child.ids
        for path, operation in asked:
            is_allowed = allows(child.caveats, path, operation) and not expired(child.caveats, now)
            assert not is_allowed or (allows(parent.caveats, path, operation) and not expired(parent.caveats, now))
            assert not leads(child.caveats, path) or leads(parent.caveats, path)
            assert not allows(child.caveats, path, operation) or leads(child.caveats, path)
        parent_purses = {(c.id, c.budget_usd) for c in parent.caveats if c.budget_usd is not None}
        assert parent_purses <= {(c.id, c.budget_usd) for c in child.caveats}, "a budget on the way is never lost"


def mutants(token: str, rng: random.Random) -> str:
    """One way to tamper with *token*, chosen by *rng*."""
    parts = token.split(".")
    at = rng.randrange(1, len(parts))
    match rng.randrange(8):
        case 0:  # one character
            spot = rng.randrange(len(token))
            other = rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
            return token[:spot] + other + token[spot + 1 :]
        case 1:  # a link cut out
            return ".".join(parts[:at] + parts[at + 1 :])
        case 2:  # two links exchanged
            other_at = rng.randrange(1, len(parts))
            parts[at], parts[other_at] = parts[other_at], parts[at]
            return ".".join(parts)
        case 3:  # a link of one's own, the end kept
            link = base64.urlsafe_b64encode(msgspec.json.encode({"nonce": "x"})).rstrip(b"=").decode()
            return ".".join([*parts[:at], link, *parts[at:]])
        case 4:  # more rights written into a link
            block = base64.urlsafe_b64decode(parts[at] + "=" * (-len(parts[at]) % 4))
            wider = block.replace(b'"read"', b'"write"').replace(b"agents/a", b"agents")
            return ".".join([*parts[:at], base64.urlsafe_b64encode(wider).rstrip(b"=").decode(), *parts[at + 1 :]])
        case 5:  # signed with another key
            return chain([Caveat("", parse_allow(["/:read"]))])[-1][:-43] + token[-43:]
        case 6:  # the same bytes written in another way
            return rng.choice([token + "=", token + "\n", f" {token}", token.replace("-", "+"), token + "."])
        case _:  # something else entirely
            return ".".join(["cap1", *(base64.urlsafe_b64encode(rng.randbytes(40)).decode() for _ in range(3))])


def test_no_forged_token_is_accepted() -> None:
    """10,000 tampered tokens, none of which is one that was minted: all are refused."""
    rng, accepted, tried = random.Random(7), [], 0
    allow = parse_allow(["/agents/a:read"])
    tokens = [mint(KEY, by, 5) for by in ("operator", "agent:a")]
    tokens += [narrow(t, Caveat("", allow, 10**18, 500, 2))[0] for t in list(tokens)]
    tokens += [narrow(t, Caveat("", allow))[0] for t in list(tokens)]
    while tried < FORGED:
        forged = mutants(rng.choice(tokens), rng)
        if forged in tokens:
            continue
        tried += 1
        try:
            verify(KEY, forged)
        except OSError as exc:
            assert exc.errno == errno.EACCES
        else:
            accepted.append(forged)
    assert accepted == []
    for token in tokens:
        verify(KEY, token)
        with pytest.raises(PermissionError):
            verify(root_key("another"), token)


def test_depth_bounds_how_often_it_is_handed_on() -> None:
    token, _ = narrow(mint(KEY, "operator", 1), Caveat("", depth=1))
    child, _ = narrow(token, Caveat("", depth=9))
    with pytest.raises(PermissionError):
        narrow(child, Caveat(""))
    with pytest.raises(OSError, match="links"):
        endless = mint(KEY, "operator", 1)
        for _ in range(40):
            endless, _ = narrow(endless, Caveat(""))


def test_an_unknown_caveat_fails_closed() -> None:
    """A link that a later version understands and this one does not must not be passed over."""
    import hashlib
    import hmac

    token = mint(KEY, "operator", 1)
    root, mac = (base64.urlsafe_b64decode(p + "=" * (-len(p) % 4)) for p in token.split(".")[1:])
    block = b'{"nonce":"x","only_on_mondays":true}'
    end = hmac.new(mac, block, hashlib.sha256).digest()
    text = ".".join(["cap1", *(base64.urlsafe_b64encode(p).rstrip(b"=").decode() for p in (root, block, end))])
    with pytest.raises(PermissionError):
        verify(KEY, text)


def test_the_id_of_a_link_cannot_be_chosen() -> None:
    """Or one could make another's token expire, be revoked, or run out of money."""
    token = mint(KEY, "operator", 1)
    (first, id_1), (second, id_2) = narrow(token, Caveat("mine")), narrow(token, Caveat("mine"))
    assert first != second and id_1 != id_2 and is_id(id_1)
    assert [c.id for c in verify(KEY, first).caveats] == [id_1]


@pytest.mark.parametrize("word", ["/a:fly", "/a:", "/../x:read", "a//b:read", "/a:read+fly"])
def test_a_wish_that_is_not_understood_is_refused(word: str) -> None:
    with pytest.raises(OSError) as caught:
        parse_allow([word])
    assert caught.value.errno == errno.EINVAL


def test_prefixes_end_at_a_segment() -> None:
    (caveat,) = [Caveat("", parse_allow(["/agents/a:read+write", "/agents/b/kv:read"]))]
    for path, operation, answer in (
        ("agents/a", "read", True), ("agents/a/kv/x", "write", True), ("agents/ab", "read", False),
        ("agents/a/kv/x", "manage", False), ("agents", "read", False), ("", "read", False),
        ("agents/b/kv", "read", True), ("agents/b/kv", "write", False), ("agents/a/outbox@follow", "read", True),
    ):  # fmt: skip
        assert allows([caveat], Path(path), operation) is answer, (path, operation)
    assert leads([caveat], Path("agents")) and leads([caveat], Path("")) and not leads([caveat], Path("views"))
