"""containers on every face: code that nobody trusts, run by a real bubblewrap through files."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path as FsPath
from typing import Any

import msgspec
import pytest
from boxkit import exec_in, housed, new, pair, ran, records, running, script, stopped, text, until
from engines import fails
from faces import call, load, put, whole
from llms import mounted

from agentfs.service import FileService
from agentfs.types import Mode, Path, Want
from conformance.drivers import DRIVERS, STORES, Driver

# httpx leaves the generators of a stream that was cancelled half-way to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
EACH_FACE = ("in-process-memory", "http-memory", "fuse-sqlite")
ONE = ("in-process-sqlite",)


@pytest.fixture(params=[f"{driver}-{store}" for driver in DRIVERS for store in STORES])
async def driver(request: pytest.FixtureRequest, tmp_path: FsPath) -> AsyncIterator[Driver]:
    async with housed(request.param, tmp_path) as driver:
        yield driver


async def test_code_is_run_and_tells_all_it_said(driver: Driver) -> None:
    agent, own = await pair(driver)
    made = await new(own, "cat; echo two >&2", "printf 'a\\377b'; exit 7", "echo never", stdin="one\n", env={"A": "1"})
    top = f"containers/sessions/{made['session_id']}"
    assert made["status"] == "provisioning" and made["result_path"] == f"{top}/result" and made["is_new"]
    found = await records(own, made["output_path"])
    assert text(found) == "one\n" and text(found, "stderr") == "two\n"
    assert [record["base64"] for record in found if "base64" in record] == ["Yf9i"]
    assert found[-1] == {"seq": 4, "stream": "stdout", "data": "", "done": True, "exit_code": 7, "status": "complete"}
    late = [msgspec.json.decode(line) for line in (await whole(agent, made["output_path"])).splitlines()]
    assert late == found == await records(own, made["output_path"])
    status, result = await load(own, f"{top}/status"), await load(own, f"{top}/result")
    assert (status["status"], status["exit_code"], status["provider_id"]) == ("complete", 7, "bubblewrap")
    assert (result["session_id"], result["exit_code"], result["stdout"]) == (made["session_id"], 7, "a\ufffdb")
    assert [(one["exit_code"], one["stdout"]) for one in result["command_results"]] == [(0, "one\n"), (7, "a\ufffdb")]
    assert result["command_results"][0]["stderr"] == "two\n" and result["duration_ms"] >= 0
    assert (result["cost_usd"], result["reserved_usd"], result["artifacts"]) == (0, 0, [])
    assert set(await load(own, f"{top}/usage")) >= {"cpu_time_ms", "peak_memory_bytes", "disk_bytes", "cost_usd"}
    assert [st.name for st in await agent.list(Path("containers/sessions"))] == [made["session_id"]]
    await fails(errno.ESTALE, call(own, f"{top}/exec/new", {"command": "true"}))


async def test_an_interactive_session_stays(driver: Driver) -> None:
    _, own = await pair(driver)
    session = await running(own, workdir="/home/work")
    await fails(errno.EAGAIN, whole(own, f"{session}/result"))
    assert (await load(own, f"{session}/status"))["status"] == "running"
    await put_file(own, f"{session}/files/in.txt", b"given\n")
    said = await exec_in(
        own, session, "pwd; cat in.txt; mkdir d; echo made > d/out; cat", stdin="words", env={"B": "2"}
    )
    assert (said["status"], said["exit_code"], said["stdout"]) == ("complete", 0, "/home/work\ngiven\nwords")
    assert await whole(own, f"{session}/files/d/out") == b"made\n"
    assert sorted(st.name for st in await own.list(Path(f"{session}/files"))) == ["d", "in.txt"]
    assert (await exec_in(own, session, ["cat", "out"], cwd="d"))["stdout"] == "made\n"
    asked = await call(own, f"{session}/exec/new", {"command": "echo on; sleep 60"})
    where = f"{session}/exec/{asked['exec_id']}"
    await until(own, f"{where}/output", "on")
    await fails(errno.EAGAIN, whole(own, f"{where}/result"))
    await put(own, b"cancel\n", f"{where}/ctl")
    ended = await records(own, f"{where}/output")
    assert text(ended) == "on\n" and (await load(own, f"{where}/status"))["status"] == "cancelled"
    await fails(errno.ECANCELED, whole(own, f"{where}/result"))
    await fails(errno.EEXIST, put(own, b"cancel\n", f"{where}/ctl"))
    await put(own, b"keepalive\n", f"{session}/ctl")
    status = await stopped(own, session)
    assert (status["status"], status["error"], status["exit_code"]) == ("complete", "stopped", None)
    assert await whole(own, f"{session}/files/in.txt") == b"given\n"  # it stays behind the end
    await put(own, b"stop\n", f"{session}/ctl")
    await fails(errno.ENOENT, whole(own, f"{session}/files/in.txt"))
    assert not (await load(own, f"{session}/status"))["has_files"]
    await fails(errno.ESTALE, put(own, b"keepalive\n", f"{session}/ctl"))


async def put_file(own: FileService, path: str, data: bytes) -> None:
    async with await own.create(Path(path), Mode.WRITE) as handle:
        await handle.write(data, 0)
        await handle.flush(final=True)


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "commands"), ({"commands": [""]}, "commands[0]"), ({"commands": ["a", ["b\0"]]}, "commands[1]"),
    ({"commands": [[]]}, "commands[0]"), (script(*["true"] * 101), "commands"), (script("a" * 100_001), "commands[0]"),
    (script("true", kind="forever"), "kind"), (script("true", secret=1), "secret"), (script("true", image=1), "image"),
    *((script("true", workdir=path), "workdir") for path in ("work", "/", "/etc/x", "/a/../b", "/agent", "/a b")),
    (script("true", env={"A-B": "1"}), "env"), (script("true", env={"A": "\0"}), "env"),
    (script("true", env={"AGENTFS_TOKEN": "x"}), "env.AGENTFS_TOKEN"), (script("true", timeout_ms=0), "timeout_ms"),
    *((script("true", limits={name: 0}), f"limits.{name}") for name in ("max_time_secs", "max_cpu_cores")),
    (script("true", limits={"max_file_mb": 0}), "limits.max_file_mb"),
    (script("true", limits={"max_disk_mb": -1}), "limits.max_disk_mb"), (script("true", limits={"cores": 1}), "cores"),
    (script("true", limits={"max_time_secs": 86_401}), "limits.max_time_secs"),
    (script("true", artifacts=["a"]), "artifacts[0]"),
    (script("true", kind="build", artifacts=["../a"]), "artifacts[0]"),
    (script("true", kind="build", artifacts=["a"] * 101), "artifacts"),  # each costs time for every file there is
    (script("true", kind="build", artifacts=["a" * 1001]), "artifacts[0]"),
    (script("true", max_cost_usd=-1), "max_cost_usd"), (script("true", idempotency_key="k" * 201), "idempotency_key"),
    *((script("true", repo={"url": url}), "repo.url") for url in ("file:///etc", "ssh://h/p", "https://u:p@h/p", "-x")),
    (script("true", repo={"url": "https://h/p", "git_ref": "--upload-pack=x"}), "repo.git_ref"),
    (script("true", repo={"url": "https://h/p", "subdir": "../x"}), "repo.subdir"),
]  # fmt: skip
FORBIDDEN: list[tuple[dict[str, Any], str]] = [
    (script("true", limits={"allow_network": True}), "limits.allow_network"),
    (script("true", repo={"url": "https://h/p"}), "repo"), (script("true", image="bad-one"), "image"),
    *((script("true", limits={name: 1 << 16}), f"limits.{name}") for name in ("max_time_secs", "max_memory_mb")),
    (script("true", limits={"max_file_mb": 4097}), "limits.max_file_mb"),
    (script("true", limits={"max_cpu_cores": 4.5}), "limits.max_cpu_cores"),
]  # fmt: skip


@pytest.mark.parametrize("driver", EACH_FACE, indirect=True)
async def test_a_file_has_a_largest_size(driver: Driver) -> None:
    agent, own = await pair(driver)
    most = {"max_time_secs": 60, "max_file_mb": 2}
    await put(agent, json.dumps({"defaults": {"max_file_mb": 1}, "most": most}).encode(), "containers/policy")
    session, piece = await running(own), b"x" * (1 << 19)
    async with await own.create(Path(f"{session}/files/big"), Mode.WRITE) as handle:
        for number in range(2):
            await handle.write(piece, number << 19)
        with pytest.raises(OSError) as caught:
            await handle.write(piece, 1 << 20)
            await handle.flush(final=True)
        assert caught.value.errno == errno.EFBIG
    assert (await own.stat(Path(f"{session}/files/big"))).size == 1 << 20
    inside = await exec_in(own, session, "exec dd if=/dev/zero of=more bs=1M count=2")
    assert (inside["exit_code"], inside["limit"], inside["errno"]) == (153, "file", "EFBIG")


@pytest.mark.parametrize("driver", EACH_FACE, indirect=True)
async def test_what_cannot_be_is_refused_by_its_field(driver: Driver) -> None:
    agent, own = await pair(driver)
    with pytest.raises(PermissionError):
        await put(own, b"{}", "containers/policy")
    await put(agent, json.dumps({"blocked_images": ["bad-*"]}).encode(), "containers/policy")
    for wanted, number in ((BAD, errno.EINVAL), (FORBIDDEN, errno.EACCES)):
        for request, field in wanted:
            exc = await fails(number, call(own, "containers/new", request))
            assert driver.place or field in str(exc), (request, exc)
    for request, number in (
        (script("true", provider="none-such"), errno.ENOENT), (script("true", max_cost_usd=1), 0),
        (script("true", image="none-such"), 0),
    ):  # fmt: skip
        if number:
            await fails(number, call(own, "containers/new", request))
        else:
            await ran(own, *request.pop("commands"), **request)
    for bad, field in (({"max_sessions": -1}, "max_sessions"), ({"most": {"max_disk_mb": 0}}, "max_disk_mb"), ([], "")):
        exc = await fails(errno.EINVAL, put(agent, json.dumps(bad).encode(), "containers/policy"))
        assert driver.place or field in str(exc)
    session = await running(own)
    for command, field in (({"command": ""}, "command"), ({"command": "a", "cwd": "../x"}, "cwd"),
                           ({"command": "a", "timeout_ms": 0}, "timeout_ms"), ({"command": 1}, "command")):  # fmt: skip
        exc = await fails(errno.EINVAL, call(own, f"{session}/exec/new", command))
        assert driver.place or field in str(exc), (command, exc)
    await wrong_kinds(driver, own, session)


async def wrong_kinds(driver: Driver, own: FileService, session: str) -> None:
    """Paths that are not there, or not of that kind."""
    none = "containers/sessions/none"
    for path in (f"{none}/status", f"{session}/exec/none/status", f"{session}/none", f"{session}/files/none",
                 "containers/providers/none/info", f"{none}/files/x"):  # fmt: skip
        await fails(errno.ENOENT, whole(own, path))
    await fails(errno.EISDIR, whole(own, f"{session}/files"))
    await fails(errno.ENOTDIR, own.list(Path(f"{session}/status")))
    await fails(errno.EINVAL, put(own, b"dance\n", f"{session}/ctl"))
    for path in ("status", "result", "output", "usage"):
        with pytest.raises(OSError):
            await put(own, b"x", f"{session}/{path}")
    with pytest.raises(OSError):
        await own.remove(Path(session))


@pytest.mark.parametrize("driver", ["in-process-sqlite", "http-memory"], indirect=True)
async def test_the_same_key_is_one_session_and_one_exec(driver: Driver) -> None:
    _, own = await pair(driver)
    every = [await new(own, "echo x", idempotency_key="k") for _ in range(3)]
    assert len({made["session_id"] for made in every}) == 1
    assert [made["is_new"] for made in every] == [True, False, False]
    await fails(errno.EEXIST, new(own, "echo y", idempotency_key="k"))
    session = await running(own)
    asks = [await call(own, f"{session}/exec/new", {"command": "echo x", "idempotency_key": "k"}) for _ in range(3)]
    assert len({asked["exec_id"] for asked in asks}) == 1 and [asked["is_new"] for asked in asks] == [
        True,
        False,
        False,
    ]
    await fails(errno.EEXIST, call(own, f"{session}/exec/new", {"command": "echo y", "idempotency_key": "k"}))
    if "version" in driver.expresses:  # a mount has no header for a key
        first, again = [await new(own, "echo z", want=Want(key="from-the-header")) for _ in range(2)]
        assert first["session_id"] == again["session_id"]


@pytest.mark.parametrize("driver", ["in-process-memory", "fuse-sqlite"], indirect=True)
async def test_a_build_names_what_it_made(driver: Driver) -> None:
    agent, own = await pair(driver)
    await put_file(agent, "secrets/key", b"hidden-word")
    build = "mkdir -p out/deep; printf one > out/a.bin; printf $KEY | rev > out/deep/b.bin; echo no > skip"
    found = await ran(own, build, kind="build", artifacts=["out/*.bin"], env={"KEY": "secret:key"})
    assert found["exit_code"] == 0, found
    made = {"out/a.bin": b"one", "out/deep/b.bin": b"drow-neddih"}
    assert sorted(found["artifacts"], key=lambda each: str(each["path"])) == [
        {"path": path, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for path, data in made.items()
    ]
    top = f"containers/sessions/{found['session_id']}"
    assert await whole(own, f"{top}/files/out/deep/b.bin") == b"drow-neddih"
    for path in ("status", "result", "output"):
        assert b"hidden-word" not in await whole(own, f"{top}/{path}")
    pipes = (
        "mkfifo pipe; ln -s . round; ln -s /etc out; ln -s no1 lost; echo >plain; mkdir no; echo >shut; chmod 0 s* no"
    )
    found = await ran(own, pipes, kind="build", artifacts=["*"])
    assert found["status"] == "complete", found
    assert {"plain"} <= {each["path"] for each in found["artifacts"]} <= {"plain", "shut", "round/plain", "round/shut"}
    lost = await ran(own, "true", env={"KEY": "secret:none"})
    assert (lost["status"], lost["errno"]) == ("failed", "ENOENT") and "none" in lost["error"]
    await put_file(agent, "secrets/odd", b"x\0--ro-bind\0/\0/whole")
    odd = await ran(own, "ls /whole", env={"KEY": "secret:odd"})
    assert (odd["status"], odd["errno"], odd["stdout"]) == ("failed", "EINVAL", "") and "env.KEY" in odd["error"]
    assert [st.name for st in await agent.list(Path("containers/providers"))] == ["bubblewrap"]
    info = await load(own, "containers/providers/bubblewrap/info")
    assert info["id"] == "bubblewrap" and info["is_local"] and "view" in info["capabilities"]
    assert await whole(own, "containers/providers/bubblewrap/images") == b"host\n"
    assert await load(own, "containers/providers/bubblewrap/health") == {"status": "ok", "reason": None}


@pytest.mark.parametrize("driver", ONE, indirect=True)
async def test_a_result_is_bounded_however_many_commands_there_are(driver: Driver) -> None:
    _, own = await pair(driver)
    much = "head -c 200000 /dev/zero | tr '\\0' a"
    found = await ran(own, *[f"{much}; {much} >&2"] * 20)
    shown = [len(each[name]) for each in found["command_results"] for name in ("stdout", "stderr")]
    assert 1 << 19 <= sum(shown) <= 768 << 10
    assert all(each["truncated"] and each["exit_code"] == 0 for each in found["command_results"])


@pytest.mark.parametrize("driver", ONE, indirect=True)
async def test_ends_before_its_time_are_told(driver: Driver) -> None:
    _, own = await pair(driver)
    for command, more, wanted in (
        ("head -c 9000000 /dev/zero > x", {"limits": {"max_disk_mb": 4}}, ("failed", "ENOSPC")),
        ("head -c 9000000 /dev/zero > x", {"limits": {"max_file_mb": 4}}, ("failed", "EFBIG")),
        ("exec none-such-program", {}, ("complete", None)), ("sleep 60", {"timeout_ms": 300}, ("expired", "ETIMEDOUT")),
        ("true", {"image": "none-such"}, ("failed", "ENOENT")),
    ):  # fmt: skip
        found = await ran(own, command, **more)
        assert (found["status"], found["errno"]) == wanted, found
    session = await running(own)
    late = await exec_in_fails(own, session, "echo on; sleep 60", timeout_ms=300)
    assert late == ("failed", "ETIMEDOUT")
    assert (await exec_in(own, session, "kill -9 $$"))["exit_code"] == 137
    await put(own, b"stop\n", f"{session}/ctl")
    await records(own, f"{session}/output")


async def exec_in_fails(own: FileService, session: str, command: str, **more: Any) -> tuple[str, str]:
    made = await call(own, f"{session}/exec/new", {"command": command, **more})
    await records(own, made["output_path"])
    status = await load(own, made["status_path"])
    return status["status"], status["errno"]


@pytest.mark.parametrize("driver", ONE, indirect=True)
async def test_an_exec_may_come_before_its_session_runs(driver: Driver) -> None:
    _, own = await pair(driver)
    made = await new(own, kind="interactive")
    session = f"containers/sessions/{made['session_id']}"
    assert (await exec_in(own, session, "echo soon"))["stdout"] == "soon\n"


@pytest.mark.parametrize("way", ["in-process-sqlite", "http-memory"])
async def test_it_costs_what_it_took_and_never_more_than_is_there(tmp_path: FsPath, way: str) -> None:
    async with housed(way, tmp_path, usd_per_hour=3_600_000) as driver:  # 1000 a second
        agent, own = await pair(driver)
        await mounted(agent, "containers", "budgeted", "per_day_usd=25000", "approval_threshold_usd=9000")
        made = await new(own, "echo x", limits={"max_time_secs": 5})
        assert made["reserved_usd"] == 5000
        await records(own, made["output_path"])
        cost = (await load(own, made["result_path"]))["cost_usd"]
        day = (await load(own, "containers/usage"))["day"]
        assert 0 < cost <= 5000 and (day["reserved_usd"], day["spent_usd"]) == (0, cost)
        await fails(errno.EDQUOT, new(own, "true", limits={"max_time_secs": 5}, max_cost_usd=4999))
        await fails(errno.EPERM, new(own, "true", limits={"max_time_secs": 10}))
        (asked,) = [st for st in await agent.list(Path("approvals")) if st.is_dir]
        await put(agent, b"allow\n", f"approvals/{asked.name}/ctl")
        session = await running(own, limits={"max_time_secs": 8})
        await fails(errno.EDQUOT, put(own, b"keepalive\n", f"{session}/ctl"))
        dear = await new(own, "true", limits={"max_time_secs": 10})
        assert dear["reserved_usd"] == 10_000
        await records(own, dear["output_path"])
        await mounted(agent, "containers", "budgeted", f"per_day_usd={cost + 9000}")
        await fails(errno.EDQUOT, new(own, "true", limits={"max_time_secs": 5}))
        await put(agent, json.dumps({"max_cost_usd": 100}).encode(), "containers/policy")
        await fails(errno.EDQUOT, new(own, "true", limits={"max_time_secs": 1}))
        await put(agent, json.dumps({"max_sessions": 1}).encode(), "containers/policy")
        await fails(errno.EDQUOT, new(own, "true", limits={"max_time_secs": 1}))
        await stopped(own, session)
        assert (await load(own, "containers/usage"))["day"]["reserved_usd"] == 0
