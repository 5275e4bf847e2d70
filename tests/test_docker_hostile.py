"""Hostile code in a real container: whatever it does stays in its sandbox, has an end, and is told by its name."""

from __future__ import annotations

import os
import textwrap
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
from dockerkit import BUSYBOX, OWNER, PYTHON, Boxes, Engine

from agentfs.containers.port import Command, Exit, Output, Spec


@pytest.fixture(scope="module")
def python_engine(docker_engine: Engine) -> Engine:
    docker_engine.build_python()
    return docker_engine


@pytest.fixture
async def boxes(docker_engine: Engine, tmp_path: Path) -> AsyncIterator[Boxes]:
    kit = Boxes(docker_engine, tmp_path)
    await kit.provider.make(kit.spec())
    yield kit
    for id in await kit.provider.found():
        await kit.provider.remove(id)
    assert theirs() == []
    await kit.provider.aclose()


def theirs() -> list[str]:
    """The command lines of all processes of this machine that run as code in sandboxes does."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if place.stat().st_uid == OWNER.uid and (line := (place / "cmdline").read_bytes()):
                found.append(line.replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


async def emptied() -> None:
    """Return when no code of a sandbox runs."""
    while theirs():  # noqa: ASYNC110 - other processes give no event
        await trio.sleep(0.1)


async def closed_after(boxes: Boxes, line: str, first: bytes = b"begun\n") -> None:
    """Run *line* until it has said *first*, then give it up."""
    async with aclosing(boxes.provider.run(boxes.spec(), Command("c", ["/bin/sh", "-c", line]))) as happenings:
        assert await anext(happenings) == Output("stdout", first)


@pytest.mark.parametrize(
    "line",
    [
        "echo begun; sleep 1000",
        "trap '' TERM INT HUP; echo begun; while :; do :; done",
        "setsid sleep 1000 & setsid setsid sleep 1000 & echo begun; exit",
        "(setsid sh -c 'setsid env -i sleep 1000 </dev/null >/dev/null 2>&1 &' &); echo begun; sleep 1000",
        "(sleep 1000 >/dev/null 2>&1 &); echo begun; sleep 1; kill -9 $PPID; sleep 1000",
        "exec 2>/dev/null; f() { while :; do sleep 1000 & done; }; f & f & sleep 1; echo begun; wait",
        "exec 2>/dev/null; echo begun; b() { b | b & }; while :; do b; done",
        "c() { c & }; c & echo begun; sleep 1000",  # always another one, and each for a moment only
    ],
)
async def test_nothing_outlives_a_command_that_is_given_up(boxes: Boxes, line: str) -> None:
    with trio.fail_after(60):
        await closed_after(boxes, line)
    assert theirs() == []
    assert (await boxes.run(boxes.spec(), "echo well")) == (0, "", "well\n", "")


async def test_nothing_outlives_a_command_that_ends(boxes: Boxes) -> None:
    with trio.fail_after(60):
        ran = await boxes.run(boxes.spec(), "sleep 1000 & (setsid sleep 1000 </dev/null >/dev/null 2>&1 &); echo done")
    assert ran == (0, "", "done\n", "") and theirs() == []


async def test_a_fork_bomb_meets_its_limit(boxes: Boxes) -> None:
    ran = await boxes.run(boxes.spec(), "i=0; while [ $i -lt 500 ]; do sleep 50 & i=$((i+1)); done; echo all")
    assert "all" not in ran.out and "fork" in ran.err


async def test_a_memory_bomb_is_named(boxes: Boxes) -> None:
    ran = await boxes.run(boxes.spec(), "tail -c 500m /dev/zero")
    assert (ran.code, ran.cause) == (137, "memory")
    assert (await boxes.run(boxes.spec(), "exit 137")).cause == ""


@pytest.mark.parametrize("place", ["/tmp", "/dev/shm"])
async def test_what_lies_in_memory_has_an_end_too(boxes: Boxes, place: str) -> None:
    line = f"for i in $(seq 20); do dd if=/dev/zero of={place}/$i bs=1M count=4 2>/dev/null || exit 9; done"
    assert (await boxes.run(boxes.spec(), line)).code == 9
    assert (await boxes.run(boxes.spec(), f"rm {place}/*; : > {place}/x")).code == 0


async def test_the_disk_has_an_end(boxes: Boxes) -> None:
    ran = await boxes.run(boxes.spec(), "dd if=/dev/zero of=big bs=1M count=1024 2>/dev/null; exit $?")
    assert ran.cause == "disk" and (boxes.top / "s1" / "big").stat().st_size <= 8 << 20
    await boxes.run(boxes.spec(), "rm -f big")
    many = "i=0; while :; do dd if=/dev/zero of=f$i bs=1M count=1 2>/dev/null; i=$((i+1)); done"
    assert (await boxes.run(boxes.spec(), many)).cause == "disk"
    assert sum(file.stat().st_blocks * 512 for file in (boxes.top / "s1").iterdir()) < 2 << 30


async def test_so_has_the_number_of_files(boxes: Boxes) -> None:
    ran = await boxes.run(boxes.spec(), "mkdir d; cd d; while :; do i=$((i+1)); : > $i; done")
    assert ran.cause == "disk"


async def test_a_file_has_a_largest_size(boxes: Boxes) -> None:
    await boxes.provider.make(spec := boxes.spec("s2", max_file_mb=2))
    ran = await boxes.run(spec, "exec dd if=/dev/zero of=/work/big bs=1M count=3")
    assert (ran.code, ran.cause) == (153, "file") and (boxes.top / "s2" / "big").stat().st_size == 2 << 20


async def test_the_disk_is_watched_while_nobody_reads(boxes: Boxes) -> None:
    line = "echo begun; while :; do i=$((i+1)); dd if=/dev/zero of=f$i bs=1M count=1 2>/dev/null; done"
    async with aclosing(boxes.provider.run(boxes.spec(), Command("c", ["/bin/sh", "-c", line]))) as happenings:
        await anext(happenings)
        with trio.fail_after(60):
            await emptied()
        ended = await anext(happenings)
    assert isinstance(ended, Exit) and ended.cause == "disk"


async def test_endless_output_is_held_back_and_ends_when_given_up(boxes: Boxes, docker_engine: Engine) -> None:
    with trio.fail_after(60):
        async with aclosing(boxes.provider.run(boxes.spec(), Command("c", ["yes", "x" * 1000]))) as happenings:
            size = 0
            async for happening in happenings:
                assert isinstance(happening, Output) and len(happening.data) <= 65_536
                size += len(happening.data)
                if size > 20 << 20:
                    break
    assert theirs() == []
    logs = docker_engine.top.glob("root/containers/*/*.log")
    assert sum(path.stat().st_size for path in logs) == 0


@pytest.mark.parametrize(
    "line",
    [
        "touch /x", "touch /etc/x", "echo 1 > /proc/sys/kernel/hostname", "echo b > /proc/sysrq-trigger",
        "echo x > /sys/kernel/mm/transparent_hugepage/enabled", "mkdir /sys/fs/cgroup/memory/x",
        "mknod /tmp/m b 254 0", "mknod /work/m b 8 0", "mount -t tmpfs none /tmp", "mount -o remount,rw /",
        "umount /work", "chroot / true", "hostname other", "unshare -U true", "unshare -m true",
        "nsenter -t 1 -m true",
        "kill -9 1", "cat /proc/1/environ", "cat /proc/kcore", "dmesg", "chown 0 /work", "ulimit -n 5000",
        "ulimit -f unlimited", "su -c true", "ls /var/run/docker.sock", "ping -c 1 -W 1 127.0.0.1",
        "nc -w 1 1.1.1.1 80",
        "cat /dev/mem", "cat /dev/vda", "ls -d /root/* /home/*", "insmod /work/x.ko", "swapoff -a", "reboot -f",
    ],
)  # fmt: skip
async def test_what_code_may_not(boxes: Boxes, line: str) -> None:
    ran = await boxes.run(boxes.spec(), line)
    assert ran.code != 0 and ran.cause == "", ran


async def test_it_has_no_rights(boxes: Boxes) -> None:
    ran = await boxes.run(
        boxes.spec(), "grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status; ls /sys/class/net"
    )
    said = dict(line.split(":\t") for line in ran.out.splitlines() if ":" in line)
    assert {said[name] for name in said if name.startswith("Cap")} == {"0" * 16}
    assert said["NoNewPrivs"] == "1" and said["Seccomp"] == "2" and ran.out.splitlines()[-1] == "lo"
    assert said["Groups"].split() in ([], [str(OWNER.gid)])


async def test_a_setuid_program_gives_nothing(boxes: Boxes) -> None:
    await boxes.run(boxes.spec(), "cp /bin/busybox /work/")
    os.chown(boxes.top / "s1" / "busybox", 0, 0)
    (boxes.top / "s1" / "busybox").chmod(0o4755)
    assert (await boxes.run(boxes.spec(), "/work/busybox id -u")).out == f"{OWNER.uid}\n"


async def test_one_session_does_not_see_another(boxes: Boxes) -> None:
    await boxes.provider.make(other := boxes.spec(id="s2"))
    await boxes.run(boxes.spec(), "echo secret > mine; echo secret > /tmp/mine; echo secret > /dev/shm/mine")
    line = ["/bin/sh", "-c", "echo begun; sleep 1000; echo over"]
    async with aclosing(boxes.provider.run(boxes.spec(), Command("c", line))) as happenings:
        await anext(happenings)
        ran = await boxes.run(other, "ls -A /work /tmp /dev/shm; ps | grep -c '[s]leep 1000'; kill -9 -1")
        assert any("sleep 1000" in line for line in theirs())
    assert "mine" not in ran.out and ran.out.splitlines()[-1] == "0"
    assert (await boxes.run(boxes.spec(), "cat mine")).out == "secret\n"


async def test_a_link_for_a_directory_leads_nowhere_outside(boxes: Boxes) -> None:
    """As CVE-2024-21626 does: a working directory that is a descriptor of the engine's."""
    for number in range(3, 12):
        await boxes.run(boxes.spec(), f"ln -sfn /proc/self/fd/{number} way{number}")
        for cwd in (f"/proc/self/fd/{number}", f"way{number}"):
            ran = await boxes.run(boxes.spec(), "cat ../../../../../../../../etc/shadow; pwd -P", cwd=cwd)
            assert "root:" not in ran.out


