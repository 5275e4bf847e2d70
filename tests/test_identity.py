"""An agent's identity on every face: keys that are used and never read; secrets likewise."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path as FsPath

import msgspec
import pytest
import trio
from engines import SEED, fails, running, settings, settle
from faces import call, load, put, whole
from test_tokens import world

from agentfs.bech32 import public_of
from agentfs.engine.engine import Engine
from agentfs.engine.settings import InlineProgram
from agentfs.limits import Limits
from agentfs.providers.clock import ManualClock
from agentfs.providers.keys import curve, nip44
from agentfs.providers.keys.keeper import Keeper
from agentfs.providers.programs.inline import Inline
from agentfs.providers.store.memory import MemoryStore
from agentfs.service import FileService
from agentfs.tree import Tree
from agentfs.types import OPERATOR, Mode, Path
from agentfs.views import Below
from conformance.drivers import Driver, in_process

# httpx leaves the generators of a stream that was cancelled half-way to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
PEER = bytes(31) + b"\2"
LOOKS = {"a": '{"a": 1} x', "b": "{pass", "c": "  [x", "d": ' {"a": 1}\t', "e": "[1]\n[2]"}


async def pair(driver: Driver, name: str = "signer") -> tuple[FileService, FileService]:
    return await driver.agent(name), Below(driver.tree, Path(f"views/{name}"))


async def answer(tree: FileService, path: str, data: bytes) -> bytes:
    """What comes back for *data* on one handle."""
    async with await tree.open(Path(path), Mode.READ | Mode.WRITE) as handle:
        await handle.write(data, 0)
        return await handle.read(1 << 17, 0)


async def test_bytes_texts_digests_and_events_are_signed(driver: Driver) -> None:
    agent, own = await pair(driver)
    pubkey = bytes.fromhex((await whole(own, "identity/pubkey")).decode())
    assert public_of((await whole(agent, "identity/npub")).decode().strip()) == pubkey
    signature = bytes.fromhex((await answer(own, "identity/sign", b"hello")).decode())
    digest = hashlib.sha256(b"hello").digest()
    assert curve.verify(pubkey, digest, signature) and not curve.verify(
        pubkey, hashlib.sha256(b"x").digest(), signature
    )
    for request in ({"text": "hello"}, {"digest": digest.hex(), "purpose": "test"}):
        made = await call(own, "identity/sign", request)
        assert made["pubkey"] == pubkey.hex() and curve.verify(pubkey, digest, bytes.fromhex(made["sig"]))
        checked = {k: v for k, v in request.items() if k != "purpose"}
        assert await call(agent, "identity/verify", {**checked, "sig": made["sig"]}) == {"valid": True}
        assert await call(own, "identity/verify", {"text": "other", "sig": made["sig"]}) == {"valid": False}
    event = await call(own, "identity/sign", {"event": {"kind": 1, "content": 'é\n"x"', "tags": [["t", "a"]]}})
    serial = [0, event["pubkey"], event["created_at"], 1, event["tags"], event["content"]]
    assert event["id"] == hashlib.sha256(msgspec.json.encode(serial)).hexdigest()
    assert curve.verify(pubkey, bytes.fromhex(event["id"]), bytes.fromhex(event["sig"]))
    assert await call(own, "identity/verify", {"event": event, "sig": event["sig"]}) == {"valid": True}
    assert await call(own, "identity/verify", {"event": {**event, "content": "y"}, "sig": ""}) == {"valid": False}
    trace = [msgspec.json.decode(line) for line in (await whole(agent, "logs/trace")).splitlines()]
    uses = [line for line in trace if line["type"] == "identity"]
    assert uses and digest.hex() in {use["hash"] for use in uses} and b"hello" not in await whole(agent, "logs/trace")


async def test_encryption_goes_both_ways(driver: Driver) -> None:
    _, own = await pair(driver)
    pubkey = bytes.fromhex((await whole(own, "identity/pubkey")).decode())
    key = nip44.conversation_key(PEER, pubkey)
    payload = (await answer(own, "identity/encrypt", msgspec.json.encode(
        {"to": curve.pubkey(PEER).hex(), "text": "only for you"}))).decode().strip()  # fmt: skip
    assert nip44.decrypt(payload, key) == "only for you"
    request = {"from": curve.pubkey(PEER).hex(), "payload": nip44.encrypt("and back", key)}
    assert await answer(own, "identity/decrypt", msgspec.json.encode(request)) == b"and back"
    request["payload"] = nip44.encrypt("x", key)[:-4] + "AAA="
    await fails(errno.EINVAL, answer(own, "identity/decrypt", msgspec.json.encode(request)))


async def test_100_signers_at_once_get_their_own_answers(driver: Driver) -> None:
    _, own = await pair(driver)
    pubkey = bytes.fromhex((await whole(own, "identity/pubkey")).decode())

    async def sign(number: int) -> None:
        text = f"message {number}".encode()
        signature = bytes.fromhex((await answer(own, "identity/sign", text)).decode())
        assert curve.verify(pubkey, hashlib.sha256(text).digest(), signature)

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(sign, number)


async def test_a_rotated_key_is_announced_and_verifies_for_a_while(driver: Driver) -> None:
    agent, own = await pair(driver)
    old = (await whole(own, "identity/pubkey")).decode().strip()
    made = await call(own, "identity/sign", {"text": "before"})
    with pytest.raises(PermissionError):
        await put(own, b"rotate\n", "identity/ctl")
    await put(agent, b"rotate\n", "identity/ctl")
    new = (await whole(own, "identity/pubkey")).decode().strip()
    assert new != old
    assert await call(own, "identity/verify", {"text": "before", "sig": made["sig"]}) == {"valid": True}
    assert await call(own, "identity/verify", {"text": "before", "sig": made["sig"], "pubkey": new}) == {"valid": False}
    trail = [msgspec.json.decode(line) for line in (await whole(agent, "logs/trajectory")).splitlines()]
    record = next(line for line in trail if line.get("event") == "rotated")
    statement = hashlib.sha256(record["statement"].encode()).digest()
    assert old in record["statement"] and new in record["statement"]
    assert curve.verify(bytes.fromhex(old), statement, bytes.fromhex(record["signature"]))
    history = [msgspec.json.decode(line) for line in (await whole(own, "identity/history")).splitlines()]
    assert [line["pubkey"] for line in history] == [old, new] and history[1]["until"] is None
    other = await driver.agent("other")
    assert (await whole(other, "identity/pubkey")).decode().strip() not in (old, new)


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        ("sign", {"digest": "00"}), ("sign", {}), ("sign", {"text": "a", "digest": "b"}), ("sign", {"secret": "x"}),
        ("sign", {"event": {"kind": "1", "content": ""}}), ("sign", {"event": {"kind": 1}}), ("sign", {"text": 5}),
        ("verify", {"text": "a"}), ("verify", {"text": "a", "sig": "zz"}), ("encrypt", {"to": "npub1x", "text": "a"}),
        ("encrypt", {"to": "00" * 32, "text": "a"}), ("encrypt", {"text": "a"}), ("decrypt", {"from": "ab"}),
    ],
)  # fmt: skip
async def test_bad_requests_name_the_field(tmp_path: FsPath, path: str, request_: dict[str, object]) -> None:
    async with in_process("memory", tmp_path) as driver:
        _, own = await pair(driver)
        await fails(errno.EINVAL, answer(own, f"identity/{path}", msgspec.json.encode(request_)))


async def test_secrets_are_written_and_never_read(driver: Driver) -> None:
    agent, own = await pair(driver)
    for value in (b"hunter2-first\n", b"hunter2-second"):
        try:
            await put(own, value, "secrets/api")
        except FileNotFoundError:
            async with await own.create(Path("secrets/api"), Mode.WRITE) as handle:
                await handle.write(value, 0)
                await handle.flush(final=True)
    for tree in (agent, own):
        with pytest.raises(PermissionError):
            await whole(tree, "secrets/api")
        assert [st.name for st in await tree.list(Path("secrets"))] == ["api", "status"]
    assert (await load(own, "secrets/status"))["api"]["set"] is True
    assert b"hunter2" not in await whole(agent, "logs/trace") + await whole(agent, "logs/trajectory")
    await agent.remove(Path("secrets/api"))
    assert await load(own, "secrets/status") == {}


async def test_a_new_agent_says_its_key(driver: Driver) -> None:
    made = await call(
        driver.tree, "agents/new", {"name": "known", "program": {"kind": "inline", "ref": "conformance.program:Echo"}}
    )
    status = await load(driver.tree, "agents/known/status")
    assert (
        made["pubkey"]
        == status["pubkey"]
        == (await whole(driver.tree, "agents/known/identity/pubkey")).decode().strip()
    )


async def test_a_key_from_elsewhere_takes_the_place_of_the_first(tmp_path: FsPath) -> None:
    """Sealed by the keeper, it is used like any other, and nobody can have it opened."""
    keeper, secret = Keeper(SEED), bytes(31) + b"\7"
    key = keeper.adopt(secret)
    assert secret not in key.imported
    await fails(errno.EPERM, keeper.unseal(f"key {key.pubkey.hex()}", key.imported))
    async with running(MemoryStore(clock := ManualClock()), clock) as engine:
        agent = await engine.create("a", settings())
        before = await engine.identities.current(agent)
        await fails(errno.EINVAL, engine.identities.adopt(agent, key.pubkey, key.imported[:-1] + b"x"))
        await fails(errno.EINVAL, engine.identities.adopt(agent, bytes(31) + b"\1", key.imported))
        row = await engine.identities.adopt(agent, key.pubkey, key.imported)
        assert row.pubkey == curve.pubkey(secret).hex() and before.pubkey in row.handover
        assert curve.verify(
            bytes.fromhex(before.pubkey), hashlib.sha256(row.handover.encode()).digest(), bytes.fromhex(row.signature)
        )
        _, signature = await engine.identities.sign(agent, bytes(32))
        assert curve.verify(key.pubkey, bytes(32), signature)
        await fails(errno.EEXIST, engine.identities.adopt(agent, key.pubkey, key.imported))
        assert (await engine.identities.rotate(agent)).pubkey not in (before.pubkey, row.pubkey)


async def test_the_keys_of_another_seed_are_refused_at_the_start(tmp_path: FsPath) -> None:
    store = MemoryStore(clock := ManualClock())
    async with running(store, clock) as engine:
        await engine.identities.current(await engine.create("a", settings()))
    other = Engine(
        store,
        clock,
        Limits(),
        lambda agent, config: Inline(InlineProgram(ref="engines:Script")),
        lambda a: Tree(),
        signer=Keeper.fresh(),
    )
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="another seed"), flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: other.run(task_status=task_status))


async def test_a_key_is_given_once_whatever_the_names_of_agents() -> None:
    """An agent may be called like a key's number: removing it frees no number, so nobody gets another's key."""
    clock = ManualClock()
    store = MemoryStore(clock)
    async with running(store, clock) as engine:
        await engine.create("keeper", settings())
        first = await engine.identities.current("keeper")
        await engine.create(first.number, settings())
        await engine.verb(first.number, "terminate", OPERATOR)
        await settle(engine)
        await engine.remove(first.number)
        await engine.create("later", settings())
        assert (await engine.identities.current("later")).pubkey != first.pubkey


async def test_an_event_of_somebody_else_is_not_of_the_key_that_was_asked_about(driver: Driver) -> None:
    agent, _ = await pair(driver)
    event = await call(agent, "identity/sign", {"event": {"kind": 1, "content": "x"}})
    ours, theirs = event["pubkey"], curve.pubkey(PEER).hex()
    assert await call(agent, "identity/verify", {"event": event, "pubkey": ours}) == {"valid": True}
    assert await call(agent, "identity/verify", {"event": event, "pubkey": theirs}) == {"valid": False}
    other = curve.sign(PEER, bytes.fromhex(event["id"])).hex()
    assert await call(agent, "identity/verify", {"event": event, "sig": other}) == {"valid": False}
    bare = {name: value for name, value in event.items() if name != "sig"}
    assert await call(agent, "identity/verify", {"event": bare, "sig": event["sig"]}) == {"valid": True}


async def test_the_end_of_the_line_behind_json_is_no_request(tmp_path: FsPath) -> None:
    async with in_process("memory", tmp_path) as driver:
        _, own = await pair(driver)
        pubkey = bytes.fromhex((await whole(own, "identity/pubkey")).decode())
        async with await own.open(Path("identity/sign"), Mode.READ | Mode.WRITE) as handle:
            await handle.write(b'{"text": "a"}', 0)
            await handle.write(b"\n", 13)
            made = msgspec.json.decode(await handle.read(1 << 17, 14))
            assert curve.verify(pubkey, hashlib.sha256(b"a").digest(), bytes.fromhex(made["sig"]))
            await handle.write(b"hello", 14)
            signature = bytes.fromhex((await handle.read(1 << 17, 19)).decode())
            assert curve.verify(pubkey, hashlib.sha256(b"hello").digest(), signature)


async def test_a_secret_is_all_the_bytes_of_it_whatever_they_look_like(driver: Driver) -> None:
    agent, _ = await pair(driver)
    for name, value in LOOKS.items():
        async with await agent.create(Path(f"secrets/{name}"), Mode.WRITE) as handle:
            await handle.write(f"{value}\n".encode(), 0)
            await handle.flush(final=True)
    assert set(await load(agent, "secrets/status")) == set(LOOKS)


async def test_a_secret_is_used_as_it_was_written() -> None:
    async with world(MemoryStore(clock := ManualClock()), clock) as (engine, house):
        tree = Below(house.attach(OPERATOR), Path("agents/a/secrets"))
        for name, value in LOOKS.items():
            async with await tree.create(Path(name), Mode.WRITE) as handle:
                for piece in (value[:3], value[3:], "\n"):
                    await handle.write(piece.encode(), 0)
            assert await engine.secrets.use("a", f"secret:{name}") == value
