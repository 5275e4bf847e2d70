"""The provider over a real bwrap: sessions, commands and their ends, what goes in and comes out."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path

import pytest
import trio
from boxes import OWNER, Case, collected, opened, play, provider
from fusemount import wait_for

from agentfs.containers.documents import Limits
from agentfs.containers.port import Command, Exit, Output, Spec
from agentfs.providers.containers import bubblewrap, cgroup
from agentfs.providers.containers.bubblewrap import Bubblewrap
from agentfs.types import Mode
from agentfs.types import Path as TreePath

SPEC = Spec("s1", "alice")


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Bubblewrap]:
    async with opened(tmp_path) as made:
        await made.make(SPEC)
        yield made


def line(text: str, id: str = "c") -> Command:
    return Command(id, ["/bin/sh", "-c", text])


def pids(marker: str) -> list[str]:
    """The processes of this machine that were started with *marker* among their words."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in entry.read_bytes() and entry.parent.name != str(os.getpid()):
                found.append(entry.parent.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def environments(marker: str) -> list[bytes]:
    """The environments of the processes of `pids` that have not ended meanwhile."""
    found = []
    for pid in pids(marker):
        with suppress(FileNotFoundError, ProcessLookupError):
            found.append(Path("/proc", pid, "environ").read_bytes())
    return found


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["/bin/true"], 0, b""),
        (["/bin/sh", "-c", "exit 3"], 3, b""),
        (["/bin/sh", "-c", "kill -TERM $$"], 143, b""),
        (["/bin/sh", "-c", "echo bwrap: execvp x: No such file >&2; exit 1"], 1, b"bwrap: execvp x: No such file\n"),
        (["/bin/sh", "-c", "printf bw >&2"], 0, b"bw"),
        (["no-such-program"], 127, b"no-such-program: No such file or directory\n"),
        (["/etc/passwd"], 126, b"/etc/passwd: Permission denied\n"),
        (["/usr"], 126, b"/usr: Permission denied\n"),
    ],
)
async def test_how_commands_end(box: Bubblewrap, words: list[str], code: int, said: bytes) -> None:
    ran = await collected(box, SPEC, Command("c", words))
    assert (ran.code, ran.cause, ran.stdout, ran.stderr) == (code, "", b"", said)


async def test_streams_are_apart_and_whole(box: Bubblewrap) -> None:
    text = "head -c 10000000 /dev/urandom | tee copy; echo done >&2"
    ran = await collected(box, SPEC, line(text))
    assert ran.stdout == (await trio.Path(box._top, "s1", "copy").read_bytes()) and len(ran.stdout) == 10_000_000
    assert ran.stderr == b"done\n"


async def test_stdin_is_given_and_closed(box: Bubblewrap) -> None:
    data = os.urandom(3_000_000)
    ran = await collected(box, SPEC, Command("c", ["cat"], stdin=data))
    assert ran.stdout == data
    assert (await collected(box, SPEC, Command("c", ["/bin/true"], stdin=data))).code == 0
    assert (await collected(box, SPEC, Command("c", ["cat"]))).stdout == b""


async def test_environment_and_place(box: Bubblewrap) -> None:
    spec = Spec("s1", "alice", env={"A": "1", "B": "2"})
    ran = await collected(box, spec, Command("c", ["env"], {"B": "x\ny"}))
    assert set(ran.text.splitlines()) == {
        "A=1", "B=x", "y", "HOME=/work", "USER=agent", "LOGNAME=agent", "SHELL=/bin/sh", "LANG=C.UTF-8", "PWD=/work",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }  # fmt: skip
    await collected(box, SPEC, line("mkdir -p deep/er"))
    assert (await collected(box, SPEC, Command("c", ["pwd"], cwd="deep/er"))).text == "/work/deep/er\n"
    assert (await collected(box, SPEC, Command("c", ["pwd"], cwd="/usr"))).text == "/usr\n"
    with pytest.raises(OSError, match="cwd: no directory 'none' inside") as caught:
        await collected(box, SPEC, Command("c", ["pwd"], cwd="none"))
    assert caught.value.errno == errno.EINVAL


