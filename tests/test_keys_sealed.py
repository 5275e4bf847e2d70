"""The sealed file: what opens it, what is noticed, who may read it, and what a crash or a reader in between sees."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentfs.providers.keys.sealed import LARGEST, WORK, KeyFile, new_key_file, seal, unseal
from agentfs.providers.keys.secret import Secret

PASS = Secret("correct horse battery staple")
DATA = b"leader monkey parrot ring"
TAMPERED = "invalid argument: sealed file: wrong passphrase or tampered with"
CHEAP = 2

# Seals over an old file and is killed at the call that argv names, before or after it is done.
KILLED = """
import os, signal, sys
from pathlib import Path
from agentfs.providers.keys.sealed import seal
from agentfs.providers.keys.secret import Secret
name, when, at, path = sys.argv[1:]
call, left = getattr(os, name), int(at)
def dies(*args, **named):
    global left
    left -= 1
    if when == "before" and left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    done = call(*args, **named)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
setattr(os, name, dies)
seal(Path(path), b"new", Secret("pass"), n=2)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.key"


def refused(call: Callable[[], object], code: int, *texts: str) -> str:
    """The error is *code*; neither it nor anything in its traceback's text tells a secret; its text."""
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno == code
    whole = "".join(traceback.format_exception(caught.value))
    assert not any(secret in whole for secret in ("correct horse", "leader monkey", *texts))
    return str(caught.value.strerror)


@pytest.mark.parametrize("data", [b"", DATA, bytes(range(256)) * 64, b"\n{}\n"])
def test_what_was_sealed_comes_back(path: Path, data: bytes) -> None:
    seal(path, data, PASS, n=CHEAP)
    assert unseal(path, PASS) == data
    assert path.stat().st_mode & 0o7777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert not data or data not in path.read_bytes()


def test_the_default_cost_is_in_the_header(path: Path) -> None:
    seal(path, DATA, PASS)
    header = json.loads(path.read_bytes().partition(b"\n")[0])
    assert {name: header[name] for name in ("v", "kdf", "n", "r", "p")} == {
        "v": 1, "kdf": "scrypt", "n": WORK, "r": 8, "p": 1,
    }  # fmt: skip
    assert WORK == 2**15
    assert unseal(path, PASS) == DATA


@given(data=st.binary(max_size=300), passphrase=st.text(min_size=1))
@settings(max_examples=50, deadline=None)
def test_any_data_and_passphrase(tmp_path_factory: pytest.TempPathFactory, data: bytes, passphrase: str) -> None:
    path = tmp_path_factory.mktemp("sealed") / "file"
    seal(path, data, Secret(passphrase), n=CHEAP)
    assert unseal(path, Secret(passphrase)) == data
    assert refused(lambda: unseal(path, Secret(passphrase + "x")), errno.EINVAL) == TAMPERED


def test_two_files_of_the_same_have_nothing_in_common(tmp_path: Path) -> None:
    for name in ("one", "other"):
        seal(tmp_path / name, DATA, PASS, n=CHEAP)
    one, other = ((tmp_path / name).read_bytes() for name in ("one", "other"))
    assert json.loads(one.split(b"\n")[0])["salt"] != json.loads(other.split(b"\n")[0])["salt"]
    assert one[-len(DATA) - 16 :] != other[-len(DATA) - 16 :]


@pytest.mark.parametrize("kind", ["passphrase", "key file"])
def test_every_byte_counts(path: Path, kind: str) -> None:
    opener = PASS if kind == "passphrase" else new_key_file(path.with_name("opener"))
    seal(path, DATA, opener, n=CHEAP)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for flip in (0x01, 0x20, 0x80, 0xFF):
            changed = bytearray(whole)
            changed[place] ^= flip
            path.write_bytes(changed)
            assert refused(lambda: unseal(path, opener), errno.EINVAL) == TAMPERED, (place, flip)
    path.write_bytes(whole)
    assert unseal(path, opener) == DATA


