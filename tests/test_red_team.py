"""A hostile agent on every face: what it tries is refused with the right errno, and there is a record of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path as FsPath
from typing import Any

import anyio
import msgspec
import pytest
import trio
from engines import fails
from faces import call, load, put, whole

from agentfs.service import FileService
from agentfs.types import Mode, Path
from agentfs.views import Below
from conformance.drivers import Driver

# httpx leaves the generators of a stream that was cancelled half-way to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
READ, WRITE = Mode.READ, Mode.WRITE
PAYMENT = {"provider": "bank", "key": "k", "request": 1, "max_cost_usd": 10}


async def pair(driver: Driver, name: str = "mallory", **config: Any) -> tuple[FileService, FileService]:
    """A new agent: as the operator sees it and as it sees itself."""
    return await driver.agent(name, **config), Below(driver.tree, Path(f"views/{name}"))


async def records(agent: FileService) -> list[dict[str, Any]]:
    """What was refused, as the trace has it."""
    lines = [msgspec.json.decode(line) for line in (await whole(agent, "logs/trace")).splitlines()]
    return [line for line in lines if line["type"] == "error"]


async def mount(agent: FileService, name: str, words: str | None) -> None:
    """Replace the line of one service in the agent's table; None takes it out."""
    lines = (await whole(agent, "ns")).decode().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(f"mount {name} ")]
    await put(agent, "".join([*kept, f"mount {name} {words}\n" if words else ""]).encode(), "ns")


async def refused(tree: FileService, path: str, data: bytes, *codes: int) -> None:
    """Writing *data* to *path* fails with one of *codes*, at the open or in the write."""
    with pytest.raises(OSError) as caught:
        async with await tree.open(Path(path), WRITE) as handle:
            await handle.write(data, 0)
            await handle.flush(final=True)
    assert caught.value.errno in codes, (path, caught.value)


async def test_it_cannot_raise_its_budget_or_write_its_policy(driver: Driver) -> None:
    agent, own = await pair(driver)
    before = await whole(agent, "ns"), await load(agent, "effects/policy")
    for path, data in (
        ("ns", b"mount effects /effects budgeted per_day_usd=999999999\n"),
        ("config", b'{"program": {"kind": "exec", "argv": ["true"]}, "autonomy": "autonomous"}'),
        ("effects/policy", b'{"per_day_usd": null}'), ("effects/usage", b"{}"),
        ("queue/overflow", b'{"max_depth": 99}'),
    ):  # fmt: skip
        await refused(own, path, data, errno.EACCES)
    made = await call(own, "effects/new", {**PAYMENT, "max_cost_usd": 300})
    for bad in (b'{"cost_usd": -5}', b'{"cost_usd": 1e30}', b'{"cost_usd": 9223372036854775808}'):
        await refused(own, f"effects/{made['id']}/result", bad, errno.EINVAL)
    for bad_usd in (-1, 1 << 60, 0.5):
        await fails(errno.EINVAL, call(own, "effects/new", {**PAYMENT, "key": "b", "max_cost_usd": bad_usd}))
    assert (await whole(agent, "ns"), await load(agent, "effects/policy")) == before
    assert (await load(agent, "effects/usage"))["day"]["reserved_usd"] == 300
    seen = {(r["op"], r["path"], r["errno"], r["by"]) for r in await records(agent)}
    if driver.name != "fuse":  # there the kernel refuses by the modes, before anybody is asked
        assert {("open", path, "EACCES", "mallory") for path in ("ns", "config", "effects/policy")} <= seen
    assert ("write", "effects/new", "EINVAL", "mallory") in seen


