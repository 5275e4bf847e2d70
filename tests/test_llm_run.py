"""A model that runs code: a sandbox a call, by the agent's own mounts, money, policy and journal."""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator
from pathlib import Path as FsPath
from typing import Any

import boxes
import pytest
from engines import fails
from faces import load, put, whole
from fake_openai import FakeOpenAI, serving
from llms import PRICES, made, mounted, own, said, traced

from agentfs.containers.port import Offer
from agentfs.engine.housing import Housing
from agentfs.providers.clock import SystemClock
from agentfs.providers.compute.openai import OpenAI
from agentfs.providers.programs.errand import Errand
from agentfs.providers.programs.tools import Tools
from agentfs.types import Path
from conformance.drivers import Driver, in_process

# httpx leaves the generators of a stream that was cancelled half-way to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenAI]:
    async with serving() as fake:
        yield fake


@pytest.fixture
async def here(tmp_path: FsPath, fake: FakeOpenAI) -> AsyncIterator[Driver]:
    provider = OpenAI(fake.url, is_local=True)
    async with boxes.opened(tmp_path / "boxes") as box:
        housing = Housing({"here": Offer(box)})
        async with in_process("memory", tmp_path, {"local": (provider, "")}, housing) as driver:
            await put(driver.tree, json.dumps(PRICES).encode(), "runtime/compute/prices")
            yield driver
    await provider.aclose()


def offered(fake: FakeOpenAI, request: int = -1) -> list[str]:
    return [tool["function"]["name"] for tool in fake.requests[request]["tools"]]


def results(fake: FakeOpenAI, request: int = -1) -> list[str]:
    return [m["content"] for m in fake.requests[request]["messages"] if m["role"] == "tool"]


async def test_it_runs_what_it_wrote(here: Driver, fake: FakeOpenAI) -> None:
    agent = await made(here)
    fake.script.extend(
        [
            [("run", {"command": "cat > p.sh; sh p.sh", "stdin": "echo out; echo err >&2; exit 3"})],
            [("run", {"command": "ls; printf '\\377'"}), ("run", {"command": "sleep 100", "timeout_ms": 300})],
            "It works.",
        ]
    )
    assert (await said(agent, "write a program"))["payload"].strip() == "It works."
    assert offered(fake, 0) == ["list", "read", "write", "call", "watch", "run"]
    found = results(fake)
    assert found[0] == "[exit 3]\nout\n[stderr]\nerr" and found[1] == "[exit 0]\n\ufffd"
    assert found[2] == "[expired: its time is over]"
    done = await traced(agent, "tool_done")
    assert [(r["name"], r["path"], r.get("errno")) for r in done] == [("run", "containers/new", None)] * 3
    sessions = await own(here).list(Path("containers/sessions"))
    assert len(sessions) == 3


async def test_without_sandboxes_there_is_no_such_tool(here: Driver, fake: FakeOpenAI, tmp_path: FsPath) -> None:
    agent = await made(here)
    lines = (await whole(agent, "ns")).decode().splitlines()
    await put(agent, "".join(f"{line}\n" for line in lines if "mount containers" not in line).encode(), "ns")
    fake.script.extend([[("run", {"command": "true"})], "Cannot."])
    await said(agent, "go")
    assert offered(fake) == ["list", "read", "write", "call", "watch"]
    assert results(fake) == ["EACCES: no tool 'run' here"]
    rest = "".join(f"{line}\n" for line in lines if "mount containers" not in line)
    await put(agent, f"{rest}mount containers /containers disabled\n".encode(), "ns")
    fake.script.append("Well.")
    await said(agent, "go", "m2")
    assert "run" not in offered(fake)
    bare = await made(here, "bare", tools=["run"])
    fake.script.append("Well.")
    await said(bare, "go")
    assert offered(fake) == ["run"]


async def test_no_instruction_reaches_past_the_policy(here: Driver, fake: FakeOpenAI) -> None:
    agent = await made(here)
    rules = {"defaults": {"max_time_secs": 1, "max_disk_mb": 4}, "most": {"max_time_secs": 1, "max_disk_mb": 4}}
    await put(agent, json.dumps(rules).encode(), "containers/policy")
    dear = {"commands": ["true"], "limits": {"allow_network": True}}
    large = {"commands": ["true"], "limits": {"max_memory_mb": 100_000}}
    first: list[tuple[str, Any]] = [
        ("run", {"command": "sleep 60", "timeout_ms": 60_000}), ("run", {"command": "true", "limits": {}}),
        ("call", {"path": "containers/new", "text": json.dumps(dear)}), ("run", {"command": "x", "timeout_ms": 10**12}),
        ("call", {"path": "containers/new", "text": json.dumps(large)}),
        ("write", {"path": "containers/policy", "text": "{}"}), ("run", {"command": "true", "path": "kv"}),
        ("run", {"command": "curl -m 2 -s http://127.0.0.1; id -u; ls /root /etc/shadow"}), ("run", {"command": " "}),
    ]  # fmt: skip
    fake.script.extend([first, "I tried."])
    await said(agent, "go")
    found = results(fake)
    assert found[0] == "[expired: its time is over]"
    assert [text.partition(":")[0] for text in found[1:7]] == [
        "EINVAL", "EACCES", "EINVAL", "EACCES", "EACCES", "EINVAL"
    ]  # fmt: skip
    assert f"\n{boxes.OWNER.uid}\n" in found[7] and found[7].count("No such file or directory") == 2
    assert found[8].startswith("EINVAL")


async def test_money_holds(tmp_path: FsPath, fake: FakeOpenAI) -> None:
    provider = OpenAI(fake.url, is_local=True)
    async with boxes.opened(tmp_path / "boxes") as box:
        housing = Housing({"here": Offer(box, usd_per_hour=3_600_000_000)})
        async with in_process("memory", tmp_path, {"local": (provider, "")}, housing) as driver:
            await put(driver.tree, json.dumps(PRICES).encode(), "runtime/compute/prices")
            agent = await made(driver)
            await mounted(agent, "containers", "budgeted", "per_tick_usd=500000")
            fake.script.extend(
                [[("run", {"command": "true"}), ("run", {"command": "true", "timeout_ms": 400})], "Dear."]
            )
            await said(agent, "go")
            assert results(fake)[0].startswith("EDQUOT: ") and results(fake)[1] == "[exit 0]"
            day = (await load(own(driver), "containers/usage"))["day"]
            assert 0 < day["spent_usd"] <= 400_000 and day["reserved_usd"] == 0
    await provider.aclose()


async def test_the_same_key_runs_once_and_long_output_is_cut(here: Driver) -> None:
    await made(here)
    files = own(here)
    line = "yes out | head -n 3000; yes err | head -n 3000 >&2; echo end >&2; cat /proc/sys/kernel/random/uuid >&2"
    errand = Errand(line, "", 10_000, "k")
    text = await errand.run(files, 1000)
    assert text.startswith("[exit 0]\nout\n") and "\n[cut]\n[stderr]\n[cut]\n" in text and "\nend\n" in text
    assert len(text) < 1100 and await errand.run(files, 1000) == text
    await fails(errno.EEXIST, Errand("true", "", 10_000, "k").run(files, 1000))
    await fails(errno.EILSEQ, Errand("\ud800", "", 10_000, "k2").run(files, 1000))
    short = await Tools(files, SystemClock(), 100).use("run", json.dumps({"command": "yes", "timeout_ms": 200}), "k3")
    assert short.startswith("[expired") and len(short) < 200
