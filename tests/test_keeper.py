"""The keeper in a process of its own: the same signer as the one in this process, and what becomes of it."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from engines import fails

from agentfs.ports import Key, Signer
from agentfs.providers.clock import ManualClock
from agentfs.providers.keys import curve, nip44
from agentfs.providers.keys.kept import Kept, keeping
from agentfs.providers.keys.link import Link
from agentfs.providers.keys.opening import create, opened
from agentfs.providers.keys.wire import LARGEST, NOTES, Answer, Ask, Frames, Source, framed, is_from, pair

MODULE = "agentfs.providers.keys.process"
PEER = bytes(31) + b"\2"
FIRST = Key(0)


def at(folder: Path) -> Source:
    return Source("sealed", str(folder / "keys.sealed"), str(folder / "keys.key"))


def phrased(folder: Path, text: bytes, **more: bool) -> Source:
    """A source opened by the passphrase *text*, as if it came on a pipe."""
    told, telling = os.pipe()
    os.write(telling, text)
    os.close(telling)
    return msgspec.structs.replace(at(folder), phrase=told, **more)


@pytest.fixture(params=["inline", "process"])
async def signer(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Signer]:
    if request.param == "inline":
        yield opened(at(tmp_path))
        return
    async with keeping(at(tmp_path), ManualClock()) as kept:
        yield kept


@asynccontextmanager
async def refusing(source: Source) -> AsyncIterator[pytest.ExceptionInfo[OSError]]:
    with pytest.RaisesGroup(OSError, flatten_subgroups=True) as caught:
        async with keeping(source, ManualClock()):
            pytest.fail("it opened")
    yield caught  # type: ignore[misc]


async def test_what_a_signer_does(signer: Signer) -> None:
    public, other = await signer.pubkey(FIRST), await signer.pubkey(Key(7))
    assert len(public) == 32 and public != other
    signature = await signer.sign(FIRST, bytes(32))
    assert signer.verify(public, bytes(32), signature) and not signer.verify(other, bytes(32), signature)
    payload = await signer.encrypt(FIRST, other, "for you, ü")
    assert await signer.decrypt(Key(7), public, payload) == "for you, ü"
    assert nip44.decrypt(await signer.encrypt(FIRST, curve.pubkey(PEER), "x"), nip44.conversation_key(PEER, public))
    held = await signer.seal("a/b", b"secret" * 1000)
    assert b"secret" not in held and await signer.unseal("a/b", held) == b"secret" * 1000


async def test_what_a_signer_refuses(signer: Signer, tmp_path: Path) -> None:
    key = opened(at(tmp_path)).adopt(PEER)
    assert signer.verify(key.pubkey, bytes(32), await signer.sign(key, bytes(32)))
    held = await signer.seal("a/b", b"secret")
    for code, text, call in (
        (errno.EINVAL, "digest: want 32 bytes", signer.sign(FIRST, b"short")),
        (errno.EINVAL, "public key", signer.encrypt(FIRST, bytes(32), "x")),
        (errno.EINVAL, "nip-44", signer.decrypt(FIRST, curve.pubkey(PEER), "AgAA")),
        (errno.EINVAL, "tampered", signer.unseal("a/c", held)),
        (errno.EINVAL, "tampered", signer.unseal("a/b", held[:-1])),
        (errno.EINVAL, "tampered", signer.sign(Key(0, bytes(32), key.imported), bytes(32))),
        (errno.EPERM, "used, not read", signer.unseal(f"key {key.pubkey.hex()}", key.imported)),
        (errno.EINVAL, "UTF-8", signer.encrypt(FIRST, curve.pubkey(PEER), "\ud800")),
        (errno.EINVAL, "account", signer.pubkey(Key(-1))),
    ):
        assert text.lower() in str(await fails(code, call)).lower()
    assert len(await signer.pubkey(FIRST)) == 32


async def test_many_ask_at_once_and_some_give_up(tmp_path: Path) -> None:
    keeper = opened(at(tmp_path))
    wanted = {number: await keeper.pubkey(Key(number)) for number in range(100)}
    async with keeping(at(tmp_path), ManualClock()) as kept:
        found: dict[int, bytes] = {}

        async def ask(number: int) -> None:
            with trio.CancelScope() as scope:
                if number % 3 == 0:
                    scope.cancel()
                found[number] = await kept.pubkey(Key(number))

        async def large(number: int) -> None:
            data = bytes([number]) * (1 << 20)
            assert await kept.unseal("n", await kept.seal("n", data)) == data

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(ask, number)
            for number in range(8):
                nursery.start_soon(large, number)
        assert found == {number: key for number, key in wanted.items() if number % 3}
        await fails(errno.EFBIG, kept.seal("n", bytes(LARGEST)))


async def test_a_keeper_that_is_killed_is_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with keeping(at(tmp_path), clock := ManualClock()) as kept:
        public, pid = await kept.pubkey(FIRST), kept.pid
        os.kill(pid, signal.SIGSTOP)  # it takes requests, and answers none
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(fails, errno.ENOTCONN, kept.sign(FIRST, bytes(32)))
            await trio.testing.wait_all_tasks_blocked()
            os.kill(pid, signal.SIGKILL)
        assert "keeper" in str(await fails(errno.ENOTCONN, kept.pubkey(FIRST)))
        await logged(caplog, 1)
        assert caplog.records[0].levelname == "WARNING" and kept.verify(public, b"", b"") is False
        assert await back(kept, clock) != pid
        assert await kept.pubkey(FIRST) == public
        assert len(caplog.records) == 1


async def logged(caplog: pytest.LogCaptureFixture, count: int, clock: ManualClock | None = None) -> None:
    """Return once there are *count* records, while *clock* goes on."""
    with trio.fail_after(60):
        while len(caplog.records) < count:
            if clock:
                clock.advance(1)
            await trio.sleep(0.01)


async def back(kept: Kept, clock: ManualClock) -> int:
    """The next keeper's process, once it is there."""
    with trio.fail_after(60):
        while True:
            clock.advance(0.1)
            await trio.sleep(0.01)
            try:
                return kept.pid
            except OSError as exc:
                assert exc.errno == errno.ENOTCONN