def test_a_file_cut_or_longer_is_refused(path: Path) -> None:
    seal(path, DATA, PASS, n=CHEAP)
    whole = path.read_bytes()
    for other in (*(whole[:size] for size in range(len(whole))), whole + b"\0", b" " + whole, whole + whole):
        path.write_bytes(other)
        assert refused(lambda: unseal(path, PASS), errno.EINVAL) == TAMPERED


@pytest.mark.parametrize(
    "change",
    [{"v": 2}, {"n": 1 << 30}, {"n": 3}, {"n": -2}, {"n": 0}, {"r": 1 << 20}, {"p": 1 << 20}, {"kdf": "argon2id"},
     {"salt": ""}, {"nonce": "AAAA"}, {"more": 1}],
)  # fmt: skip
def test_a_forged_header_costs_nothing(path: Path, change: dict[str, object]) -> None:
    seal(path, DATA, PASS, n=CHEAP)
    line, _, hidden = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps(json.loads(line) | change).encode() + b"\n" + hidden)
    assert refused(lambda: unseal(path, PASS), errno.EINVAL) == TAMPERED


@pytest.mark.parametrize("wrong", ["", " ", "Correct horse battery staple", "correct horse battery staple "])
def test_a_wrong_passphrase(path: Path, wrong: str) -> None:
    seal(path, DATA, PASS, n=CHEAP)
    assert refused(lambda: unseal(path, Secret(wrong)), errno.EINVAL) == TAMPERED


@pytest.mark.parametrize(("opener", "n"), [(Secret(""), CHEAP), (PASS, 0), (PASS, 1), (PASS, 3), (PASS, 1 << 19)])
def test_what_cannot_seal_leaves_no_file(path: Path, opener: Secret, n: int) -> None:
    assert "power of two" in refused(lambda: seal(path, DATA, opener, n=n), errno.EINVAL)
    assert list(path.parent.iterdir()) == []


def test_a_key_file_opens_what_it_sealed_and_nothing_else(path: Path, tmp_path: Path) -> None:
    mine, other = new_key_file(tmp_path / "mine"), new_key_file(tmp_path / "other")
    assert len(mine.path.read_bytes()) == 32
    assert mine.path.read_bytes() != other.path.read_bytes()
    assert mine.path.stat().st_mode & 0o7777 == 0o600
    seal(path, DATA, mine)
    assert unseal(path, mine) == DATA
    assert refused(lambda: unseal(path, other), errno.EINVAL) == TAMPERED
    assert "opened with a key file" in refused(lambda: unseal(path, PASS), errno.EINVAL)
    seal(path, DATA, PASS, n=CHEAP)
    assert "opened with a passphrase" in refused(lambda: unseal(path, mine), errno.EINVAL)
    refused(lambda: new_key_file(mine.path), errno.EEXIST)
    mine.path.write_bytes(bytes(31))
    assert "not 32 bytes" in refused(lambda: seal(path, DATA, mine), errno.EINVAL)
    mine.path.chmod(0o640)
    refused(lambda: seal(path, DATA, mine), errno.EACCES)
    refused(lambda: unseal(path, KeyFile(tmp_path / "none")), errno.EINVAL)
    refused(lambda: seal(path, DATA, KeyFile(tmp_path / "none")), errno.ENOENT)
    assert unseal(path, PASS) == DATA


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o666])
def test_a_file_that_others_can_touch_is_refused(path: Path, mode: int) -> None:
    seal(path, DATA, PASS, n=CHEAP)
    path.chmod(mode)
    assert "0600" in refused(lambda: unseal(path, PASS), errno.EACCES)
    path.chmod(0o400)
    assert unseal(path, PASS) == DATA


def test_the_mode_does_not_depend_on_the_umask_or_the_old_file(path: Path) -> None:
    path.write_bytes(b"old")
    path.chmod(0o644)
    before = os.umask(0o377)
    try:
        seal(path, DATA, PASS, n=CHEAP)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == 0o600