async def test_no_program_outside_gets_the_environment(box: Bubblewrap) -> None:
    """A library named by LD_PRELOAD would run before the sandbox is closed, as root where the runtime is."""
    source = "__attribute__((constructor)) void f() {}"
    evil = {"LD_PRELOAD": "/work/evil.so", "BASH_ENV": "/work/evil", "ENV": "/work/evil", "TOKEN": "hush-3141592"}
    (box._top / "s1" / "evil.so").write_text(source)
    async with aclosing(box.run(SPEC, Command("c", ["/bin/sh", "-c", "echo $TOKEN; exec sleep 1000"], evil))) as run:
        happening = await anext(run)
        while isinstance(happening, Output) and happening.stream == "stderr":
            assert b"object '/work/evil.so' from LD_PRELOAD" in happening.data  # told inside, by the sandbox's own
            happening = await anext(run)
        assert happening == Output("stdout", b"hush-3141592\n")
        assert pids("hush-3141592") == []
        outside = await trio.to_thread.run_sync(environments, "--args")
        assert outside and [held for held in outside if b"hush-3141592" in held] == []


async def test_much_as_words_or_environment(box: Bubblewrap) -> None:
    assert (await collected(box, SPEC, Command("c", ["echo", "x" * 90_000]))).stdout == b"x" * 90_000 + b"\n"
    env = {f"V{n}": "y" * 32_768 for n in range(20)}
    ran = await collected(box, SPEC, Command("c", ["/bin/sh", "-c", "echo ${#V19}"], env))
    assert (ran.code, ran.text) == (0, "32768\n")
    too_much = await collected(box, SPEC, Command("c", ["/bin/true"], {f"V{n}": "y" * 32_768 for n in range(1000)}))
    assert (too_much.code, too_much.stderr) == (126, b"/bin/true: Argument list too long\n")
    with pytest.raises(OSError, match="env: over 2000 names"):
        await collected(box, SPEC, Command("c", ["/bin/true"], {f"V{n}": "" for n in range(2001)}))


async def test_no_value_becomes_an_option(box: Bubblewrap) -> None:
    with pytest.raises(OSError, match=r"env\.A: a value with NUL") as caught:
        await collected(box, SPEC, Command("c", ["/bin/ls", "/whole"], {"A": "x\0--ro-bind\0/\0/whole"}))
    assert caught.value.errno == errno.EINVAL


async def test_what_stays_behind_ends_with_its_command(box: Bubblewrap) -> None:
    code = "import os,time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0: print('born'); time.sleep(271828)\n"
    ran = await collected(box, SPEC, line(f'nohup setsid sleep 271828 & python3 -u -c "{code}"; sleep 0.2'))
    assert ran.text == "born\n" and pids("271828") == []


async def test_endless_output_waits_and_ends_when_it_is_closed(box: Bubblewrap) -> None:
    size = 0
    async with aclosing(box.run(SPEC, line("yes 161803 | tee /dev/stderr; echo 161803"))) as run:
        async for happening in run:
            assert isinstance(happening, Output) and len(happening.data) <= 1 << 16
            size += len(happening.data)
            if size > 5 << 20:
                break
    assert pids("161803") == []


async def test_a_full_disk_is_seen_though_nobody_reads(box: Bubblewrap) -> None:
    spec = Spec("s1", "alice", limits=Limits(max_disk_mb=4))
    async with aclosing(
        box.run(spec, line("i=0; while :; do head -c 1M /dev/zero > f$i; i=$((i+1)); echo; done"))
    ) as run:
        await anext(run)
        (cell,) = box._live["s1"]
        await cell.gone()
        last = [happening async for happening in run][-1]
    assert isinstance(last, Exit) and (last.code, last.cause) == (137, "disk")


