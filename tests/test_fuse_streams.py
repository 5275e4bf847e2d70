"""Reads that block on a real mount: signals, poll, many readers at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fusemount import TIMEOUT_S, Mount, ends, follow, is_waiting, mounted, wait_for
from fusescratch import SCRATCH

pytestmark = pytest.mark.usefixtures("binding")


@pytest.fixture(scope="module")
def shared(binding: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for the tests that leave it as it was, or nearly so."""
    with mounted(SCRATCH, tmp_path_factory.mktemp("fuse") / "m") as mount:
        yield mount


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Mount]:
    """A mount for one test."""
    with mounted(SCRATCH, tmp_path / "m") as mount:
        yield mount


def cpu_s(pid: int) -> float:
    """Seconds that a process has worked: what it takes to answer, however busy the machine is with others."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_listed_stream_ends_and_follow_blocks(fresh: Mount) -> None:
    fresh.out("echo emit a > $M/ctl; cat $M/log")
    reader = follow(fresh)
    fresh.out("echo emit b > $M/ctl; echo finish > $M/ctl")
    assert reader.communicate(timeout=TIMEOUT_S)[0] == "b\n"
    assert fresh.out("cat $M/log") == "a\nb\n"
    tail = fresh.spawn("tail", "-f", "-s", "0.05", f"{fresh.at}/log")
    assert tail.stdout is not None
    assert [tail.stdout.readline(), tail.stdout.readline()] == ["a\n", "b\n"]
    fresh.out("echo emit c > $M/ctl")
    assert tail.stdout.readline() == "c\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGALRM])
def test_a_signal_ends_a_blocked_reader(shared: Mount, number: signal.Signals) -> None:
    reader = follow(shared)
    reader.send_signal(number)
    ends(reader)
    assert reader.returncode == -number


def test_a_signal_ends_readers_in_threads_and_with_inherited_descriptors(shared: Mount) -> None:
    node = follow(shared, "node", "-e", f"require('fs').readFile('{shared.at}/log@follow', () => 0)")
    code = f"import threading; threading.Thread(target=open('{shared.at}/log@follow').read).start()"
    thread = follow(shared, sys.executable, "-c", code)
    # the shell opens the file and ends; the reader has only inherited the descriptor
    orphan = shared.spawn("bash", "-c", f"exec 3< {shared.at}/log@follow; cat <&3 & echo $!")
    assert orphan.stdout is not None
    heir = int(orphan.stdout.readline())
    wait_for(lambda: is_waiting(heir))
    for process in (node, thread):
        process.kill()
        ends(process)
    os.kill(heir, signal.SIGKILL)
    wait_for(lambda: not is_waiting(heir))


def test_a_signal_ends_one_of_many_who_have_inherited_the_descriptor(shared: Mount) -> None:
    """The opener is gone, and the others live on."""
    some = "for i in 1 2 3; do sleep 1000 >&- & done"
    script = f"exec 3< {shared.at}/log@follow; {some}; cat <&3 & echo $!; {some}; echo $(jobs -p)"
    orphans = shared.spawn("bash", "-c", script)
    assert orphans.stdout is not None
    heir, others = int(orphans.stdout.readline()), [int(pid) for pid in orphans.stdout.readline().split()]
    try:
        wait_for(lambda: is_waiting(heir))
        orphans.wait(TIMEOUT_S)
        time.sleep(0.5)  # several sweeps: one of the others is found to hold the descriptor
        os.kill(heir, signal.SIGKILL)
        wait_for(lambda: not is_waiting(heir))
    finally:
        for pid in {*others} - {heir}:
            os.kill(pid, signal.SIGKILL)


def test_a_reader_is_never_interrupted_without_a_signal(fresh: Mount) -> None:
    awk = follow(fresh, "awk", "{print}", f"{fresh.at}/log@follow")
    blocker = "import signal, os; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]);"
    blocker += f"signal.signal(signal.SIGUSR2, signal.SIG_IGN); print(os.read(os.open('{fresh.at}/log@follow', 0), 9))"
    masked = follow(fresh, sys.executable, "-c", blocker)
    masked.send_signal(signal.SIGUSR1)
    masked.send_signal(signal.SIGUSR2)
    time.sleep(0.5)  # several sweeps: nothing is to happen in them
    fresh.out("echo emit x > $M/ctl; echo finish > $M/ctl")
    assert awk.communicate(timeout=TIMEOUT_S) == ("x\n", "")
    assert masked.communicate(timeout=TIMEOUT_S)[0] == "b'x\\n'\n"


def test_an_interrupted_read_loses_nothing(fresh: Mount) -> None:
    code = """