async def test_a_killed_container_is_told_and_gone(boxes: Boxes, docker_engine: Engine) -> None:
    command = Command("c", ["/bin/sh", "-c", "echo begun; sleep 1000"])
    async with aclosing(boxes.provider.run(boxes.spec(), command)) as happenings:
        await anext(happenings)
        await trio.to_thread.run_sync(docker_engine.docker, "kill", "agentfs-s1")
        with trio.fail_after(60):
            ended = await anext(happenings)
    assert isinstance(ended, Exit) and ended.cause == "gone" and ended.code == 137
    with pytest.raises(FileNotFoundError):
        await boxes.run(boxes.spec(), "true")
    assert list(await boxes.provider.found()) == ["s1"]


async def test_a_session_that_is_removed_ends_its_commands(boxes: Boxes) -> None:
    command = Command("c", ["/bin/sh", "-c", "echo begun; sleep 1000"])
    async with aclosing(boxes.provider.run(boxes.spec(), command)) as happenings:
        await anext(happenings)
        await boxes.provider.remove("s1")
        with trio.fail_after(60):
            ended = await anext(happenings)
    assert isinstance(ended, Exit) and ended.cause == "gone"


CALLS = """
    import ctypes, os, resource, socket
    libc = ctypes.CDLL(None, use_errno=True)
    def refused(name, *words):
        ctypes.set_errno(0)
        return getattr(libc, name)(*words) == -1 and ctypes.get_errno() != 0
    assert refused("mount", b"none", b"/tmp", b"tmpfs", 0, None)
    assert refused("unshare", 0x10000000) and refused("unshare", 0x00020000)
    assert refused("setuid", 0) and refused("setgid", 0) and refused("chroot", b"/tmp")
    assert refused("sethostname", b"x", 1) and refused("reboot", 0x1234567)
    assert refused("ptrace", 16, 1, None, None) and refused("kill", 1, 9)
    assert refused("syscall", 250, 0, 0, 0)  # keyctl
    assert refused("syscall", 321, 0, None, 0)  # bpf
    assert refused("syscall", 298, None, 0, -1, -1, 0)  # perf_event_open
    assert refused("swapon", b"/tmp/x", 0)
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    except PermissionError:
        pass
    else:
        raise AssertionError("a raw socket")
    for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        try:
            resource.setrlimit(what, (resource.RLIM_INFINITY,) * 2)
        except (PermissionError, ValueError):
            pass
        else:
            raise AssertionError(what)
    assert not os.path.exists("/proc/1/root/etc") or os.stat("/proc/1/root/etc").st_ino == os.stat("/etc").st_ino
    print("held")
"""


