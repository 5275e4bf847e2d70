"""What code in a sandbox of bwrap tries: each attempt is contained, and named where a limit ended it."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from boxes import Case, Ran, collected, opened, play, play_as_nobody

from agentfs.containers.documents import Limits
from agentfs.containers.port import Command, Spec

Inside = Callable[[Case], Awaitable[Ran]]
WAYS = ["groups", "no-groups", "nobody"] if os.geteuid() == 0 else ["no-groups"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def inside(way: str, tmp_path: Path) -> Inside:
    """Runs a case: as root with control groups, as root without, as a runtime without rights."""

    async def run(case: Case) -> Ran:
        if way == "nobody":
            return await trio.to_thread.run_sync(play_as_nobody, case)
        return await play(tmp_path, case, is_grouped=way == "groups")

    return run


def shell(line: str, **limits: int | bool) -> Case:
    return Case(["/bin/sh", "-c", line], Limits(**limits))  # type: ignore[arg-type]


def python(code: str, **limits: int | bool) -> Case:
    return Case(["python3", "-c", code], Limits(**limits))  # type: ignore[arg-type]


async def test_it_is_nobody_and_can_become_nobody(inside: Inside) -> None:
    ran = await inside(
        shell("id -u; hostname; grep -E 'Cap|NoNew|Seccomp:|Groups' /proc/self/status; ls /proc/self/fd")
    )
    lines = ran.text.split("\n")
    assert lines[0] != "0" and lines[1] == "agentfs"
    fields = dict(line.split(":\t") for line in lines if ":\t" in line)
    assert {int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert lines[-5:-1] == ["0", "1", "2", "3"]  # 3 is ls looking


async def test_nothing_of_the_machine_is_there(inside: Inside) -> None:
    ran = await inside(shell("ls -A /; ls -A /work /tmp /dev/shm; ls -d /proc/[0-9]*"))
    names = set(ran.text.split()) - {"lib32", "lib64", "libx32"}
    pids = {name for name in names if name.startswith("/proc/")}
    assert names - pids == {
        *("bin", "dev", "etc", "lib", "proc", "sbin", "tmp", "usr", "var", "work", "/work:", "/tmp:", "/dev/shm:")
    }
    assert len(pids) < 6
    secrets = await inside(shell("cat /etc/shadow /root/.ssh/id_rsa /proc/1/root/root; echo $?"))
    assert secrets.text == "1\n"


async def test_only_the_workdir_and_tmp_can_be_written(inside: Inside) -> None:
    line = "for d in / /usr /etc /usr/bin /dev /proc /var /tmp /dev/shm /work; do touch $d/x && echo $d; done"
    assert (await inside(shell(line))).text.split() == ["/tmp", "/dev/shm", "/work"]


REFUSED = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
arm = os.uname().machine == "aarch64"
calls = {
  "ptrace": (117 if arm else 101, 16, 1, 0, 0), "mount": (40 if arm else 165, b"x", b"/tmp", b"tmpfs", 0, 0),
  "unshare-user": (97 if arm else 272, 0x10000000), "setns": (268 if arm else 308, 0, 0),
  "clone-user": (220 if arm else 56, 0x10000000 | 17, 0, 0, 0, 0), "keyctl": (219 if arm else 250, 0, -3, 1),
  "add_key": (217 if arm else 248, b"user", b"a", b"b", 1, -4), "bpf": (280 if arm else 321, 0, 0, 0),
  "perf": (241 if arm else 298, 0, 0, -1, -1, 0), "userfaultfd": (282 if arm else 323, 0),
  "io_uring": (425, 8, 0), "fsopen": (430, b"tmpfs", 0), "kexec": (104 if arm else 246, 0, 0, 0, 0),
  "reboot": (142 if arm else 169, 0xfee1dead, 672274793, 0, 0), "personality": (92 if arm else 135, 0x0040000),
  "tiocsti": (29 if arm else 16, 0, 0x5412, b"x"), "vsock": (198 if arm else 41, 40, 1, 0),
  "chroot": (51 if arm else 161, b"/tmp"), "open_by_handle": (265 if arm else 304, 0, 0, 0),
}
for name, (number, *words) in calls.items():
    made = libc.syscall(number, *[ctypes.c_long(w) if isinstance(w, int) else w for w in words])
    if made == 0 and name == "clone-user":
        os._exit(0)
    print(name, made, errno.errorcode.get(ctypes.get_errno()))
print("clone3", libc.syscall(435, 0, 0), errno.errorcode.get(ctypes.get_errno()))
"""


async def test_dangerous_calls_are_refused(inside: Inside) -> None:
    ran = await inside(python(REFUSED))
    found = {line.split()[0]: line.split()[1:] for line in ran.text.splitlines()}
    assert len(found) == 20 and found.pop("clone3") == ["-1", "ENOSYS"]
    assert {name: told for name, told in found.items() if told != ["-1", "EPERM"]} == {}


