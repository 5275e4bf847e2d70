"""`identity/authorize`: what an agent signs for a request is let in where its key is; a bad wish names its field."""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from engines import Script, fails, settle
from faces import whole
from signkit import BASE, FORMS, Place, place, sha

from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.types import Mode, Path

PUT = ("PUT", "/agents/a/kv/x")
REPLAYED = "replayed: this request was let in already"


@pytest.fixture
async def here(store: Store, clock: ManualClock) -> AsyncIterator[Place]:
    async with place(store, clock) as found:
        yield found


async def authorized(here: Place, **wish: Any) -> str:
    """The header that the agent "b" signs."""
    async with await here.tree.open(Path("agents/b/identity/authorize"), Mode.READ | Mode.WRITE) as handle:
        await handle.write(json.dumps(wish).encode(), 0)
        return (await handle.read(1 << 16, 0)).decode().removesuffix("\n")


@pytest.mark.parametrize("form", FORMS)
async def test_what_an_agent_authorizes_is_let_in(here: Place, form: str) -> None:
    """One agent of this runtime writes to another; the record says what was asked, without the query."""
    signer = (await whole(here.tree, "agents/b/identity/pubkey")).decode().strip()
    async with await here.tree.create(Path(f"agents/a/grants/{signer}"), Mode.WRITE) as handle:
        await handle.write(b'{"allow": ["/inbox:write", "/kv:read+write"]}', 0)
    for method, target, body in (("POST", "/agents/a/inbox", '{"payload": "hi"}'), ("PUT", "/agents/a/kv/x", "1"),
                                 ("GET", "/agents/a/kv?recursive=secret", "")):  # fmt: skip
        for part in [{"body": body}, {"sha256": sha(body.encode())}, *([{}] if not body else [])]:
            header = await authorized(here, method=method, url=f"{BASE}{target}", form=form, **part)
            assert (await here.send(header, method, target, body.encode())).status < 300
            assert (await here.send(header, method, target, body.encode())).why[2] == REPLAYED
    await settle(here.engine)
    assert Script.ran[0] == (signer, "hi")
    trace = await whole(here.tree, "agents/b/logs/trace")
    assert b'"purpose":"request GET http://127.0.0.1/agents/a/kv"' in trace and b"recursive" not in trace


async def test_headers_that_act_are_authorized(here: Place) -> None:
    signer = (await whole(here.tree, "agents/b/identity/pubkey")).decode().strip()
    async with await here.tree.create(Path(f"agents/a/grants/{signer}"), Mode.WRITE) as handle:
        await handle.write(b'{"allow": ["/kv:read+write"]}', 0)
    acting = {"If-None-Match": "*", "Idempotency-Key": "a key"}
    header = await authorized(here, method="PUT", url=f"{BASE}{PUT[1]}", body="1", headers=acting)
    assert (await here.send(header, *PUT, b"1", list(acting.items()))).status == 201


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"method": "get"}, "method"), ({"method": "GET\n"}, "method"), ({"url": "/agents"}, "url"),
        ({"url": "ftp://x/"}, "url"), ({"url": "http://x/a b"}, "url"), ({"url": "http://x/#y"}, "url"),
        ({"url": "http://me:secret@x/"}, "url"), ({"url": "http://[x/"}, "url"), ({"url": "http:///x"}, "url"),
        ({"url": "http://x/\u00e9"}, "url"), ({"form": "other"}, "form"), ({"sha256": "00"}, "sha256"),
        ({"body": "a", "sha256": "00" * 32}, "body"), ({"headers": {"Range": "x"}}, "headers"), ({"x": 1}, "x"),
        ({"headers": {"If-Match": "1\n2"}}, "headers"), ({"headers": {"If-Match": " 1"}}, "headers"),
        ({"headers": {"If-Match": "1", "if-match": "1"}}, "headers"), ({"body": 5}, "body"),
        ({"form": "nostr", "headers": {"If-Match": "1"}}, "headers"), ({"url": None}, "url"),
    ],
)  # fmt: skip
async def test_a_wish_in_bad_form_names_the_field(here: Place, wish: dict[str, Any], field: str) -> None:
    exc = await fails(errno.EINVAL, authorized(here, **{"method": "GET", "url": "http://x/y", **wish}))
    assert field in str(exc) and "secret" not in str(exc)
