"""What only our own binding can do, on real mounts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import wirechild
from fusemount import TESTS
from machine import Machine

TIMEOUT_S = 60


@contextmanager
def serving(trick: str, *places: Path) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-W", "error", str(TESTS / "wirechild.py"), trick, *map(str, places)]
    child = subprocess.Popen(argv, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "serving\n", child.communicate(timeout=TIMEOUT_S)
        yield child
        child.terminate()
        child.wait(TIMEOUT_S)
    finally:
        child.kill()
        child.wait(TIMEOUT_S)
        for place in places:
            while f" {place} " in Path("/proc/self/mountinfo").read_text():
                subprocess.run(["umount", "-l", str(place)], timeout=TIMEOUT_S, check=True)
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()


def shell(script: str) -> str:
    done = subprocess.run(["bash", "-c", script], text=True, capture_output=True, timeout=TIMEOUT_S, check=True)
    return done.stdout


def test_two_mounts_of_one_process(tmp_path: Path) -> None:
    with serving("two", tmp_path / "a", tmp_path / "b"):
        assert shell(f"cat {tmp_path}/a/file {tmp_path}/b/file") == "here\nhere\n"
        subprocess.run(["umount", str(tmp_path / "a")], timeout=TIMEOUT_S, check=True)


def test_mounting_by_fusermount(tmp_path: Path) -> None:
    with serving("fusermount", tmp_path / "a") as child:
        assert shell(f"cat {tmp_path}/a/file; findmnt -no FSTYPE,SOURCE {tmp_path}/a") == "here\nfuse.agentfs agentfs\n"
        kept = [fd.name for fd in Path(f"/proc/{child.pid}/fd").iterdir() if fd.readlink() == Path("/dev/fuse")]
        flags = [Path(f"/proc/{child.pid}/fdinfo/{fd}").read_text().split()[3] for fd in kept]
        assert len(flags) == 1 and int(flags[0], 8) & os.O_CLOEXEC, "no program that is started here holds the mount"
        child.terminate()
        assert child.wait(TIMEOUT_S) == 0
        assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_auto_takes_pyfuse3_where_wire_cannot_be_used(tmp_path: Path) -> None:
    with serving("broken", tmp_path / "a") as child:
        assert shell(f"cat {tmp_path}/a/file") == "here\n"
        child.terminate()
        said = child.communicate(timeout=TIMEOUT_S)[1]
    (line,) = said.splitlines()
    assert line.startswith("binding wire does not work here, pyfuse3 is used: ") and "no such thing here" in line


def test_a_kernel_that_is_too_old_leaves_no_mount_behind(tmp_path: Path) -> None:
    with serving("old", tmp_path / "a") as child:
        assert shell(f"cat {tmp_path}/a/file") == "here\n"
        assert Path("/proc/self/mountinfo").read_text().count(f" {tmp_path}/a ") == 1
        child.terminate()
        assert "the kernel speaks FUSE 7." in child.communicate(timeout=TIMEOUT_S)[1]


def test_commands_that_wait_do_not_hold_each_other_up(tmp_path: Path) -> None:
    """The kernel holds the lock of an inode while it writes; each command has one of its own."""
    with serving("meet", tmp_path / "a"):
        shell(f"for i in $(seq {wirechild.TOGETHER}); do echo meet > {tmp_path}/a/ctl & done; wait")


def test_the_kernel_reads_files_of_this_machine_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root may have it do so; anybody else's reads come to us, and here fail."""
    real, text = tmp_path / "real", os.urandom(3 << 20)
    real.write_bytes(text)
    monkeypatch.setenv("HOST_FILE", str(real))
    with serving("files", tmp_path / "a"):
        for _ in range(2):
            done = subprocess.run(
                ["cat", "file"], cwd=tmp_path / "a", capture_output=True, timeout=TIMEOUT_S, check=False
            )
            assert (done.stdout == text) is (os.geteuid() == 0), done.stderr
        two = (
            "exec 3< file 4< file; head -c 3 <&3 > /dev/null; printf abc > file; exec 5< file; cat <&5; cat <&4 | wc -c"
        )
        assert shell(f"cd {tmp_path}/a; {two}")[:3] == "abc"


