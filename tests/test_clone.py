"""Cloning into a workdir: real repositories from a real server, with what is odd, refused, secret and too large."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
from boxes import OWNER, opened
from gitserver import Hub, git, repository, serving
from test_agentctl_run import BOXES, about, agentctl

from agentfs.containers.documents import Limits, Repo
from agentfs.providers.containers import git as cloning
from agentfs.providers.containers.workdir import Workdir
from conformance.drivers import Runtime

SECRET = "ghp_s3cr3t/w0rd+"
BASIC = f"Basic {base64.b64encode(f'x-access-token:{SECRET}'.encode()).decode()}"


@pytest.fixture(scope="module", name="made")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    top = tmp_path_factory.mktemp("git")
    return top / "hub", repository(top)


@pytest.fixture(name="hub")
def served(made: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with serving(Hub(made[0])) as hub:
        hub.gate.set()
        yield hub


Cloned: TypeAlias = Callable[..., Awaitable[Path]]


@pytest.fixture(name="cloned", params=["enclosed", "bare"])
async def both_ways(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cloned]:
    """Clones in a sandbox, and as where there is none for it."""
    async with opened(tmp_path / "box") as box:

        async def clone(top: Path, repo: Repo, secret: str = "", limits: Limits | None = None) -> Path:
            workdir = Workdir(top / "boxes", "one", OWNER)
            workdir.make()
            run = box.enclose if request.param == "enclosed" else None
            await cloning.clone(workdir, OWNER, repo, secret, limits or Limits(), run)
            return workdir.path

        yield clone


@contextmanager
def refused(number: int, text: str) -> Iterator[pytest.ExceptionInfo[OSError]]:
    with pytest.raises(OSError, match=text) as caught:
        yield caught
    assert caught.value.errno == number, caught.value
    assert SECRET not in str(caught.value) and BASIC[6:] not in str(caught.value)


@pytest.mark.parametrize(
    ("ref", "text"),
    [
        ("", "last"),
        ("trunk", "last"),
        ("side", "side"),
        ("refs/heads/side", "side"),
        ("v1", "first"),
        ("FIRST", "first"),
    ],
)
async def test_what_is_asked_for_is_there(
    cloned: Cloned, tmp_path: Path, hub: Hub, made: tuple[Path, dict[str, str]], ref: str, text: str
) -> None:
    wanted = made[1]["first"] if ref == "FIRST" else ref
    where = await cloned(tmp_path, Repo(url=f"{hub.url}/code.git", git_ref=wanted))
    assert (where / "which").read_text() == f"{text}\n" and (where / "lib" / "deep" / "b").read_text() == "b\n"
    owners = {(each.lstat().st_uid, each.lstat().st_gid) for each in where.rglob("*")}
    assert owners == {(OWNER.uid, OWNER.gid)}


async def test_what_is_odd_does_nothing(cloned: Cloned, tmp_path: Path, hub: Hub) -> None:
    where = await cloned(tmp_path, Repo(url=f"{hub.url}/code.git"))
    assert list((where / "sub").iterdir()) == []  # a submodule is not fetched
    assert (where / "big.bin").read_text().startswith("version ")  # nor what a filter stands for
    assert (where / "out").readlink() == Path("/etc/passwd")
    assert not [hook for hook in (where / ".git").glob("hooks/*") if hook.stat().st_mode & 0o111 and hook.suffix == ""]
    assert len(hub.seen) == 3  # the refs, what is behind them, the pack


async def test_a_directory_of_it(cloned: Cloned, tmp_path: Path, hub: Hub) -> None:
    where = await cloned(tmp_path, Repo(url=f"{hub.url}/code.git", subdir="lib"))
    assert sorted(each.name for each in where.iterdir()) == [".git", "a", "deep"]
    for number, subdir in enumerate(("none", "which", "way", "out", "lib/none")):
        with refused(errno.ENOENT, f"repo.subdir: no directory '{subdir}'"):
            await cloned(tmp_path / str(number), Repo(url=f"{hub.url}/code.git", subdir=subdir))


@pytest.fixture(name="theirs")
def another() -> Iterator[Path]:
    """A directory of this machine that the sandboxes' user may read and rename."""
    with tempfile.TemporaryDirectory() as outside:
        theirs = Path(outside, "theirs")
        theirs.mkdir()
        (theirs / "kept").write_text("another's")
        for path in (Path(outside), theirs):
            os.chown(path, OWNER.uid, OWNER.gid)
            path.chmod(0o755)
        yield theirs