async def test_cancelled_it_is_gone(box: Bubblewrap) -> None:
    with trio.CancelScope() as scope:
        async with aclosing(box.run(SPEC, line("echo; exec sleep 314159"))) as run:
            async for _ in run:
                with trio.fail_after(60):
                    while not pids("314159"):  # noqa: ASYNC110 - a program has no words while it becomes another one
                        await trio.sleep(0.01)
                scope.cancel()
    assert scope.cancelled_caught and pids("314159") == [] and box._live == {}


@pytest.mark.parametrize("how", ["remove", "end", "quiet"])
async def test_ended_from_outside(box: Bubblewrap, how: str) -> None:
    async with aclosing(box.run(SPEC, line("echo; exec sleep 314159"))) as run:
        await anext(run)
        await (box.remove("s1") if how == "remove" else box.end("s1") if how == "end" else box.quiet(SPEC))
        assert pids("314159") == []
        assert [(h.code, h.cause) for h in [h async for h in run] if isinstance(h, Exit)] == [(137, "gone")]
    if how == "quiet":
        assert (await collected(box, SPEC, line("exit 4"))).code == 4
        return
    with pytest.raises(OSError, match="session s1") as caught:
        await collected(box, SPEC, line(":"))
    assert caught.value.errno == errno.ENOENT
    assert list(await box.found()) == ([] if how == "remove" else ["s1"])


async def test_many_at_once_in_one_session(box: Bubblewrap) -> None:
    codes: list[int] = []

    async def one(number: int) -> None:
        codes.append((await collected(box, SPEC, line(f"echo {number} > f{number}; exit {number}"))).code)

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(one, number)
    assert sorted(codes) == list(range(12)) and len(list((box._top / "s1").iterdir())) == 12


async def test_sessions_outlive_the_runtime(box: Bubblewrap, tmp_path: Path) -> None:
    await collected(box, SPEC, line("echo kept > note"))
    async with opened(tmp_path) as later:
        assert list(await later.found()) == ["s1"]
        assert (await collected(later, SPEC, line("cat note"))).stdout == b"kept\n"
        used = await later.used("s1")
        assert used.disk_bytes == 4096
        assert bool(used.cpu_ms and used.peak_memory_bytes) == ("memory" in later.capabilities)
        with pytest.raises(OSError, match="session s1") as caught:
            await later.make(SPEC)
        assert caught.value.errno == errno.EEXIST
        async with await later.files("s1", Limits()).open(TreePath("note"), Mode.READ) as handle:
            assert await handle.read(100, 0) == b"kept\n"
        await later.remove("s1")
        await later.remove("s1")
        with pytest.raises(OSError, match="session s1"):
            await later.used("s1")
        assert not any((tmp_path / "containers").glob("s1*"))


async def test_the_view_and_sockets_are_bound(box: Bubblewrap, tmp_path: Path) -> None:
    view, at = tmp_path / "view", tmp_path / "s.sock"
    view.mkdir(mode=0o755)
    (view / "status").write_text("running\n")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(at))
        at.chmod(0o666)
        listening.listen()
        spec = Spec("s1", "alice", view=str(view), sockets={"/run/agentfs.sock": str(at)})
        code = "import socket; socket.socket(socket.AF_UNIX).connect('/run/agentfs.sock'); print('in')"
        ran = await collected(box, spec, line(f'cat /agent/status; python3 -c "{code}"'))
    assert ran.text == "running\nin\n"


