"""A mount with ``confirm`` on every face: each use waits until an approver allows it, once, and gets its own answer."""

from __future__ import annotations

import errno
import hashlib

import pytest
import trio
from confirmkit import BOTH, ask, desk, mount
from engines import fails
from faces import call, put, whole

from agentfs.providers.keys import curve
from agentfs.service import FileService
from agentfs.types import Path
from agentfs.views import Below
from conformance.drivers import Driver

# httpx leaves the generators of a stream that was cancelled half-way to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


async def pair(driver: Driver, words: str = "sign_only confirm=operator") -> tuple[FileService, FileService]:
    """A new agent whose identity is mounted with *words*: as the operator sees it and as it sees itself."""
    agent = await driver.agent("held")
    await mount(agent, words)
    return agent, Below(driver.tree, Path("views/held"))


async def is_signed(own: FileService, text: bytes, signature: bytes) -> bool:
    pubkey = bytes.fromhex((await whole(own, "identity/pubkey")).decode())
    return curve.verify(pubkey, hashlib.sha256(text).digest(), bytes.fromhex(signature.decode()))


async def test_each_use_waits_for_an_allow_of_its_own(driver: Driver) -> None:
    agent, own = await pair(driver)
    answers: list[bytes] = []

    async def sign() -> None:
        answers.append(await ask(own, b"the same text"))

    async with desk(agent) as operator, trio.open_nursery() as nursery:
        nursery.start_soon(sign)
        first = await operator.pending()
        assert (await operator.request(first)).rstrip(b"\n") == b"the same text" and not answers
        status = await operator.status(first)
        assert (status["kind"], status["state"], status["path"], status["source"], status["cost_usd"]) == (
            "confirm", "pending", "identity/sign", "held", 0,
        )  # fmt: skip
        assert status["hash"] == hashlib.sha256(b"the same text").hexdigest()
        with pytest.raises(PermissionError):
            await operator.decide(first, "allow", own)
        await operator.decide(first, "allow")
        await operator.next("used")
        await fails(errno.EEXIST, operator.decide(first, "allow"))
        nursery.start_soon(sign)
        second = await operator.pending()
        assert second != first and len(answers) <= 1
        await operator.decide(second, "allow")
    assert [await is_signed(own, b"the same text", answer) for answer in answers] == [True, True]
    trace = await whole(agent, "logs/trace")
    assert b"the same text" not in trace + await whole(agent, "approvals/events")
    assert trace.count(b'"hash":"' + status["hash"].encode()) >= 4


async def test_what_was_denied_is_refused_and_what_uses_no_key_does_not_wait(driver: Driver) -> None:
    agent, own = await pair(driver)
    async with desk(agent) as operator, trio.open_nursery() as nursery:
        nursery.start_soon(fails, errno.EACCES, ask(own, b"no"))
        await operator.decide(await operator.pending(), "deny")
    made = await call(agent, "identity/sign", {"text": "by the operator"})  # whom no mount table holds
    assert await call(own, "identity/verify", {"text": "by the operator", "sig": made["sig"]}) == {"valid": True}
    for name in ("pubkey", "npub", "history"):
        assert await whole(own, f"identity/{name}")
    assert b"write any text" in await whole(own, "identity/sign")
    async with desk(agent) as operator, trio.open_nursery() as nursery:
        request = b'{"to": "%s", "text": "x"}' % made["pubkey"].encode()
        nursery.start_soon(fails, errno.EACCES, ask(own, request, "identity/encrypt"))
        await operator.decide(await operator.pending(), "deny")
        nursery.start_soon(fails, errno.EACCES, ask(own, b'{"from": "x", "payload": "y"}', "identity/decrypt"))
        await operator.decide(await operator.pending(), "deny")
    assert await operator.states() == ["pending", "denied"] * 3


async def test_20_callers_get_what_was_decided_for_each(driver: Driver) -> None:
    agent, own = await pair(driver, "budgeted price_usd=1 confirm=operator")
    outcomes: dict[bytes, bool | int | None] = {}

    async def sign(text: bytes) -> None:
        try:
            outcomes[text] = await is_signed(own, text, await ask(own, text))
        except OSError as exc:
            outcomes[text] = exc.errno

    texts = [b"message %d" % number for number in range(20)]
    async with desk(agent) as operator, trio.open_nursery() as nursery:
        for text in texts:
            nursery.start_soon(sign, text)
        ids = [await operator.pending() for _ in texts]
        asked = {(await operator.request(id)).rstrip(b"\n"): id for id in ids}
        assert sorted(asked) == sorted(texts)
        for number, text in reversed(list(enumerate(texts))):
            await operator.decide(asked[text], "deny" if number % 2 else "allow")
    assert outcomes == {text: errno.EACCES if number % 2 else True for number, text in enumerate(texts)}
    assert b'"spent_usd": 10' in await whole(agent, "status")


async def test_a_table_that_changes_ends_who_waits(driver: Driver) -> None:
    """Also a change that takes only the confirmation away: who asked under the old line asks anew."""
    agent, own = await pair(driver)
    async with desk(agent) as operator:
        for words in ("sign_only confirm=operator,token:x", "sign_only"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fails, errno.EACCES, ask(own, b"text"))
                id = await operator.pending()
                await mount(agent, words)
                assert (await operator.next("withdrawn"))["id"] == id
            await fails(errno.EEXIST, operator.decide(id, "allow"))
    assert await is_signed(own, b"text", await ask(own, b"text"))


async def test_who_gives_up_is_not_signed_for(driver: Driver) -> None:
    """Cancelled in this process, a connection dropped, or a reader that is killed."""
    agent, own = await pair(driver)
    async with desk(agent) as operator, trio.open_nursery() as nursery:
        if driver.name == "fuse":
            path = f"{driver.place}/views/held/identity/sign"
            script = f"exec 3<>{path}; printf hello >&3; exec cat <&3"
            child = await trio.lowlevel.open_process(["bash", "-c", script])
        else:
            scope = trio.CancelScope()

            async def sign() -> None:
                with scope:
                    await ask(own, b"hello")

            nursery.start_soon(sign)
        id = await operator.pending()
        if driver.name == "fuse":
            child.kill()
            with trio.fail_after(60):
                await child.wait()
        else:
            scope.cancel()
        assert (await operator.next("withdrawn"))["id"] == id
        await fails(errno.EEXIST, operator.decide(id, "allow"))
    assert (await operator.status(id))["state"] == "withdrawn"
    assert b'"op":"sign"' not in await whole(agent, "logs/trace")


async def test_what_waits_holds_up_nothing_else(driver: Driver) -> None:
    """Neither other files of the same mount nor the write and the close of the same file."""
    agent, own = await pair(driver)
    async with desk(agent) as operator, trio.open_nursery() as nursery:
        nursery.start_soon(fails, errno.EACCES, ask(own, b"one"))
        id = await operator.pending()
        if "pieces" in driver.expresses:  # over HTTP nobody closes before the answer
            with trio.fail_after(60):
                handle = await own.open(Path("identity/sign"), BOTH)
                assert await handle.write(b"never read", 0) == 10
                await handle.flush()
                await handle.aclose()
        await put(own, b"hello\n")
        assert await whole(own, "identity/npub")
        await operator.decide(id, "deny")
    assert await operator.states() == ["pending", "denied"]
