"""Exec programs whose ticks run in sandboxes: by the same protocol, kept warm, ended with whatever ends the program."""

from __future__ import annotations

import errno
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path as FsPath
from typing import Any

import boxes
import pytest
from dockerkit import BUSYBOX, Boxes, Engine
from engines import fails
from faces import load, put
from llms import followed, said, traced

from agentfs.containers.port import Inside, Offer
from agentfs.engine.housing import Housing
from agentfs.providers.containers.bubblewrap import Bubblewrap
from agentfs.service import FileService
from conformance.drivers import Driver, in_process

ECHO = 'read -r line; echo "{\\"type\\": \\"reply\\", \\"payload\\": \\"$({ %s; } | xargs)\\"}"'


async def inside(agent: str) -> Inside:
    return Inside({"AGENTFS_AGENT": agent, "AGENTFS_TOKEN": secrets.token_hex(8)})  # as of a runtime, ever new


@pytest.fixture
async def box(tmp_path: FsPath) -> AsyncIterator[Bubblewrap]:
    async with boxes.opened(tmp_path / "boxes") as box:
        yield box


@asynccontextmanager
async def housed(tmp_path: FsPath, box: Bubblewrap, usd_per_hour: int = 0) -> AsyncIterator[Driver]:
    async with in_process("memory", tmp_path, housing=Housing({"here": Offer(box, usd_per_hour)}, inside)) as driver:
        yield driver


@pytest.fixture
async def here(tmp_path: FsPath, box: Bubblewrap) -> AsyncIterator[Driver]:
    async with housed(tmp_path, box) as driver:
        yield driver


async def made(driver: Driver, script: str, sandbox: dict[str, Any] | None = None, **config: Any) -> FileService:
    """An agent whose ticks are *script*, each on its own worth one try."""
    env = config.pop("env", {})
    program = {"kind": "exec", "argv": ["/bin/sh", "-c", script], "sandbox": sandbox or {}, "env": env}
    return await driver.agent("alice", program=program, retry={"attempts": 1}, **config)


async def failed(agent: FileService, text: str, ident: str = "m1") -> str:
    """Why the tick of *text* failed."""
    await put(agent, json.dumps({"id": ident, "payload": text}).encode())
    await followed(agent, "logs/trace", lambda record: bool(record.get("dead_letter")))
    return str((await load(agent, f"deadletter/{ident}.json"))["reason"])


async def removed(agent: FileService, box: Bubblewrap, count: int) -> None:
    """Wait until *count* sandboxes have been removed, and see that none is left."""
    await followed(agent, "logs/trace", lambda r: r["type"] == "container" and r["state"] == "complete", count)
    assert not await box.found()


async def test_it_replies_from_its_sandbox_and_finds_it_again(here: Driver, box: Bubblewrap) -> None:
    agent = await made(
        here, ECHO % 'echo x >> seen; wc -l < seen; id -u; pwd; echo "$AGENTFS_AGENT $MORE"', env={"MORE": "y"}
    )
    for number in ("1", "2"):
        reply = await said(agent, "go", f"m{number}")
        assert reply["payload"].split() == [number, str(boxes.OWNER.uid), "/work", "alice", "y"]
    assert [r["state"] for r in await traced(agent, "container")] == ["running"]
    (id,) = await box.found()
    assert id.startswith("tick-")
    await put(agent, b"hibernate\n", "ctl")
    await removed(agent, box, 1)
    assert (await said(agent, "go", "m3"))["payload"].split()[0] == "1"


async def test_it_reads_its_trigger_and_says_words_for_the_log(here: Driver) -> None:
    agent = await made(here, 'cat > t; grep -o hello t >&2; printf \'{"type":"state","state":1}\'; exit 0')
    await put(agent, b'{"id": "m1", "payload": "hello"}')
    await followed(agent, "logs/trace", lambda record: record.get("outcome") == "ok")
    assert [r["text"] for r in await traced(agent, "log")] == ["hello"]


async def test_files_of_the_machine_are_not_there(here: Driver, tmp_path: FsPath) -> None:
    (tmp_path / "secret").write_text("for nobody")
    agent = await made(here, ECHO % f"cat {tmp_path}/secret /etc/shadow 2>&1 | grep -c 'No such file'")
    assert (await said(agent, "go"))["payload"] == "2"


@pytest.mark.parametrize(
    ("script", "name", "reason"),
    [
        ("echo no good >&2; exit 3", "EREMOTEIO", "/bin/sh: exit 3: no good"),
        ("echo nonsense", "EINVAL", ""),
        ("yes '' | head -c 5000000", "EFBIG", "program printed more than"),
        (
            "for f in 1 2 3; do head -c 9000000 /dev/zero > $f; done; sleep 20",
            "ENOSPC",
            "/bin/sh: its sandbox ended it: disk",
        ),
    ],
)
async def test_a_failure_tells_why(here: Driver, box: Bubblewrap, script: str, name: str, reason: str) -> None:
    agent = await made(here, script, {"limits": {"max_disk_mb": 10}})
    told = await failed(agent, "go")
    assert told.startswith(f"{name}: ") and reason in told
    assert len(await box.found()) == (0 if name == "ENOSPC" else 1)  # cut off: not used again


