"""Parts of the provider over bwrap: the filter of calls, control groups of both kinds, the death of a runtime."""

from __future__ import annotations

import errno
import os
import select
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
from boxes import BASE, OWNER
from test_bubblewrap import pids

from agentfs.containers.documents import Limits
from agentfs.providers.containers import seccomp
from agentfs.providers.containers.cgroup import Group, Groups, Place, places
from agentfs.providers.containers.reach import Reach, is_open
from agentfs.providers.containers.workdir import Owner

ALLOWED, KILLED = 0x7FFF0000, 0x80000000
ARCHES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def answer(machine: str, number: int, *args: int, arch: int | None = None) -> int:
    """What the filter says of one call: an interpreter of the five instructions that it has."""
    steps = list(struct.iter_unpack("<HBBI", seccomp.program(machine)))
    padded = [*args, *[0] * (6 - len(args))]
    data = struct.pack("<iIQ6Q", number, ARCHES[machine][1] if arch is None else arch, 0, *padded)
    held = at = 0
    while True:
        code, yes, no, operand = steps[at]
        at += 1
        if code == 0x06:
            return int(operand)
        if code == 0x20:
            (held,) = struct.unpack_from("<I", data, operand)
        else:
            at += yes if {0x15: held == operand, 0x35: held >= operand, 0x45: held & operand}[code] else no


@pytest.mark.parametrize("machine", ARCHES)
def test_the_filter(machine: str) -> None:
    column, _ = ARCHES[machine]
    refused = {numbers[column] for numbers in seccomp.REFUSED.values() if numbers[column] >= 0}
    for number in range(seccomp.NEWEST + 1):
        expected = 0x50000 | errno.EPERM if number in refused else ALLOWED
        expected = 0x50000 | errno.ENOSYS if number == seccomp.CLONE3 else expected
        assert answer(machine, number) == expected, number
    assert answer(machine, seccomp.NEWEST + 1) == 0x50000 | errno.ENOSYS
    assert answer(machine, 0x40000000) == answer(machine, -1) == 0x50000 | errno.EPERM
    assert answer(machine, 0, arch=0x40000003) == KILLED  # i386 on x86_64
    eperm = 0x50000 | errno.EPERM
    for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x2000000, 0x4000000, 0x8000000):
        assert answer(machine, seccomp.CLONE[column], flag | 17) == eperm
    assert answer(machine, seccomp.CLONE[column], 0x3D0F00) == ALLOWED  # a thread
    assert answer(machine, seccomp.PERSONALITY[column], 0xFFFFFFFF) == ALLOWED
    assert answer(machine, seccomp.PERSONALITY[column], 0x40000) == eperm
    assert answer(machine, seccomp.IOCTL[column], 0, 0xFFFFFFFF_00005412) == eperm
    assert answer(machine, seccomp.IOCTL[column], 0, 0x5413) == ALLOWED
    assert [answer(machine, seccomp.SOCKET[column], family) for family in (40, 38, 1, 2)] == [
        eperm, eperm, ALLOWED, ALLOWED
    ]  # fmt: skip


def test_no_filter_without_a_table() -> None:
    assert seccomp.program("riscv64") == b""


def test_the_profile_refuses_the_same() -> None:
    said = msgspec.json.decode(seccomp.profile())
    assert said["defaultAction"] == "SCMP_ACT_ALLOW" and {rule["action"] for rule in said["syscalls"]} == {
        "SCMP_ACT_ERRNO"
    }
    always = {name: rule["errnoRet"] for rule in said["syscalls"] if "args" not in rule for name in rule["names"]}
    assert always == dict.fromkeys(seccomp.REFUSED, errno.EPERM) | {"clone3": errno.ENOSYS}
    sometimes = [(*rule["names"], *argument.values()) for rule in said["syscalls"] for argument in rule.get("args", ())]
    spaces = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
    assert sometimes == [
        *(("clone", 0, "SCMP_CMP_MASKED_EQ", bit, bit) for bit in spaces),
        ("ioctl", 1, "SCMP_CMP_EQ", 0x5412, 0), ("ioctl", 1, "SCMP_CMP_EQ", 0x541C, 0),
        ("socket", 0, "SCMP_CMP_EQ", 38, 0), ("socket", 0, "SCMP_CMP_EQ", 40, 0),
    ]  # fmt: skip