async def test_the_kernel_is_not_to_be_written(inside: Inside) -> None:
    line = (
        "echo 1 > /proc/sys/kernel/hostname; echo b > /proc/sysrq-trigger; echo 1 > /proc/sys/vm/drop_caches;"
        "echo -1000 > /proc/self/oom_score_adj; mknod /tmp/null c 1 3; mknod /work/sda b 8 0; ls /sys; ls /tmp /work;"
        "mount -t tmpfs x /tmp; unshare -U true; cp /bin/sh /work/s; chmod u+s /work/s; /work/s -c 'id -u'"
    )
    ran = await inside(shell(line))
    shown = ran.text.split()
    assert shown[:-1] == ["/tmp:", "/work:"] and shown[-1] != "0"
    assert ran.stderr.count(b"\n") >= 8


async def test_a_fork_bomb_meets_its_limit(inside: Inside) -> None:
    code = """
import os, time
born = 0
try:
    while born < 2000:
        if os.fork() == 0:
            time.sleep(1000)
        born += 1
except OSError as exc:
    print(born, exc.errno)
"""
    born, code_ = (await inside(python(code, max_processes=20))).text.split()
    assert 10 <= int(born) <= 20 and int(code_) == 11


async def test_many_times_forking_ends_with_the_command(inside: Inside) -> None:
    ran = await inside(shell("b() { b | b & }; b; exit 5", max_processes=40))
    assert ran.code in (2, 5)  # dash gives up when it cannot fork


async def test_memory_is_bounded(inside: Inside, way: str) -> None:
    ran = await inside(python("x = bytearray(400 << 20)", max_memory_mb=64))
    if way == "groups":
        assert (ran.code, ran.cause) == (137, "memory")
        assert ran.peak_memory_bytes is not None and 48 << 20 < ran.peak_memory_bytes <= 64 << 20
    else:
        assert ran.code == 1 and b"MemoryError" in ran.stderr


async def test_memory_of_files_in_tmp_is_bounded(inside: Inside) -> None:
    ran = await inside(shell("head -c 200M /dev/zero > /tmp/x; head -c 200M /dev/zero > /dev/shm/x", max_memory_mb=64))
    assert ran.code != 0 and ran.cause in ("", "memory")


async def test_one_large_file_ends_it(inside: Inside) -> None:
    ran = await inside(shell("exec dd if=/dev/zero of=big bs=1M count=1024", max_disk_mb=8))
    assert (ran.code, ran.cause) == (153, "disk")
    ran = await inside(shell("exec dd if=/dev/zero of=big bs=1M count=1024", max_disk_mb=8, max_file_mb=2))
    assert (ran.code, ran.cause) == (153, "file")
    ran = await inside(python("import signal; signal.signal(25, signal.SIG_IGN); open('f', 'wb').truncate(3 << 20)",
                              max_file_mb=2))  # fmt: skip
    assert ran.code == 1 and b"File too large" in ran.stderr


async def test_a_full_disk_ends_it(inside: Inside) -> None:
    line = "i=0; while :; do head -c 1M /dev/zero > f$i; i=$((i+1)); [ $i -lt 80 ] || sleep 1000; done"
    ran = await inside(shell(line, max_disk_mb=8))
    assert (ran.code, ran.cause) == (137, "disk")


async def test_too_many_files_end_it(inside: Inside) -> None:
    code = """
import os, time
for n in range(100_000):
    if n % 1000 == 0: os.makedirs(f"d/{n}" + "/deep" * 50)
    os.mknod(f"d/{n - n % 1000}/{n}")
time.sleep(1000)
"""
    ran = await inside(python(code, max_files=20_000))
    assert (ran.code, ran.cause) == (137, "disk")


async def test_to_kill_all_kills_its_own(inside: Inside) -> None:
    ran = await inside(shell("sleep 1000 & kill -9 -1; echo left; kill -9 1; kill -STOP 1; echo still"))
    assert ran.text == "left\nstill\n" and ran.code == 0


async def test_the_network_is_off_unless_allowed(inside: Inside) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        code = f"import socket; socket.create_connection(('127.0.0.1', {listening.getsockname()[1]}), 5); print('in')"
        assert b"refused" in (await inside(python(code))).stderr
        assert (await inside(python(code, allow_network=True))).text == "in\n"
    assert (await inside(shell("cat /proc/net/dev | wc -l"))).text.strip() == "3"


async def test_other_sessions_are_not_there(tmp_path: Path) -> None:
    async with opened(tmp_path) as box:
        one, two = Spec("one", "alice"), Spec("two", "bob")
        await box.make(one)
        await box.make(two)
        await collected(box, one, Command("w", ["/bin/sh", "-c", "echo secret > note; chmod 777 . note"]))
        look = ["/bin/sh", "-c", "grep -rs secret / --include=note --exclude-dir=proc; cat /proc/*/root/work/note"]
        ran = await collected(box, two, Command("r", look))
        assert ran.stdout == b"" and (tmp_path / "containers" / "one" / "note").read_text() == "secret\n"