@pytest.mark.parametrize("rest", ["", "; sleep 1000", "; yes"])
async def test_what_was_said_before_a_line_that_is_no_effect_is_told(here: Driver, box: Bubblewrap, rest: str) -> None:
    """Both pipes are read at a time, and stdout first: what is on the other one must not be lost for that."""
    agent = await made(here, f"head -c 200000 /dev/zero | tr '\\0' a >&2; echo >&2; echo why >&2; echo nonsense{rest}")
    assert (await failed(agent, "go")).startswith("EINVAL: ")
    assert [r["text"] for r in await traced(agent, "log")][-1] == "why"
    assert len(await box.found()) == (0 if rest else 1)


async def test_stop_ends_it(here: Driver, box: Bubblewrap) -> None:
    agent = await made(here, "echo begun >&2; sleep 1000")
    await put(agent, b'{"id": "m1", "payload": "go"}')
    await followed(agent, "logs/trace", lambda record: record.get("text") == "begun")
    await put(agent, b"stop\n", "ctl")
    await followed(agent, "logs/trace", lambda record: bool(record.get("dead_letter")))
    assert "tick ended by stop" in (await load(agent, "deadletter/m1.json"))["reason"]
    assert not await box.found()


async def test_time_limits_end_it(here: Driver, box: Bubblewrap) -> None:
    agent = await made(here, "sleep 1000", {"limits": {"max_time_secs": 1}})
    assert "sandbox: limits.max_time_secs: no end within 1 s" in await failed(agent, "go")
    assert not await box.found()


async def test_another_program_or_policy_gets_another_sandbox(here: Driver, box: Bubblewrap) -> None:
    agent = await made(here, ECHO % "echo x >> seen; wc -l < seen; ulimit -f")
    assert (await said(agent, "go", "m1"))["payload"].split() == ["1", str(512 * 2048)]
    await put(
        agent, json.dumps({"defaults": {"max_disk_mb": 8}, "most": {"max_disk_mb": 9}}).encode(), "containers/policy"
    )
    assert (await said(agent, "go", "m2"))["payload"].split() == ["1", str(8 * 2048)]
    config = await load(agent, "config")
    await put(agent, json.dumps(config | {"quarantine_after": 7}).encode(), "config")
    await removed(agent, box, 2)


async def test_the_policy_holds(here: Driver) -> None:
    for sandbox in ({"limits": {"max_memory_mb": 100_000}}, {"limits": {"allow_network": True}}):
        await fails(errno.EACCES, made(here, "true", sandbox))
    await fails(errno.ENOENT, made(here, "true", {"provider": "elsewhere"}))
    await fails(errno.EINVAL, made(here, "true", {"workdir": "/etc"}))
    await fails(errno.EINVAL, made(here, "true", env={"AGENTFS_TOKEN": "x"}))
    agent = await made(here, ECHO % "echo well")
    assert (await said(agent, "go", "m1"))["payload"] == "well"
    config = await load(agent, "config")
    config["program"]["sandbox"]["image"] = "other"
    await put(agent, b'{"blocked_images": ["other"]}', "containers/policy")
    await fails(errno.EACCES, put(agent, json.dumps(config).encode(), "config"))
    await put(agent, b'{"allowed_providers": []}', "containers/policy")
    assert "provider: none is allowed here" in await failed(agent, "go", "m2")


async def test_what_costs_money_is_refused(tmp_path: FsPath, box: Bubblewrap) -> None:
    async with housed(tmp_path, box, usd_per_hour=1) as driver:
        await fails(errno.EOPNOTSUPP, made(driver, "true"))


async def test_nothing_is_left(tmp_path: FsPath, box: Bubblewrap) -> None:
    async with housed(tmp_path, box) as driver:
        agent = await made(driver, ECHO % "echo well")
        await said(agent, "go")
        assert len(await box.found()) == 1
        await put(agent, b"terminate\n", "ctl")
        await removed(agent, box, 1)
    async with housed(tmp_path, box) as driver:
        await said(await made(driver, ECHO % "echo well"), "go")
    assert not await box.found()


async def test_a_container_stays_between_ticks(tmp_path: FsPath, docker_engine: Engine) -> None:
    provider = Boxes(docker_engine, tmp_path).provider
    housing = Housing({"engine": Offer(provider, image=BUSYBOX)}, inside)
    async with in_process("memory", tmp_path, housing=housing) as driver:
        script = ECHO % 'echo x >> seen; wc -l < seen; echo "$AGENTFS_TOKEN"'
        agent, tokens = await made(driver, script, {"limits": {"max_memory_mb": 64}}), set[str]()
        for number in ("1", "2"):
            count, token = (await said(agent, "go", f"m{number}"))["payload"].split()
            assert count == number
            tokens.add(token)
        assert len(tokens) == 2 and len(docker_engine.docker("ps", "-q").stdout.split()) == 1
        await put(agent, b"hibernate\n", "ctl")
        await followed(agent, "logs/trace", lambda r: r["type"] == "container" and r["state"] == "complete")
    assert list(await provider.found()) == [] and docker_engine.docker("ps", "-aq").stdout == ""
    await provider.aclose()