def test_what_is_no_file_is_refused(path: Path, tmp_path: Path) -> None:
    refused(lambda: unseal(path, PASS), errno.ENOENT)
    refused(lambda: seal(tmp_path / "none" / "file", DATA, PASS, n=CHEAP), errno.ENOENT)
    refused(lambda: unseal(tmp_path, PASS), errno.EINVAL)
    os.mkfifo(tmp_path / "pipe", 0o600)
    refused(lambda: unseal(tmp_path / "pipe", PASS), errno.EINVAL)
    seal(path, DATA, PASS, n=CHEAP)
    (tmp_path / "link").symlink_to(path)
    refused(lambda: unseal(tmp_path / "link", PASS), errno.ELOOP)


def test_a_file_that_is_too_large_is_refused(path: Path) -> None:
    refused(lambda: seal(path, bytes(LARGEST), PASS, n=CHEAP), errno.EFBIG)
    assert not path.exists()
    path.write_bytes(bytes(LARGEST + 1))
    path.chmod(0o600)
    refused(lambda: unseal(path, PASS), errno.EFBIG)


@pytest.mark.parametrize("name", ["fchmod", "fsync", "rename"])
def test_a_write_that_fails_leaves_the_old_file_alone(path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    seal(path, DATA, PASS, n=CHEAP)

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(Path if name == "rename" else os, name, full)
    refused(lambda: seal(path, b"new", PASS, n=CHEAP), errno.ENOSPC)
    monkeypatch.undo()
    assert unseal(path, PASS) == DATA
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "when", "at", "then"),
    [
        ("open", "before", 1, b"old"), ("open", "after", 1, b"old"), ("fsync", "before", 1, b"old"),
        ("fsync", "after", 1, b"old"), ("rename", "before", 1, b"old"), ("rename", "after", 1, b"new"),
        ("fsync", "before", 2, b"new"), ("fsync", "after", 2, b"new"),
    ],
)  # fmt: skip
def test_killed_half_way(path: Path, name: str, when: str, at: int, then: bytes) -> None:
    opener = Secret("pass")
    seal(path, b"old", opener, n=CHEAP)
    done = subprocess.run([sys.executable, "-c", KILLED, name, when, str(at), str(path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert unseal(path, opener) == then
    drafts = [entry for entry in path.parent.iterdir() if entry != path]
    assert all(entry.name.endswith(".draft") and b"new" not in entry.read_bytes() for entry in drafts)
    seal(path, b"newer", opener, n=CHEAP)
    assert unseal(path, opener) == b"newer"


def test_readers_never_see_a_torn_file(path: Path) -> None:
    allowed, seen, failed = {bytes([number]) * 5000 for number in range(40)}, set[bytes](), list[BaseException]()
    seal(path, bytes(5000), PASS, n=CHEAP)
    over = threading.Event()

    def read() -> None:
        try:
            while not over.is_set():
                seen.add(unseal(path, PASS))
        except OSError as exc:
            failed.append(exc)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for value in sorted(allowed):
        seal(path, value, PASS, n=CHEAP)
    over.set()
    for reader in readers:
        reader.join()
    assert failed == []
    assert seen and seen <= allowed


def test_writers_at_the_same_time_leave_one_whole_file(path: Path) -> None:
    values = [bytes([number]) * 3000 for number in range(8)]
    writers = [threading.Thread(target=seal, args=(path, value, PASS), kwargs={"n": CHEAP}) for value in values]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert unseal(path, PASS) in values
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_secret_shows_itself_nowhere() -> None:
    secret = Secret("hunter2")
    assert f"{secret} {secret!r} {[secret]} {secret:}" == "Secret(...) Secret(...) [Secret(...)] Secret(...)"
    assert secret == Secret(b"hunter2") != Secret(b"hunter3")
    assert secret != b"hunter2"
    assert secret.reveal() == b"hunter2"
    assert Secret("\udcff").reveal() == b"\xed\xb3\xbf"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)
    with pytest.raises(TypeError, match="unhashable"):
        hash(secret)
    assert not hasattr(secret, "__dict__")