async def test_a_link_on_the_way_to_a_directory_leads_nowhere(
    cloned: Cloned, tmp_path: Path, made: tuple[Path, dict[str, str]], hub: Hub, theirs: Path
) -> None:
    """Git runs on this machine, as the owner of every workdir: no link in what it fetched may take it out."""
    work = tmp_path / "work"
    (work / "lib" / "deep").mkdir(parents=True)
    (work / "lib" / "deep" / "b").write_text("b")
    (work / "far").symlink_to(theirs.parent)
    (work / "near").symlink_to("lib")
    git(work, "init", "-q")
    git(work, "add", "-A")
    git(work, "commit", "-qm", "links")
    git(tmp_path, "clone", "-q", "--bare", str(work), str(made[0] / f"{tmp_path.name}.git"))
    for number, subdir in enumerate(("far/theirs", "near/deep", ".", ".git", ".git/hooks")):
        with refused(errno.ENOENT, "repo.subdir: no directory"):
            await cloned(tmp_path / str(number), Repo(url=f"{hub.url}/{tmp_path.name}.git", subdir=subdir))
        assert not list((tmp_path / str(number)).rglob("kept"))
    assert (theirs / "kept").read_text() == "another's"


async def test_it_sees_nothing_of_this_machine(tmp_path: Path, hub: Hub, theirs: Path) -> None:
    """Whatever git can be brought to do: what it writes to is its workdir, and no file here is there for it."""
    look = f"ls {theirs} {tmp_path} /root; for f in /usr/x /etc/x /x; do true > $f; done"
    look += "; kill -9 1; true > /tmp/x && true > in"
    async with opened(tmp_path / "box") as box:
        workdir = Workdir(tmp_path / "boxes", "one", OWNER)
        workdir.make()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cloning, "_SCRIPT", f"{look}; exit 1")
            with refused(errno.EREMOTEIO, "repo: ") as caught:
                await cloning.clone(workdir, OWNER, Repo(url=f"{hub.url}/code.git"), "", Limits(), box.enclose)
    said = str(caught.value)
    assert said.count("No such file") >= 3 and said.count("Read-only file system") == 3, said
    assert [each.name for each in workdir.path.iterdir()] == ["in"]


async def test_what_is_not_there(cloned: Cloned, tmp_path: Path, hub: Hub) -> None:
    for number, (path, ref, text) in enumerate(
        (("code.git", "none", "find remote ref none"), ("code.git", "1" * 40, "not our ref|upload-pack"),
         ("none.git", "", "not found"), ("moved/none.git", "", "not found"))
    ):  # fmt: skip
        with refused(errno.EREMOTEIO, text):
            await cloned(tmp_path / str(number), Repo(url=f"{hub.url}/{path}", git_ref=ref))
    with refused(errno.EREMOTEIO, "onnect"):
        await cloned(tmp_path / "away", Repo(url="http://127.0.0.1:1/code.git"))


@pytest.mark.parametrize("secret", [SECRET, f"someone:{SECRET}"])
async def test_a_secret_opens_it_and_is_nowhere(cloned: Cloned, tmp_path: Path, hub: Hub, secret: str) -> None:
    pair = secret if ":" in secret else f"x-access-token:{secret}"
    hub.basic = f"Basic {base64.b64encode(pair.encode()).decode()}"
    where = await cloned(tmp_path, Repo(url=f"{hub.url}/code.git"), secret)
    assert (where / "which").exists() and set(hub.seen) == {hub.basic}
    for file in (each for each in where.rglob("*") if each.is_file() and not each.is_symlink()):
        assert not re.search(re.escape(SECRET).encode() + b"|" + hub.basic[6:].encode(), file.read_bytes()), file