@pytest.mark.parametrize("kind", ["passphrase", "memory"])
async def test_what_is_not_kept_is_not_opened_again(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = phrased(tmp_path, b"open sesame\n") if kind == "passphrase" else Source("memory")
    async with keeping(source, clock := ManualClock()) as kept:
        await kept.sign(FIRST, bytes(32))
        os.kill(kept.pid, signal.SIGKILL)
        await logged(caplog, 1)
        clock.advance(3600)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert "start the runtime again" in str(await fails(errno.ENOTCONN, kept.sign(FIRST, bytes(32))))
    assert len(caplog.records) == 1
    assert kind == "passphrase" or os.listdir(tmp_path) == []  # noqa: PTH208


@pytest.mark.parametrize("change", ["gone", "another"])
async def test_keys_that_changed_meanwhile_are_not_taken(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sealed = tmp_path / "keys.sealed"
    async with keeping(at(tmp_path), clock := ManualClock()) as kept:
        before = sealed.rename(tmp_path / "before")
        if change == "another":
            opened(at(tmp_path))
        os.kill(kept.pid, signal.SIGKILL)
        await logged(caplog, 3, clock)
        assert ("another seed" if change == "another" else "no sealed file") in caplog.text
        await fails(errno.ENOTCONN, kept.sign(FIRST, bytes(32)))
        assert sealed.exists() == (change == "another")
        before.rename(sealed)
        await back(kept, clock)


async def test_what_does_not_open_is_told_as_it_is(tmp_path: Path) -> None:
    create(phrased(tmp_path, b"open sesame"), " ".join(["abandon"] * 11 + ["about"]))
    async with refusing(phrased(tmp_path, b"open barley")) as caught:
        assert "wrong passphrase" in str(caught.value.exceptions[0])  # type: ignore[attr-defined]
    async with refusing(phrased(tmp_path, b"")) as caught:
        assert "passphrase: want 1 to" in str(caught.value.exceptions[0])  # type: ignore[attr-defined]
    (tmp_path / "keys.sealed").chmod(0o644)
    async with refusing(phrased(tmp_path, b"open sesame")) as caught:
        (exc,) = caught.value.exceptions  # type: ignore[attr-defined]
        assert exc.errno == errno.EACCES and exc.filename == str(tmp_path / "keys.sealed")
    async with refusing(phrased(tmp_path / "none", b"open sesame", may_make=False)) as caught:
        assert "no sealed file" in str(caught.value.exceptions[0])  # type: ignore[attr-defined]


# -- whom it serves ----------------------------------------------------------------------------------------------------


def started(stdin: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", MODULE], stdin=stdin, stderr=subprocess.PIPE)


def ended(child: subprocess.Popen[bytes]) -> int:
    _, said = child.communicate(timeout=60)
    assert b"Traceback" not in said
    return child.returncode


@pytest.mark.parametrize("bad", [b"\xff" * 8, b"\0\0\0\1\xc1", framed(Answer(data=b"x" * 9)), b"\0\0\0\0", b"\0"])
def test_what_is_no_request_ends_the_connection(bad: bytes, tmp_path: Path) -> None:
    near, far = pair()
    with near, far, started(far.fileno()) as child:
        near.sendall(bad)
        near.shutdown(socket.SHUT_WR)
        assert ended(child) != 0


def test_a_hostile_length_ends_a_connection_that_was_good(tmp_path: Path) -> None:
    near, far = pair()
    with near, far, started(far.fileno()) as child:
        near.sendall(framed(at(tmp_path)))
        hello, notes, *_ = near.recvmsg(1 << 16, NOTES)
        assert is_from(child.pid, notes) and not is_from(os.getpid(), notes) and not is_from(child.pid, [])
        (frame,) = Frames().take(hello)
        assert len(msgspec.msgpack.decode(frame, type=Answer).given().data) == 32
        near.sendall((LARGEST + 1).to_bytes(4, "big"))
        assert ended(child) != 0


def test_a_stranger_on_the_line_is_not_answered(tmp_path: Path) -> None:
    """Another process has got hold of the runtime's end: the keeper ends."""
    near, far = pair()
    with near, far, started(far.fileno()) as child:
        near.sendall(framed(at(tmp_path)))
        near.recvmsg(1 << 16, NOTES)
        script = f"import os; os.write({near.fileno()}, {framed(Ask('pubkey'))!r})"
        subprocess.run([sys.executable, "-c", script], pass_fds=[near.fileno()], timeout=60, check=True)
        assert ended(child) == 0
        far.close()
        assert near.recv(1 << 16) == b""


def test_only_the_maker_of_the_connection_is_served() -> None:
    near, far = pair()
    script = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-m', '{MODULE}']))"
    with near, far:
        child = subprocess.run([sys.executable, "-c", script], stdin=far.fileno(), timeout=60, check=False)
    assert child.returncode == 77


def test_no_core_and_nobody_looks_in() -> None:
    script = f"""if True:
        import ctypes, os, resource, signal
        from {MODULE} import harden
        harden()
        found = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(found))
        print(ctypes.CDLL(None).prctl(3), found.value, *resource.getrlimit(resource.RLIMIT_CORE))
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("a key")
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["0", str(int(signal.SIGKILL)), "0", "0"]
    assert done.stderr == "agentfs keeper: ValueError\n"


async def test_its_environment_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME_ADDRESS", "leaky")
    link = Link(at(tmp_path))
    environ = await trio.Path(f"/proc/{link.pid}/environ").read_bytes()
    names = {line.partition(b"=")[0] for line in environ.split(b"\0")}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.serve)
        await link.aclose()
    assert names <= {b"", b"PATH", b"PYTHONPATH", b"LANG", b"LC_ALL"}
