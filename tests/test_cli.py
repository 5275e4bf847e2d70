"""The state directory, the process that holds it, and mount points: what `agentfs` stands on."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentfs.cli import mounts, process
from agentfs.state import Running, StateDir

HOLD = """
import os, signal, sys
from pathlib import Path
from agentfs.cli import process
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
process.hold(Path(sys.argv[1]))
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setpgid(0, 0)
    print(os.getpid(), flush=True)
signal.pause()
"""


class Holder:
    """A process that holds a lock and has a child made by fork."""

    def __init__(self, lock: Path, manner: str = "polite") -> None:
        self.process = subprocess.Popen([sys.executable, "-c", HOLD, lock, manner], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.child = int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        os.kill(self.child, signal.SIGKILL)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "runtime.lock"


@pytest.fixture
def held(lock: Path) -> Iterator[Holder]:
    holder = Holder(lock)
    yield holder
    holder.close()


def test_init_is_private_and_keeps_the_token(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "a" / "state")
    assert state.prepare()
    token = state.token.read_text()
    assert len(token.strip()) >= 40
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700
    state.token.chmod(0o644)
    assert not state.prepare()
    assert state.token.read_text() == token
    assert stat.S_IMODE(state.token.stat().st_mode) == 0o600
    assert sorted(file.name for file in state.path.iterdir()) == ["operator.token"]


def test_init_at_the_same_time_agrees_on_one_token(tmp_path: Path) -> None:
    states = [StateDir(tmp_path / "state") for _ in range(32)]
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(StateDir.prepare, states))
    assert sum(made) == 1
    assert [file.name for file in (tmp_path / "state").iterdir()] == ["operator.token"]


def test_init_refuses_a_directory_others_write_in(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o1777)
    with pytest.raises(PermissionError):
        StateDir(tmp_path / "open").prepare()
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o1777


def test_init_tightens_only_an_empty_directory(tmp_path: Path) -> None:
    for name in ("empty", "used"):
        (tmp_path / name).mkdir(mode=0o755)
    (tmp_path / "used" / "thesis.txt").touch()
    for name, mode in (("empty", 0o700), ("used", 0o755)):
        StateDir(tmp_path / name).prepare()
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


def test_init_refuses_an_empty_token(tmp_path: Path) -> None:
    StateDir(tmp_path).token.touch()
    with pytest.raises(OSError, match="token") as caught:
        StateDir(tmp_path).prepare()
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("text", ["", "{", "[]", '{"url":"u"}', "\xff", '{"url":"u","pid":"1"}'])
def test_a_damaged_runtime_json_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    state = StateDir(tmp_path)
    assert state.running() is None
    state.runtime.write_text(text, encoding="latin-1")
    assert state.running() is None
    state.forget()
    assert not state.runtime.exists()


def test_a_runtime_publishes_itself_whole_and_in_private(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    for mount in ("/m", None):
        state.publish(Running("http://127.0.0.1:1", 7, mount, "0.1"))
        assert state.running() == Running("http://127.0.0.1:1", 7, mount, "0.1")
    assert stat.S_IMODE(state.runtime.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [state.runtime]


def test_forget_spares_what_another_process_wrote(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.runtime.write_text('{"url":"u","pid":7,"mount":null,"version":"1","more":1}')
    state.forget(8)
    assert state.running() == Running("u", 7, None, "1")
    state.forget(7)
    assert state.running() is None


def test_the_log_is_set_aside_when_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentfs.state.LOG_MAX", 10)
    state = StateDir(tmp_path)
    for text in (b"one\n", b"a long line of log\n", b"three\n"):
        descriptor = state.open_log()
        os.write(descriptor, text)
        os.close(descriptor)
    assert state.log.read_bytes() == b"three\n"
    assert (tmp_path / "agentfs.log.1").read_bytes() == b"one\na long line of log\n"
    assert state.tail(0) == "three"
    assert stat.S_IMODE(state.log.stat().st_mode) == 0o600


def test_nobody_holds_what_nobody_locked(lock: Path) -> None:
    assert process.holder(lock) is None
    lock.write_text("12345\n")
    assert process.holder(lock) is None
    assert process.end(lock, 1) == ""


def test_the_holder_is_named_and_keeps_others_out(lock: Path, held: Holder) -> None:
    assert process.holder(lock) == held.process.pid
    with pytest.raises(OSError, match=str(held.process.pid)) as caught:
        process.hold(lock)
    assert caught.value.errno == errno.EBUSY


def test_a_fork_does_not_inherit_the_lock(lock: Path, held: Holder) -> None:
    held.process.kill()
    held.process.wait()
    os.kill(held.child, 0)
    assert process.holder(lock) is None


def test_end_stops_the_holder_and_only_it(lock: Path, held: Holder) -> None:
    assert process.end(lock, 60) == f"stopped process {held.process.pid}"
    assert held.process.wait() == -signal.SIGTERM
    os.kill(held.child, 0)
    assert process.end(lock, 60) == ""


def test_end_kills_what_does_not_listen(lock: Path) -> None:
    deaf = Holder(lock, "deaf")
    try:
        assert process.end(lock, 0.1) == f"killed process {deaf.process.pid}"
        assert deaf.process.wait() == -signal.SIGKILL
    finally:
        deaf.close()


def test_turns_are_taken_one_at_a_time(lock: Path) -> None:
    with process.turn(lock, 0), pytest.raises(OSError) as caught, process.turn(lock, 0.1):
        raise AssertionError("two had the turn")
    assert caught.value.errno == errno.EBUSY
    with process.turn(lock, 0):
        pass


def test_a_place_is_made_ready_only_when_it_is_free(tmp_path: Path) -> None:
    assert mounts.make_room(tmp_path / "a" / "b") == 0
    assert (tmp_path / "a" / "b").is_dir()
    assert mounts.entry(tmp_path / "a" / "b") is None
    (tmp_path / "file").touch()
    for place, code in ((tmp_path / "a", errno.ENOTEMPTY), (tmp_path / "file", errno.ENOTDIR)):
        with pytest.raises(OSError) as caught:
            mounts.make_room(place)
        assert caught.value.errno == code


def test_another_file_system_is_never_taken_off() -> None:
    found = mounts.entry(Path("/proc"))
    assert found is not None
    assert found.source == "proc"
    assert mounts.clear(Path("/proc")) == 0
    with pytest.raises(OSError, match="mounted there"):
        mounts.make_room(Path("/proc"))


def test_a_mounted_place_is_found_through_links(tmp_path: Path) -> None:
    (tmp_path / "top").symlink_to("/")
    (tmp_path / "place").symlink_to("/proc")
    assert mounts.entry(tmp_path / "top" / "proc") == mounts.entry(tmp_path / "place") == mounts.entry(Path("/proc"))


def test_probe_tells_the_errno(tmp_path: Path) -> None:
    assert mounts.probe(tmp_path) == 0
    assert mounts.probe(tmp_path / "nosuch") == errno.ENOENT


def test_a_link_is_made_moved_and_removed(tmp_path: Path) -> None:
    name = tmp_path / "mnt"
    for place in (Path("/nosuch/one"), Path("/nosuch/two"), Path("/nosuch/two")):
        assert mounts.link(name, place)
        assert name.readlink() == place
    assert not mounts.unlink(name, Path("/nosuch/one"))
    assert mounts.unlink(name, Path("/nosuch/two"))
    assert not mounts.unlink(name, Path("/nosuch/two"))
    assert list(tmp_path.iterdir()) == []


def test_a_real_directory_is_never_replaced_by_a_link(tmp_path: Path) -> None:
    name = tmp_path / "mnt"
    name.mkdir()
    (name / "kept").touch()
    assert not mounts.link(name, Path("/nosuch"))
    assert not mounts.unlink(name, Path("/nosuch"))
    assert (name / "kept").exists()