async def test_a_wrong_secret(cloned: Cloned, tmp_path: Path, hub: Hub) -> None:
    hub.basic, hub.refusal = "Basic another", "I know: {}"
    with refused(errno.EREMOTEIO, "403"):
        await cloned(tmp_path / "wrong", Repo(url=f"{hub.url}/code.git"), SECRET)
    with refused(errno.EREMOTEIO, "could not read Username|Authentication"):
        await cloned(tmp_path / "none", Repo(url=f"{hub.url}/code.git"))
    hub.seen.clear()
    with refused(errno.EREMOTEIO, "301|redirect"):  # who it is sent on to never sees it
        await cloned(tmp_path / "moved", Repo(url=f"{hub.url}/moved/code.git"), SECRET)
    assert len(hub.seen) == 1


async def test_one_that_is_too_large(
    cloned: Cloned, tmp_path: Path, made: tuple[Path, dict[str, str]], hub: Hub
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "large").write_bytes(os.urandom(5 << 20))
    for number in range(300):
        (work / f"f{number}").write_text("x")
    git(work, "init", "-q")
    git(work, "add", "-A")
    git(work, "commit", "-qm", "large")
    git(tmp_path, "clone", "-q", "--bare", str(work), str(made[0] / f"{tmp_path.name}.git"))
    whole = Limits(max_disk_mb=16)
    assert (
        await cloned(tmp_path / "fits", Repo(url=f"{hub.url}/{tmp_path.name}.git"), limits=whole) / "large"
    ).exists()
    for number, limits in enumerate((Limits(max_disk_mb=1), Limits(max_disk_mb=7), Limits(max_files=100))):
        with refused(errno.EFBIG, "repo: over limits.max_"):
            await cloned(tmp_path / str(number), Repo(url=f"{hub.url}/{tmp_path.name}.git"), limits=limits)


def test_a_session_clones_by_reference(tmp_path: Path, hub: Hub) -> None:
    hub.basic = BASIC
    runtime = Runtime("sqlite", tmp_path, fuse=False, settings=[f"sandboxes={BOXES}"])
    runtime.start()
    try:
        agentctl(runtime, "create", "demo", "--exec", "true")
        agentctl(runtime, "write", "agents/demo/secrets/hub", SECRET)
        asked = {"repo": {"url": f"{hub.url}/code.git", "auth": "secret:hub"}, "commands": ["cat which; ls"]}
        new = ("write", "--append", "agents/demo/containers/new", json.dumps(asked))
        assert b"the policy forbids the network" in agentctl(runtime, *new, code=4)[1]
        agentctl(runtime, "write", "agents/demo/containers/policy", '{"allow_network":true}')
        hub.gate.clear()
        session = json.loads(agentctl(runtime, *new)[0])["session_id"]
        assert hub.asked.wait(60) and about(runtime, session)["status"] == "cloning"
        lines = [_line(file) for file in Path("/proc").glob("[0-9]*/cmdline")]
        assert any(hub.url.encode() in line for line in lines)
        assert not [line for line in lines if SECRET.encode() in line or BASIC[6:].encode() in line]
        files = f"agents/demo/containers/sessions/{session}/files"
        trap = '[filter "lfs"]\n smudge = touch trapped; cat\n'  # git would run it, outside of any sandbox
        for words in (("write", f"{files}/.git/config", trap), ("ls", files), ("read", f"{files}/.git/HEAD")):
            assert b"EBUSY" in agentctl(runtime, *words, code=5)[1]
        hub.gate.set()
        out, _ = agentctl(runtime, "containers", "logs", "demo", session)
        assert b"trapped" not in out
        assert out.startswith(b"last\n") and about(runtime, session)["status"] == "complete"
        top = f"agents/demo/containers/sessions/{session}"
        assert agentctl(runtime, "read", f"{top}/files/out", code=4)[1].startswith(b"agentctl: EACCES")
        hub.basic, hub.refusal = "Basic another", "I know: {}"
        session = json.loads(agentctl(runtime, *new)[0])["session_id"]
        agentctl(runtime, "containers", "logs", "demo", session)
        assert about(runtime, session)["errno"] == "EREMOTEIO" and "403" in str(about(runtime, session)["error"])
    finally:
        assert runtime.stop() == 0
    kept = [file for file in tmp_path.rglob("*") if file.is_file() and not file.is_symlink()]
    assert not [f for f in kept if SECRET.encode() in f.read_bytes() or BASIC[6:].encode() in f.read_bytes()]


def _line(file: Path) -> bytes:
    """The words of a process, if it is there still."""
    try:
        return file.read_bytes()
    except OSError:
        return b""