NOW = """
set -ex
call() { curl -sSf -o /dev/null -H "Authorization: Bearer $TOKEN" -X "$1" "$URL/$2" "${@:3}"; }
for i in 1 2 3; do
  call PUT agents/demo/kv/here --data x; cat $M/agents/demo/kv/here $M/views/demo/kv/here; ls $M/views/demo/kv
  [ -k $M/agents/demo ]; cd $M/agents/demo/kv
  before=$(stat -c %y $M/agents/demo/status)
  printf 'mount kv /kv read_only\\n' | call PUT agents/demo/ns --data-binary @-
  [ "$before" != "$(stat -c %y $M/agents/demo/status)" ]  # it tells of the budgets that are mounted
  [ "$(stat -c %A $M/views/demo/kv)" = dr-x------ ]; ! stat $M/views/demo/secrets 2>&1
  echo preset | call PUT agents/demo/ns --data-binary @-
  [ "$(stat -c %A $M/views/demo/kv)" = drwx------ ]; stat $M/views/demo/secrets > /dev/null
  call POST agents/demo/terminate; [ ! -k $M/agents/demo ]
  call DELETE agents/demo; ! stat $M/agents/demo 2>&1; ! stat . 2>&1; ! stat $M/views/demo 2>&1
  cd /; mkdir $M/agents/demo
done
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    machine.env["AGENTFS_DISCOVER"] = "false"
    yield machine
    machine.run("umount")


def test_nothing_stale_is_seen_of_agents_that_change_by_another_door(machine: Machine) -> None:
    machine.run("mount", "--agent", "demo", "--fuse-binding=wire")
    done = machine.shell(NOW)
    assert done.returncode == 0, done


UNIONS = """
set -ex
call() { curl -sSf -o /dev/null -H "Authorization: Bearer $TOKEN" -X "$1" "$URL/$2" "${@:3}"; }
ns() { printf '%s\\n' "$@" | call PUT agents/demo/ns --data-binary @-; }
V=$M/views/demo
lists() { [ "$2" = "$(ls "$1" 2>&1 | tr '\\n' ' ')" ] || { echo "$1: $(ls "$1")"; exit 1; }; }
ns 'mount kv /a/kv'; lists $V/a 'kv '; exec 3< $V/a
ns 'mount kv /a/kv' 'mount secrets /a/more'; lists $V/a 'kv more '
ns "bind '#kv/x' /b"; [ -d $V/b ]; call PUT agents/demo/kv/x --data 1; [ -f $V/b ]
call DELETE agents/demo/kv/x; [ -d $V/b ]
ns 'mount kv /u' 'mount status /u after' 'mount mail /u after'; [ -f $V/u/status ]; [ -d $V/u/queue ]
[ "$(stat -c %s $V/u/status)" = 0 ]
call PUT agents/demo/kv/status --data 12345; call PUT agents/demo/kv/queue --data 1
[ "$(stat -c %s $V/u/status)" = 5 ]; [ -f $V/u/queue ]
call DELETE agents/demo/kv/status; call DELETE agents/demo/kv/queue
[ "$(stat -c %s $V/u/status)" = 0 ]; [ -d $V/u/queue ]
call PUT agents/demo/kv/x --data 1
exec 3<&-; ns 'mount kv /kv'; lists $V/kv 'x '; exec 3< $V/kv
ns 'mount kv /kv' 'mount secrets /kv/more'; lists $V/kv 'more x '
ns 'mount kv /kv disabled'; ! ls $V/kv 2>&1
"""


def test_nothing_stale_is_seen_where_more_than_one_service_is_mounted(machine: Machine) -> None:
    machine.run("mount", "--agent", "demo", "--fuse-binding=wire")
    done = machine.shell(UNIONS)
    assert done.returncode == 0, done


SIZES = """
import os, random, sys
top = sys.argv[1]
doors = [f"{top}/agents/demo/kv", f"{top}/views/demo/kv"]
held = {}
chance = random.Random(7)
for turn in range(300):
    name, size, door = f"v{chance.randrange(8)}", chance.randrange(1, 90), chance.choice(doors)
    match chance.randrange(5):
        case 0 if name in held:
            os.unlink(f"{door}/{name}")
            del held[name]
        case 1 if name in held:
            other = f"v{chance.randrange(8)}"
            os.rename(f"{door}/{name}", f"{door}/{other}")
            held[other] = held.pop(name)
        case _:
            with open(f"{door}/{name}", "wb") as file:
                file.write(bytes(size))
            held[name] = size
    for door in doors:
        seen = {entry.name: entry.stat().st_size for entry in os.scandir(door)}
        assert seen == held, (turn, door, seen, held)
        for name in [f"v{number}" for number in range(8)]:
            try:
                assert os.stat(f"{door}/{name}").st_size == held[name], (turn, door, name)
            except FileNotFoundError:
                assert name not in held, (turn, door, name)
"""


def test_what_one_door_changes_the_other_shows_at_once(machine: Machine) -> None:
    """The same values have other numbers in the agent's view: the kernel keeps them apart."""
    machine.run("mount", "--agent", "demo", "--fuse-binding=wire")
    done = subprocess.run([sys.executable, "-c", SIZES, machine.place], text=True, capture_output=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