async def test_calls_that_would_lead_out_are_refused(python_engine: Engine, tmp_path: Path) -> None:
    kit = Boxes(python_engine, tmp_path)
    try:
        await kit.provider.make(spec := kit.spec(image=PYTHON, max_memory_mb=256, max_disk_mb=64, max_files=150_000))
        assert (await kit.run(spec, ["python3", "-c", textwrap.dedent(CALLS)])) == (0, "", "held\n", "")
        many = "import os\nfor n in range(100_000): os.close(os.open(f'f{n}', os.O_CREAT))\nprint(len(os.listdir()))"
        assert (await kit.run(spec, ["python3", "-c", many])).out == "100000\n"
        one = "f = open('big', 'wb')\ntry:\n  f.truncate(1 << 30)\nexcept OSError as e: print(e.errno)"
        assert (await kit.run(spec, ["python3", "-c", one])).out == "27\n"
    finally:
        await kit.provider.remove("s1")
        await kit.provider.aclose()


SPEAK = """
    import socket
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect("/run/agentfs.sock")
        print(peer.recv(100).decode())
"""


async def test_a_socket_of_this_machine_can_be_spoken_to(python_engine: Engine, tmp_path: Path) -> None:
    kit = Boxes(python_engine, tmp_path)
    with trio.socket.socket(trio.socket.AF_UNIX) as server:
        await server.bind(str(tmp_path / "s"))
        server.listen()
        (tmp_path / "s").chmod(0o666)
        sockets = {"/run/agentfs.sock": str(tmp_path / "s")}
        spec = Spec("s1", "ada", PYTHON, limits=kit.spec(max_memory_mb=128).limits, sockets=sockets)

        async def answer() -> None:
            peer, _ = await server.accept()
            with peer:
                await peer.send(b"hi there")

        try:
            await kit.provider.make(spec)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                assert (await kit.run(spec, ["python3", "-c", textwrap.dedent(SPEAK)])).out == "hi there\n"
        finally:
            await kit.provider.remove("s1")
            await kit.provider.aclose()


async def test_the_least_of_processes_is_enough_to_begin(docker_engine: Engine, tmp_path: Path) -> None:
    kit = Boxes(docker_engine, tmp_path)
    try:
        await kit.provider.make(spec := kit.spec(max_processes=1, max_memory_mb=16, max_cpu_cores=0.1))
        assert (await kit.run(spec, ["echo", "well"])).out == "well\n"
    finally:
        await kit.provider.remove("s1")
        await kit.provider.aclose()


def test_a_spec_shows_no_value_of_its_env() -> None:
    assert "hush" not in repr(Spec("s1", "ada", BUSYBOX, env={"TOKEN": "hush"}))