import os, signal, sys
signal.signal(signal.SIGALRM, lambda *a: None); signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
got = b''
f = open(sys.argv[1], 'rb', buffering=0)
while len(got.splitlines()) < 50: got += f.read(100)
print(got.decode(), end='')
"""
    reader = fresh.spawn(sys.executable, "-c", code, f"{fresh.at}/log@follow")
    wait_for(lambda: "log@follow READ" in fresh.out("cat $M/calls"))
    fresh.out("for i in {1..50}; do echo emit $i > $M/ctl; sleep 0.02; done")
    assert reader.communicate(timeout=TIMEOUT_S)[0] == "".join(f"{i}\n" for i in range(1, 51))


def test_nonblocking_read_and_poll(fresh: Mount) -> None:
    fresh.python("""
import errno, os, select, subprocess, time
fd = os.open(M + '/log@follow', os.O_RDONLY | os.O_NONBLOCK)
try: os.read(fd, 10); raise SystemExit('read something')
except BlockingIOError: pass
poller = select.poll(); poller.register(fd, select.POLLIN)
assert poller.poll(50) == []
for i in range(20):
    begin = time.monotonic()
    subprocess.Popen(['bash', '-c', f'echo emit {i} > {M}/ctl'])
    assert poller.poll(30_000) == [(fd, select.POLLIN)]
    assert os.read(fd, 10) == b'%d\\n' % i
epoll = select.epoll(); epoll.register(fd, select.EPOLLIN | select.EPOLLET)
assert epoll.poll(0.05) == []
subprocess.run(['bash', '-c', f'echo emit z > {M}/ctl'])
assert epoll.poll(30) and os.read(fd, 10) == b'z\\n'
assert poller.poll(20) == []; os.close(fd)
ready = select.select([open(M + '/fixed')], [open(M + '/d/one', 'w')], [], 0)
assert len(ready[0]) == len(ready[1]) == 1
""")


@pytest.mark.parametrize("count", [120, 1000])
def test_blocked_readers_do_not_wedge_the_mount(fresh: Mount, count: int) -> None:
    code = f"""
import os, threading
threading.stack_size(65536)
def read(): fds.append(os.read(os.open('{fresh.at}/log@follow', os.O_RDONLY), 10))
fds = []
threads = [threading.Thread(target=read) for _ in range({count // 4})]
for t in threads: t.start()
for t in threads: t.join()
print(len(fds), set(fds))
"""
    readers = [fresh.spawn(sys.executable, "-c", code) for _ in range(4)]
    wait_for(lambda: fresh.out("cat $M/calls").count("follow") == count)
    begin = cpu_s(fresh.server.pid)
    assert fresh.out("cat $M/fixed; ls $M/d") == "fixed\none\nsub\n"
    assert cpu_s(fresh.server.pid) - begin < 2
    readers[0].terminate()
    ends(readers[0])
    fresh.out("echo emit now > $M/ctl")
    for reader in readers[1:]:
        assert reader.communicate(timeout=TIMEOUT_S)[0] == f"{count // 4} {{b'now\\n'}}\n"


def test_too_many_blocked_readers_are_refused(tmp_path: Path) -> None:
    with mounted(SCRATCH, tmp_path / "m", "--max-blocked", "3") as mount:
        readers = [follow(mount) for _ in range(3)]
        assert "Too many open files" in mount.sh("cat $M/log@follow").stderr
        readers[0].kill()
        ends(readers[0])
        follow(mount)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_a_child_that_reads_what_its_living_parent_opened(fresh: Mount, number: signal.Signals) -> None:
    """``cat <&3`` in a shell: the shell only waits for its child; another child's read of the same file goes on."""
    code = "exec 3< $M/log@follow; cat <&3 & echo $!; wait"
    shells = [fresh.spawn("bash", "-c", code.replace("$M", str(fresh.at))) for _ in range(2)]
    killed, other = (int(shell.stdout.readline()) for shell in shells if shell.stdout is not None)
    wait_for(lambda: is_waiting(killed) and is_waiting(other))
    os.kill(killed, number)
    ends(shells[0])
    assert is_waiting(other)
    os.kill(other, signal.SIGKILL)
    ends(shells[1])