def image(top: Path, *, has_etc: bool) -> Path:
    """A root file system with a shell and nothing else."""
    root = top / "images" / "tiny"
    shell = Path("/bin/sh").resolve()
    told = subprocess.run(["ldd", str(shell)], capture_output=True, text=True, check=True).stdout
    for word in [str(shell), *(word for word in told.split() if word.startswith("/"))]:
        (root / word[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(word, root / word[1:])
    (root / "usr/bin/sh").symlink_to(shell.name)
    (root / "bin").symlink_to("usr/bin")
    (root / "srv").mkdir()
    if has_etc:
        (root / "etc").mkdir()
        (root / "etc" / "passwd").write_text("")
    return root


@pytest.mark.parametrize("has_etc", [True, False])
async def test_a_directory_as_image(box: Bubblewrap, tmp_path: Path, has_etc: bool) -> None:
    root = image(tmp_path, has_etc=has_etc)
    assert list(await box.images()) == ["host", "tiny"]
    spec = Spec("s2", "alice", image="tiny", workdir="/srv/deep/er")
    await box.make(spec)
    ran = await collected(
        box, spec, line("echo /* /etc/*; pwd; read x < /etc/passwd; echo $x; echo 1 > /usr/x; echo 1 > y")
    )
    names, place, line_one, *_ = ran.text.split("\n")
    lib64 = "/lib64 " if (root / "lib64").exists() else ""
    lib = "/lib " if (root / "lib").exists() else ""
    etc = "/etc/passwd" if has_etc else "/etc/group /etc/hosts /etc/nsswitch.conf /etc/passwd"
    assert names == f"/bin /dev /etc {lib}{lib64}/proc /srv /tmp /usr {etc}" and place == "/srv/deep/er"
    assert line_one.startswith("root:x:0:0") and b"/usr/x" in ran.stderr and ran.code == 0
    assert (await collected(box, spec, Command("c", ["/bin/ls"]))).code == 127
    for odd in ("none", "../images/tiny", "/", ".."):
        with pytest.raises(OSError, match="image: there is no") as caught:
            await box.make(Spec("s3", "alice", image=odd))
        assert caught.value.errno == errno.ENOENT


async def test_it_says_why_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "find", lambda: "")
    box = provider(tmp_path)
    assert "there is no bwrap" in await box.health()
    with pytest.raises(OSError, match="there is no bwrap") as caught:
        await box.make(SPEC)
    assert caught.value.errno == errno.ENOTCONN
    await box.aclose()
    for program, words in (("/bin/false", "ended without a word"), ("/nonexistent", "")):
        other = Bubblewrap(tmp_path / "containers", OWNER, tmp_path / "images", bwrap=program)
        assert words in (told := await other.health()) and told
        await other.aclose()


async def test_groups_are_removed_also_those_of_a_dead_runtime(tmp_path: Path) -> None:
    note = tmp_path / "cgroups"
    name = cgroup.name_of(tmp_path)
    lost = cgroup.Groups(name, note)
    lost.make("lost", Limits())
    places = [Path(text) for text in note.read_text().split()] if note.exists() else []
    assert all((place / "lost").is_dir() for place in places)
    again = cgroup.Groups(name, note)
    assert not any((place / "lost").exists() for place in places)
    assert again.close() and not any(place.exists() for place in places) and not note.exists()


def test_what_a_dead_runtime_left_half_begun_is_ended(tmp_path: Path) -> None:
    """A bwrap whose starter dies in the middle of setting it up waits for ever, in the group that it was put in."""
    note, name = tmp_path / "cgroups", cgroup.name_of(tmp_path)
    group = cgroup.Groups(name, note).make("lost", Limits())
    enter = group.entry() if group else "exit 137"
    line = f"set -e\n{enter}\necho in\nexec sleep 600"
    with subprocess.Popen(["/bin/sh", "-c", line], stdout=subprocess.PIPE) as child:
        if group is not None:
            group.take(child.pid)
            assert child.stdout is not None and child.stdout.readline() == b"in\n"
        again = cgroup.Groups(name, note)
        assert child.wait(60) in (-9, 137)
    wait_for(again.close)


async def test_used_is_told_where_groups_are(tmp_path: Path) -> None:
    code = "x = bytearray(50 << 20)\nfor n in range(3_000_000): pass"
    case = Case(["python3", "-c", code])
    bare = await play(tmp_path, case, is_grouped=False)
    assert (bare.code, bare.cpu_ms, bare.peak_memory_bytes) == (0, None, None)
    async with opened(tmp_path) as box:
        known = box.capabilities
    ran = await play(tmp_path, case, is_grouped=True)
    assert (ran.cpu_ms is not None and ran.cpu_ms >= 10) == ("cpu" in known)
    assert (ran.peak_memory_bytes is not None and ran.peak_memory_bytes > 50 << 20) == ("memory" in known)