async def test_it_cannot_reach_another_agent(driver: Driver) -> None:
    agent, own = await pair(driver)
    await driver.agent("victim")
    for path in ("agents/victim/status", "views/victim/status", "victim/status", "runtime/tokens"):
        await fails(errno.ENOENT, own.stat(Path(path)))
    await refused(own, "inbox", b'{"source": "victim", "payload": 1}', errno.EPERM)
    seen = {(r["errno"], r["path"].partition("/")[0]) for r in await records(agent)}
    assert {("ENOENT", "agents"), ("ENOENT", "views"), ("ENOENT", "victim"), ("EPERM", "inbox")} <= seen


async def test_levels_of_a_mount(driver: Driver) -> None:
    """read_only, sign_only and disabled, and what is not mounted; each shown in the modes and enforced at the open."""
    agent, own = await pair(driver)
    await make(own, "kv/x")
    await mount(agent, "kv", "/kv read_only")
    assert (await own.stat(Path("kv/x"))).mode & 0o222 == 0 and await whole(own, "kv/x") == b"mine"
    await refused(own, "kv/x", b"theirs", errno.EROFS, errno.EACCES)
    await fails_any(own.remove(Path("kv/x")), errno.EROFS, errno.EACCES)
    await fails_any(make(own, "kv/y"), errno.EROFS, errno.EACCES)
    await mount(agent, "kv", "/kv disabled")
    await fails_any(own.open(Path("kv/x"), READ), errno.EACCES)
    await fails_any(own.list(Path("kv")), errno.EACCES)
    await mount(agent, "kv", None)
    await fails(errno.ENOENT, own.stat(Path("kv/x")))
    assert await whole(agent, "kv/x") == b"mine", "the operator's own tree has every service in its place"
    await mount(agent, "tokens", "/tokens sign_only")
    made = await call(own, "tokens/new", {"ttl_s": 60})
    await refused(own, "tokens/ctl", f"revoke {made['id']}\n".encode(), errno.EACCES)
    await mount(agent, "mail", "/ read_only")
    await refused(own, "inbox", b"note to self\n", errno.EROFS, errno.EACCES)


async def make(tree: FileService, path: str) -> None:
    async with await tree.create(Path(path), WRITE) as handle:
        await handle.write(b"mine", 0)
        await handle.flush(final=True)


async def fails_any(awaitable: Any, *codes: int) -> None:
    with pytest.raises(OSError) as caught:
        await awaitable
    assert caught.value.errno in codes, caught.value


async def test_a_table_that_cannot_be_mounted_changes_nothing(driver: Driver) -> None:
    agent, _ = await pair(driver)
    before = await whole(agent, "ns")
    for bad in (
        "mount nobody /x\n", "mount kv /kv royal\n", "mount kv /kv read_only per_day_usd=5\n",
        "mount effects /effects\n", "mount effects /effects read_write\n", "mount kv /kv budgeted per_day_usd=-5\n",
        "mount kv /kv budgeted per_day_usd=5 per_day_usd=6\n", "mount kv /kv rate=0\n", "mount kv /../kv\n",
        "mount effects /e budgeted per_day_usd=5\nmount effects /f budgeted per_day_usd=6\n", "bind /kv /x read_only\n",
        "mount kv /kv budgeted bogus=1\n", "mount effects /effects budgeted price_usd=1\n", "rm -rf /\n",
    ):  # fmt: skip
        await refused(agent, "ns", bad.encode(), errno.EINVAL)
    assert await whole(agent, "ns") == before
    await put(agent, b"mount kv /kv\n", "ns")
    assert await whole(agent, "ns") != before
    await put(agent, b"preset\n", "ns")
    assert await whole(agent, "ns") == before