def test_settings_of_unified_groups(tmp_path: Path) -> None:
    place = Place(tmp_path, frozenset({"memory", "pids", "cpu"}), is_unified=True)
    group = Group({tmp_path: place})
    group.limit(Limits(max_memory_mb=64, max_processes=10, max_cpu_cores=0.5))
    group.take(42)
    assert group.entry() == ""
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "memory.max": str(64 << 20), "memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "12",
        "cpu.max": "50000 100000", "cgroup.procs": "42",
    }  # fmt: skip
    assert (group.cpu_ms(), group.peak_memory_bytes(), group.is_short_of_memory()) == (None, None, False)
    (tmp_path / "cpu.stat").write_text("usage_usec 7000\nuser_usec 5000\n")
    (tmp_path / "memory.peak").write_text("123456\n")
    (tmp_path / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert (group.cpu_ms(), group.peak_memory_bytes(), group.is_short_of_memory()) == (7, 123456, True)


def test_where_groups_are_looked_for(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "v1"
    for path in (one / "user" / "app", two / "jobs" / "a"):
        path.mkdir(parents=True)
    (one / "user" / "app" / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "cgroup").write_text("3:memory:/jobs/a\n2:name=systemd:/x\n0::/user/app\n")
    (tmp_path / "mountinfo").write_text(
        f"30 1 0:1 / {one} rw - cgroup2 cgroup2 rw\n31 1 0:2 / {two} rw shared:1 - cgroup cgroup rw,memory\n"
        f"32 1 0:3 / /sys/x rw - cgroup cgroup rw,name=systemd\n33 1 0:4 / / rw - ext4 /dev/vda rw\n"
    )
    assert places(tmp_path) == [
        Place(one / "user" / "app", frozenset({"cpu", "memory", "pids"}), is_unified=True),
        Place(two / "jobs" / "a", frozenset({"memory"}), is_unified=False),
    ]


def test_where_no_group_can_be_made(tmp_path: Path) -> None:
    gone = Place(tmp_path / "gone", frozenset({"memory"}), is_unified=False)
    groups = Groups("agentfs-x", tmp_path / "note", [gone])
    assert groups.make("one", Limits()) is None and groups.controllers == frozenset() and groups.close()


def test_ways_to_what_is_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    deep = tmp_path / "deep"
    deep.mkdir(mode=0o755)
    assert is_open("/usr", OWNER) and not is_open(str(deep), Owner(54321, 54321))
    assert Reach(None, [str(deep)]).before() == [] and Reach(None, [str(deep)]).seen(str(deep)) == str(deep)
    way = Reach(Owner(54321, 54321), [str(deep), "/usr"])
    assert way.seen("/usr") == "/usr" and way.seen(str(deep)) != str(deep)
    assert way.before()[-3:] == [str(deep), way.seen(str(deep)), "--"]


RUNTIME = """
import sys
from pathlib import Path
import boxes, trio
from agentfs.containers.port import Command, Spec
async def main():
    async with boxes.opened(Path(sys.argv[1])) as box:
        await box.make(Spec("s", "a"))
        words = ["/bin/sh", "-c", "setsid sh -c 'echo; kill -STOP $$' 577X & wait".replace("X", "215")]
        async for happening in box.run(Spec("s", "a"), Command("c", words)):
            print("runs", flush=True)
trio.run(main)
"""


def test_a_runtime_that_is_killed_takes_its_sandboxes_along() -> None:
    with tempfile.TemporaryDirectory() as top:
        env = os.environ | {"PYTHONPATH": f"{BASE}:{BASE / 'tests'}"}
        child = subprocess.Popen([sys.executable, "-c", RUNTIME, top], env=env, stdout=subprocess.PIPE)
        with child:
            try:
                assert child.stdout is not None and child.stdout.readline() == b"runs\n"
                ends = [os.pidfd_open(int(pid)) for pid in pids("577215")]
                assert len(ends) == 4  # bwrap twice, a shell that waits, one that is stopped: none is in an exec
            finally:
                child.kill()
        for end in ends:
            _gone(end)
        assert pids("577215") == []
        Groups("agentfs-none", Path(top, "containers", "cgroups"), []).close()


def _gone(descriptor: int) -> None:
    found, _, _ = select.select([descriptor], [], [], 10)
    os.close(descriptor)
    assert found
