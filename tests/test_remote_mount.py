"""`agentfs mount --token`: what a stranger gets of a runtime, used with ordinary tools; and what ends it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import BIN, Machine

from agentfs import capability
from agentfs.cli import mounts

pytestmark = pytest.mark.timeout(200)
PATIENCE_S = 60


class Guest:
    """Somebody with a URL and a token, and a place to mount on; no state directory is theirs."""

    def __init__(self, host: Machine, top: Path) -> None:
        self.place, self.home = top / "given", top / "guest"
        self.url = f"http://127.0.0.1:{host.port}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENTFS_")}
        self.env = kept | {"AGENTFS_STATE": str(self.home), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}

    def run(self, *words: str, code: int = 0, **env: str) -> str:
        done = subprocess.run(
            [BIN / "python", "-m", "agentfs.cli", *words], env=self.env | env, text=True, capture_output=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, (words, done)
        return done.stdout + done.stderr

    def mount(self, token: str, *words: str) -> None:
        """Mount with *token*, which is in the environment: the argument list is everybody's to read."""
        said = self.run("mount", f"--url={self.url}", f"--mount={self.place}", *words, AGENTFS_TOKEN=token)
        assert said == f"mounted on {self.place}\n"

    def sh(self, script: str, timeout: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Run *script* with bash, ``$M`` being the mount."""
        return subprocess.run(
            ["bash", "-c", script], env=self.env | {"M": str(self.place)}, text=True, capture_output=True,
            timeout=timeout, check=False,
        )  # fmt: skip

    def out(self, script: str) -> str:
        done = self.sh(script)
        assert done.returncode == 0, (script, done)
        return done.stdout

    def errno(self, script: str) -> str:
        """The errno of the last system call of *script*, a Python program in which ``M`` is the mount."""
        code = "import errno, os\nM = {!r}\ntry:\n    {}\nexcept OSError as exc:\n    print(errno.errorcode[exc.errno])"
        code = code.format(str(self.place), script)
        done = subprocess.run(
            [BIN / "python", "-c", code], text=True, capture_output=True, timeout=PATIENCE_S, check=True
        )
        return done.stdout.strip()

    def server(self) -> int | None:
        """The process that serves the mount."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if b"serve-token" in words and f"--mount={self.place}".encode() in words:
                return int(entry.name)
        return None

    def is_mounted(self) -> bool:
        return mounts.entry(self.place) is not None

    def clear(self) -> None:
        """Nothing of a failed test stays."""
        pid = self.server()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        while self.is_mounted():
            subprocess.run(["umount", "-l", self.place], timeout=20, check=True)


def until(condition: str, guest: Guest) -> str:
    """The output of the shell command *condition* once it succeeds."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        done = guest.sh(condition)
        if done.returncode == 0:
            return done.stdout
        time.sleep(0.05)
    raise AssertionError(f"never came true: {condition}: {done}")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "host")
    machine.run("mount", "--no-fuse", "--agent", "demo")
    yield machine
    machine.run("umount")


@pytest.fixture
def guest(host: Machine, tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(host, tmp_path)
    yield guest
    guest.clear()


def operator(host: Machine) -> str:
    return host.state.token.read_text().strip()


def test_the_operators_tree_on_another_mount(host: Machine, guest: Guest) -> None:
    guest.mount(operator(host))
    assert guest.out("ls $M $M/agents").split()[-2:] == ["demo", "new"]
    assert json.loads(guest.out("cat $M/agents/demo/status"))["id"] == "demo"
    follow = subprocess.Popen(["cat", guest.place / "agents/demo/outbox@follow"], stdout=subprocess.PIPE)
    try:
        until(f"ls -l /proc/{follow.pid}/fd | grep -q outbox@follow", guest)
        guest.out("""echo '{"payload": "from afar"}' > $M/agents/demo/inbox""")
        assert follow.stdout is not None
        assert select.select([follow.stdout], [], [], PATIENCE_S)[0]
        record = json.loads(follow.stdout.readline())
        assert "from afar" in json.dumps(record["payload"])
    finally:
        follow.kill()
        follow.communicate()
    before = json.loads(guest.out("cat $M/agents/demo/status"))["tick_count"]
    guest.out("echo tick > $M/agents/demo/ctl")
    until(f"""grep -q '"tick_count": *{before + 1}' $M/agents/demo/status""", guest)
    assert json.loads(guest.out("tail -n 1 $M/agents/demo/outbox")) == record


def test_errors_come_in_the_call_that_they_are_of(host: Machine, guest: Guest) -> None:
    guest.mount(operator(host))
    opened = "fd = os.open(M + '/agents/demo/{}', os.O_WRONLY); "
    assert guest.errno(opened.format("inbox") + "os.write(fd, b'{bad')") == "EINVAL"
    assert guest.errno(opened.format("inbox") + """os.write(fd, b'{"payload": 1, "to": 5}')""") == "EINVAL"
    assert guest.errno(opened.format("ctl") + "os.write(fd, b'nosuch verb\\n')") == "EINVAL"
    assert guest.errno(opened.format("config") + """os.write(fd, b'{"nosuch": 1}')""") == "EINVAL"
    assert guest.errno("os.open(M + '/agents/demo/status', os.O_WRONLY)") == "EACCES"
    assert guest.errno("os.stat(M + '/agents/nosuch')") == "ENOENT"
    assert guest.errno("os.rmdir(M + '/agents/demo/kv')") == "EBUSY"


def test_values_and_names(host: Machine, guest: Guest) -> None:
    guest.mount(operator(host))
    kv = "cd $M/agents/demo/kv"
    assert guest.out(f"{kv}; echo one > a; cat a; echo two >> a; cat a; mv a b; ls; rm b; ls") == "one\none\ntwo\nb\n"
    assert (
        guest.out(f"{kv}; touch empty; stat -c %s empty; head -c 200000 /dev/zero > big; wc -c < big") == "0\n200000\n"
    )
    assert guest.out("mkdir $M/agents/other; ls $M/agents").split() == ["demo", "new", "other"]
    config = "$M/agents/other/config"
    guest.out(f"sed -i 's/60000/50000/' {config} && grep -q 50000 {config}")


def test_an_agents_token_opens_its_own_namespace_only(host: Machine, guest: Guest) -> None:
    host.run("mount", "--no-fuse", "--agent", "other")
    guest.mount(capability.mint(capability.root_key(operator(host)), "agent:demo", time.time_ns()))
    names = guest.out("ls $M").split()
    assert {"inbox", "outbox", "status", "kv"} <= set(names)
    assert not {"agents", "views", "runtime"} & set(names)
    assert json.loads(guest.out("cat $M/status"))["id"] == "demo"
    assert guest.errno("os.stat(M + '/../given/agents/other')") == "ENOENT"
    assert guest.errno("os.open(M + '/config', os.O_WRONLY)") == "EACCES"
    assert guest.errno("fd = os.open(M + '/ctl', os.O_WRONLY); os.write(fd, b'pause\\n')") == "EPERM"


def test_a_bad_token_or_url_mounts_nothing(host: Machine, guest: Guest) -> None:
    place = f"--mount={guest.place}"
    for words, name in (
        (("--token=wrong", f"--url={guest.url}"), "EACCES"),
        (("--token=wr\nong", f"--url={guest.url}"), "EACCES"),
        (("--token=t", "--url=http://127.0.0.1:1"), "ENOTCONN"),
        (("--token=t", "--url=ftp://x"), "EINVAL"),
        (("--token=t",), "ENOENT"),
        ((f"--url={guest.url}",), "EINVAL"),
        (("--token=t", f"--url={guest.url}", "--agent=x"), "EINVAL"),
        (("--token=t", f"--url={guest.url}", "--no-fuse"), "EINVAL"),
    ):
        said = guest.run("mount", place, *words, code=1)
        assert said.startswith(f"agentfs: {name}: "), said
        assert len(said.splitlines()) == 1, said
        assert not guest.is_mounted()
    guest.place.mkdir()
    (guest.place / "full").touch()
    said = guest.run("mount", place, f"--token={operator(host)}", f"--url={guest.url}", code=1)
    assert said.startswith("agentfs: ENOTEMPTY")
    assert guest.server() is None


def test_umount_takes_off_that_mount_only_and_its_process_ends(host: Machine, guest: Guest) -> None:
    token = operator(host)
    words = (f"--token={token}", f"--mount={guest.place}")
    assert host.run("mount", *words) == f"mounted on {guest.place}\n"  # the URL is that of the state directory
    assert "EBUSY" in host.run("mount", *words, code=1)
    pid = guest.server()
    assert pid is not None
    for file in ("cmdline", "environ"):
        assert token.encode() not in Path(f"/proc/{pid}/{file}").read_bytes()
    served = os.pidfd_open(pid)
    assert host.run("umount", f"--mount={guest.place}") == f"unmounted {guest.place}\n"
    assert not guest.is_mounted()
    assert select.select([served], [], [], PATIENCE_S)[0]
    os.close(served)
    assert host.look()["is_ready"] is True


def test_a_runtime_that_goes_and_comes_back(host: Machine, guest: Guest) -> None:
    guest.mount(operator(host))
    outbox = guest.place / "agents/demo/outbox"
    follow = subprocess.Popen(["cat", f"{outbox}@0"], stdout=subprocess.PIPE)
    try:
        assert follow.stdout is not None
        guest.out("""echo '{"payload": "first"}' > $M/agents/demo/inbox""")
        assert select.select([follow.stdout], [], [], PATIENCE_S)[0]
        assert b"first" in follow.stdout.readline()
        host.run("umount")
        assert guest.errno("open(M + '/agents/demo/status').read()") == "ENOTCONN"
        assert guest.errno("os.listdir(M)") == "ENOTCONN"
        assert "EBUSY" in guest.run("mount", f"--mount={guest.place}", code=1)
        host.run("mount", "--no-fuse")
        assert json.loads(guest.out("cat $M/agents/demo/status"))["id"] == "demo"
        guest.out("""echo '{"payload": "second"}' > $M/agents/demo/inbox""")
        assert select.select([follow.stdout], [], [], PATIENCE_S)[0]
        assert b"second" in follow.stdout.readline()
    finally:
        follow.kill()
        follow.communicate()


def test_a_killed_server_leaves_a_mount_that_can_be_taken_off_or_replaced(host: Machine, guest: Guest) -> None:
    for end in ("mount", "umount"):
        if not guest.is_mounted():
            guest.mount(operator(host))
        pid = guest.server()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        token = ("--token", operator(host), "--url", guest.url) if end == "mount" else ()
        until(f"! test -e /proc/{pid}/mountinfo", guest)
        guest.run(end, f"--mount={guest.place}", *token)
    assert not guest.is_mounted()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_foreground_stays_until_it_is_asked_to_end(host: Machine, guest: Guest, sign: signal.Signals) -> None:
    words = ("mount", "--foreground", f"--url={guest.url}", f"--mount={guest.place}", f"--token={operator(host)}")
    command = [str(BIN / "python"), "-m", "agentfs.cli", *words]
    child = subprocess.Popen(command, env=guest.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == f"mounted on {guest.place}\n"
        assert guest.out("ls $M").split() == ["agents", "runtime", "views"]
        child.send_signal(sign)
        child.communicate(timeout=PATIENCE_S)
    finally:
        child.kill()
        child.communicate()
    assert child.returncode == 0
    assert not guest.is_mounted()