async def test_a_revoked_mount_cuts_open_files_off(driver: Driver) -> None:
    """Racing a change of the table wins nothing: the open file, the half-written unit, the blocked reader all end."""
    if "open" not in driver.expresses:
        agent, own = await pair(driver)
        await cut_off_watch(agent, own)
        return
    agent, own = await pair(driver)
    reading = await own.open(Path("outbox@follow"), READ)
    writing = await own.open(Path("inbox"), WRITE)
    await writing.write(b"half a mess", 0)
    ended: list[int | None] = []

    async def read() -> None:
        try:
            await reading.read(4096, 0)
        except OSError as exc:
            ended.append(exc.errno)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await anyio.sleep(0.05)
            await mount(agent, "mail", None)
    assert ended == [errno.EACCES]
    await fails(errno.EACCES, writing.write(b"age\n", 0))
    await writing.aclose()
    await reading.aclose()
    assert await whole(agent, "inbox") == b""
    await fails(errno.ENOENT, own.stat(Path("inbox")))
    await put(agent, b"preset\n", "ns")
    await put(own, b"back again\n")


async def cut_off_watch(agent: FileService, own: FileService) -> None:
    """Over HTTP the open file is a watch: its connection is ended, and asking again is refused."""
    watch = await own.open(Path("outbox@follow"), READ)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount, agent, "mail", None)
            with pytest.raises((OSError, StopAsyncIteration)):
                while True:
                    await watch.next()
    await fails(errno.ENOENT, own.open(Path("outbox@follow"), READ))


async def test_an_approval_and_a_key_are_not_good_twice(driver: Driver) -> None:
    agent, own = await pair(driver)
    await mount(agent, "effects", "/effects budgeted approval_threshold_usd=5")
    await fails(errno.EPERM, call(own, "effects/new", PAYMENT))
    (request,) = [st.name for st in await own.list(Path("approvals")) if st.is_dir]
    await refused(own, f"approvals/{request}/ctl", b"allow\n", errno.EPERM)
    await fails(errno.EPERM, call(own, "effects/new", {**PAYMENT, "max_cost_usd": 11}))
    await put(agent, b"allow\n", f"approvals/{request}/ctl")
    made = await call(own, "effects/new", PAYMENT)
    await put(own, b'{"error": "nothing happened"}', f"effects/{made['id']}/result")
    await fails(errno.EPERM, call(own, "effects/new", PAYMENT))
    await fails(errno.EEXIST, call(agent, "effects/new", {**PAYMENT, "request": 2}))
    assert ("EPERM", f"approvals/{request}/ctl") in {(r["errno"], r["path"]) for r in await records(agent)}


async def test_names_do_not_escape(driver: Driver, tmp_path: FsPath) -> None:
    """``..``, absolute and encoded paths, links: none leads out of where it is used."""
    _, own = await pair(driver)
    if driver.place is not None and driver.name == "fuse":
        top = driver.place / "views" / "mallory"

        def climb() -> list[int | None]:
            codes: list[int | None] = []
            acts: list[Callable[[], object]] = [
                lambda: (top / "kv" / "link").symlink_to("/etc/passwd"),
                lambda: (top / "kv" / "l").hardlink_to(top / "status"),
                lambda: os.mkfifo(top / "kv" / "pipe"),
                lambda: (top / "kv").rename(top / "vk"),
            ]
            for act in acts:
                try:
                    act()
                except OSError as exc:
                    codes.append(exc.errno)
            return codes

        codes = await trio.to_thread.run_sync(climb)
        assert len(codes) == 4 and set(codes) <= {errno.EPERM, errno.EBUSY, errno.EACCES, errno.EXDEV}
    elif driver.wire is not None:
        for raw in (
            "/views/mallory/..%2fvictim/status", "/views/mallory/%2e%2e/victim/status", "/views/mallory/kv%2f..%2fns",
            "/views/mallory//ns", "/views/mallory/kv/%00", "/%2e%2e/%2e%2e/etc/passwd",
        ):  # fmt: skip
            answer = await driver.wire.client.request("GET", raw)
            assert answer.status_code in (400, 404), raw
    else:
        for path in ("../victim/status", "kv/../ns", "/etc/passwd", "kv//x", "./ns", "kv/\0"):
            await fails(errno.EINVAL, own.stat(Path(path)))
