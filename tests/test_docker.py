"""Sandboxes in a real container engine: made, run in, measured, found, removed, and what they say when they cannot."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
from dockerkit import BUSYBOX, OWNER, Boxes, Engine
from gitserver import Hub, repository, serving

from agentfs.containers.documents import Limits, Repo
from agentfs.containers.port import Command, Exit, Output, Spec
from agentfs.providers.containers.bubblewrap import Bubblewrap
from agentfs.types import ROOT, Mode, clean


@pytest.fixture
async def boxes(docker_engine: Engine, tmp_path: Path) -> AsyncIterator[Boxes]:
    kit = Boxes(docker_engine, tmp_path)
    yield kit
    for id in await kit.provider.found():
        await kit.provider.remove(id)
    assert list(await kit.provider.found()) == [] and not list(kit.top.glob("[!.]*"))
    await kit.provider.aclose()
    assert docker_engine.docker("ps", "-aq").stdout == ""


def about(engine: Engine, id: str) -> dict[str, dict[str, object]]:
    said: list[dict[str, dict[str, object]]] = json.loads(engine.docker("inspect", f"agentfs-{id}").stdout)
    return said[0]


async def test_a_command_says_what_it_says_where_it_says_it(boxes: Boxes) -> None:
    await boxes.provider.make(spec := boxes.spec())
    ran = await boxes.run(spec, "echo out; echo err >&2; pwd; id -u; exit 3")
    assert ran == (3, "", f"out\n/work\n{OWNER.uid}\n", "err\n")
    assert (await boxes.run(spec, ["/bin/echo", "a b", "$HOME"])).out == "a b $HOME\n"


async def test_what_is_given_goes_in_and_is_closed(boxes: Boxes) -> None:
    await boxes.provider.make(spec := boxes.spec())
    data = bytes(range(256)) * 8192
    assert (await boxes.run(spec, "wc -c; cat", stdin=data)).out == f"{len(data)}\n"
    assert (await boxes.run(spec, "cat; echo end")).out == "end\n"
    assert (await boxes.run(spec, "true", stdin=data)).code == 0


async def test_nothing_is_lost_of_much(boxes: Boxes) -> None:
    await boxes.provider.make(spec := boxes.spec())
    ran = await boxes.run(spec, "seq 1 300000; seq 1 1000 >&2")
    assert ran.out.splitlines() == [str(number) for number in range(1, 300_001)] and len(ran.err.split()) == 1000


async def test_how_a_command_ends(boxes: Boxes) -> None:
    await boxes.provider.make(spec := boxes.spec())
    assert (await boxes.run(spec, ["nothing-of-the-kind"])).code == 127
    assert (await boxes.run(spec, ["/etc/passwd"])).code == 126
    assert (await boxes.run(spec, "kill -TERM $$")).code == 128 + 15
    assert (await boxes.run(spec, "true", cwd="nowhere")).code == 126
    assert (await boxes.run(spec, "mkdir -p a/b; cd a/b; ln -s /tmp up")).code == 0
    assert (await boxes.run(spec, "pwd", cwd="a/b")).out == "/work/a/b\n"
    assert (await boxes.run(spec, "pwd", cwd="/tmp")).out == "/tmp\n"


async def test_env_is_given_and_told_to_nobody_else(boxes: Boxes, docker_engine: Engine) -> None:
    spec = Spec("s1", "ada", BUSYBOX, env={"TOKEN": "hush-hush"}, limits=boxes.spec().limits)
    await boxes.provider.make(spec)
    ran = await boxes.run(spec, "echo $TOKEN $MORE $HOME; cat /proc/self/cmdline /proc/1/environ", env={"MORE": "yes"})
    assert ran.out.startswith("hush-hush yes /work\n") and ran.out.count("hush-hush") == 1
    assert "hush-hush" not in docker_engine.docker("inspect", "agentfs-s1").stdout


async def test_commands_run_beside_each_other_and_end_alone(boxes: Boxes) -> None:
    await boxes.provider.make(spec := boxes.spec())
    ended: list[str] = []

    async def work(word: str, line: str) -> None:
        ended.append((await boxes.run(spec, f"{line}; echo {word}")).out.strip())

    waits = "while [ ! -e end ] || [ ! -e made ]; do sleep 0.1; done"
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, "slow", f"(setsid sh -c 'sleep 1; touch made' &); {waits}; ls made")
            await work("fast", "(setsid sleep 100 &); true")
            (boxes.top / "s1" / "end").touch()
    assert ended == ["fast", "made\nslow"]


async def test_files_are_the_workdir_from_both_sides(boxes: Boxes) -> None:
    await boxes.provider.make(spec := boxes.spec())
    files = boxes.provider.files("s1", Limits())
    await boxes.run(spec, "echo from inside > a")
    async with await files.open(clean("a"), Mode.READ) as handle:
        assert await handle.read(100, 0) == b"from inside\n"
    async with await files.create(clean("b"), Mode.WRITE) as handle:
        await handle.write(b"from outside\n", 0)
    assert (await boxes.run(spec, "cat b; echo more >> b; wc -l < b")).out == "from outside\n2\n"
    await boxes.provider.end("s1")
    assert [entry.name for entry in await files.list(ROOT)] == ["a", "b"]
    await boxes.provider.remove("s1")
    with pytest.raises(FileNotFoundError):
        await files.list(ROOT)


async def test_what_was_used_is_told(boxes: Boxes) -> None:
    await boxes.provider.make(spec := boxes.spec(max_memory_mb=128))
    await boxes.run(spec, "dd if=/dev/zero of=/dev/null bs=24M count=1; dd if=/dev/zero of=a bs=1M count=2; i=0; "
                          "while [ $i -lt 100000 ]; do i=$((i+1)); done")  # fmt: skip
    used = await boxes.provider.used("s1")
    assert used.cpu_ms is not None and used.cpu_ms > 20
    assert used.peak_memory_bytes is not None and 20 << 20 < used.peak_memory_bytes <= 128 << 20
    assert used.disk_bytes is not None and 2 << 20 <= used.disk_bytes < 3 << 20 and used.network_bytes == 0
    with pytest.raises(FileNotFoundError):
        await boxes.provider.used("s2")


async def test_the_view_and_sockets_are_inside(boxes: Boxes, tmp_path: Path) -> None:
    view = tmp_path / "view"
    view.mkdir()
    (view / "status").write_text("running\n")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        limits, sockets = boxes.spec().limits, {"/run/x.sock": str(tmp_path / "s")}
        await boxes.provider.make(spec := Spec("s1", "ada", BUSYBOX, limits=limits, view=str(view), sockets=sockets))
    assert (await boxes.run(spec, "cat /agent/status; ls /run/*.sock; [ -S /run/x.sock ]")) == (
        0,
        "",
        "running\n/run/x.sock\n",
        "",
    )


async def test_refusals_name_what_is_wrong(boxes: Boxes, docker_engine: Engine) -> None:
    for spec, code, words in [
        (boxes.spec(image="no/such:1"), errno.ENOENT, "no/such:1"),
        (boxes.spec(image="NOT A NAME"), errno.EINVAL, "reference"),
        (boxes.spec(max_memory_mb=3), errno.EINVAL, "max_memory_mb"),
        (boxes.spec(allow_network=True), errno.EOPNOTSUPP, "network"),  # this engine has no bridge
        (boxes.spec(id="../x"), errno.EINVAL, "id"),
        (boxes.spec(view="/nothing/there"), errno.EINVAL, "/nothing/there"),
    ]:
        with pytest.raises(OSError, match=words) as caught:
            await boxes.provider.make(spec)
        assert caught.value.errno == code, caught.value
        assert list(await boxes.provider.found()) == []


async def test_an_image_without_a_shell_is_refused_by_name(boxes: Boxes, docker_engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("nothing to run")
    docker_engine.build("agentfs-test/bare:1", tmp_path / "tree")
    with pytest.raises(OSError, match="/bin/sh") as caught:
        await boxes.provider.make(boxes.spec(image="agentfs-test/bare:1"))
    assert caught.value.errno == errno.EOPNOTSUPP and list(await boxes.provider.found()) == []


async def test_an_image_cannot_bring_a_disk_a_check_or_a_program_of_its_own(
    boxes: Boxes, docker_engine: Engine, tmp_path: Path
) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(f'FROM {BUSYBOX}\nVOLUME /data /work\nHEALTHCHECK --interval=1s CMD true\nENTRYPOINT ["false"]\n')
    docker_engine.docker("build", "--network", "none", "-t", "agentfs-test/odd:1", "-f", str(file), str(tmp_path))
    await boxes.provider.make(spec := boxes.spec(image="agentfs-test/odd:1"))
    ran = await boxes.run(spec, "grep -c '^tmpfs /data ' /proc/mounts; grep -c ' /work tmpfs' /proc/mounts")
    assert ran.out == "1\n0\n"
    assert about(docker_engine, "s1")["State"].get("Health") in (None, {"Status": "", "FailingStreak": 0, "Log": None})
    assert docker_engine.docker("volume", "ls", "-q").stdout == ""


async def test_one_of_an_id_and_only_ones_own(boxes: Boxes, docker_engine: Engine, tmp_path: Path) -> None:
    await boxes.provider.make(spec := boxes.spec())
    with pytest.raises(FileExistsError):
        await boxes.provider.make(spec)
    (tmp_path / "other").mkdir()
    other = Boxes(docker_engine, tmp_path / "other", "another")
    assert list(await other.provider.found()) == []
    with pytest.raises(FileExistsError):
        await other.provider.make(spec)
    await other.provider.remove("s1")
    with pytest.raises(FileNotFoundError):
        await other.run(spec, "true")
    assert (await boxes.run(spec, "echo still here")).out == "still here\n"
    await other.provider.aclose()


async def test_another_provider_of_the_same_runtime_goes_on(boxes: Boxes, docker_engine: Engine) -> None:
    """As after kill -9 of a runtime."""
    await boxes.provider.make(spec := boxes.spec())
    command = Command("x", ["/bin/sh", "-c", "echo begun; sleep 1000"])
    happenings = boxes.provider.run(spec, command)
    assert await anext(happenings) == Output("stdout", b"begun\n")
    docker_engine.docker("pause", "agentfs-s1")
    next_one = Boxes(docker_engine, boxes.top.parent)
    assert list(await next_one.provider.found()) == ["s1"]
    await next_one.provider.quiet(spec)
    assert "sleep 1000" not in (await next_one.run(spec, "ps")).out
    assert isinstance(await anext(happenings), Exit)
    await happenings.aclose()
    await next_one.provider.aclose()


async def test_end_keeps_the_files_and_remove_leaves_nothing(boxes: Boxes, docker_engine: Engine) -> None:
    await boxes.provider.make(spec := boxes.spec())
    await boxes.run(spec, "echo x > file; mkdir -p closed/in; chmod 0 closed/in closed")
    for _ in range(2):
        await boxes.provider.end("s1")
    assert list(await boxes.provider.found()) == ["s1"] and (boxes.top / "s1" / "file").read_text() == "x\n"
    assert docker_engine.docker("ps", "-aq").stdout == ""
    with pytest.raises(FileNotFoundError):
        await boxes.run(spec, "true")
    for _ in range(2):
        await boxes.provider.remove("s1")
    assert not (boxes.top / "s1").exists()


async def test_making_that_is_cancelled_leaves_nothing_that_is_not_found(boxes: Boxes) -> None:
    for after in (0.0, 0.02, 0.1, 0.3):
        with trio.move_on_after(after):
            await boxes.provider.make(boxes.spec())
        assert set(await boxes.provider.found()) <= {"s1"}
        await boxes.provider.remove("s1")


async def test_what_is_not_read_stops_the_command(boxes: Boxes) -> None:
    await boxes.provider.make(spec := boxes.spec())
    command = Command("x", ["/bin/sh", "-c", "i=0; while :; do seq 1 20000; i=$((i+1)); echo $i > count; done"])
    async with aclosing(boxes.provider.run(spec, command)) as happenings:
        await anext(happenings)
        seen = ""
        with trio.fail_after(60):
            while (now := (boxes.top / "s1" / "count").read_text() if (boxes.top / "s1" / "count").exists() else "-"
                   ) != seen:  # fmt: skip
                seen = now
                await trio.sleep(0.5)
    assert seen == "-" or int(seen or 0) < 100


async def test_images_and_health(boxes: Boxes) -> None:
    assert BUSYBOX in await boxes.provider.images()
    assert await boxes.provider.health() == ""
    assert boxes.provider.capabilities == {"cpu", "memory", "processes", "disk", "network", "view"}


async def test_a_network_where_there_is_one(docker_engine: Engine, tmp_path: Path) -> None:
    docker_engine.docker("network", "create", "--internal", "inner")
    kit = Boxes(docker_engine, tmp_path, network="inner")
    try:
        await kit.provider.make(with_one := kit.spec(id="with", allow_network=True))
        await kit.provider.make(without := kit.spec(id="without"))
        assert "eth0" in (await kit.run(with_one, "ls /sys/class/net")).out
        assert (await kit.run(without, "ls /sys/class/net")).out == "lo\n"
        assert (await kit.run(without, "ping -c 1 -W 1 10.0.0.1 || nc -w 1 1.1.1.1 80")).code != 0
    finally:
        for id in ("with", "without"):
            await kit.provider.remove(id)
        await kit.provider.aclose()
        docker_engine.docker("network", "rm", "inner")


@pytest.mark.parametrize("is_enclosed", [True, False])
async def test_git_runs_in_a_sandbox_where_there_can_be_one(
    docker_engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture, *, is_enclosed: bool
) -> None:
    bwrap = "" if is_enclosed else "/bin/false"
    cloner = Bubblewrap(tmp_path / "git", OWNER, tmp_path / "images", bwrap=bwrap)
    boxes = Boxes(docker_engine, tmp_path, cloner=cloner)
    repository(tmp_path)
    await boxes.provider.make(spec := boxes.spec(max_disk_mb=64))
    with serving(Hub(tmp_path / "hub")) as hub, pytest.MonkeyPatch.context() as patch:
        hub.gate.set()
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            patch.delenv(name)
        await boxes.provider.clone(spec, Repo(url=f"{hub.url}/code.git"), "")
    assert (await boxes.run(spec, "cat which")).out == "last\n"
    assert ("git runs in no sandbox" in caplog.text) is not is_enclosed
    assert list(await boxes.provider.found()) == ["s1"]
    await boxes.provider.remove("s1")
    await boxes.provider.aclose()
