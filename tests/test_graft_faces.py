"""A graft of real files through real tools on a mount, and over HTTP."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path as FsPath

import httpx
import pytest
import trio
from boxfiles import BOXED, ROOT_VARIABLE, files, tree
from fusemount import Mount, mounted
from httpfs import Opened

from agentfs.faces.http import app, serve
from agentfs.limits import Limits
from agentfs.types import OPERATOR

pytestmark = pytest.mark.usefixtures("binding")

HERE = FsPath(__file__).parent.parent
LIMITS = Limits(handles=16)


@pytest.fixture
def top(tmp_path: FsPath) -> FsPath:
    """The directory behind ``s/files``; the one behind ``s/other`` is beside it."""
    (tmp_path / "top").mkdir()
    (tmp_path / "other").mkdir()
    return tmp_path / "top"


# -- on a mount --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mount(top: FsPath, tmp_path: FsPath, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mount]:
    monkeypatch.setenv(ROOT_VARIABLE, str(top))
    with mounted(BOXED, tmp_path / "m") as mount:
        yield mount


TOOLS = """
cd $M/s/files
echo one > a; echo two >> a; cat a | paste -sd+
cp a b; mv b c; ls; cmp a c && rm c && ls | wc -l
mkdir -p d/e/f; echo deep > d/e/f/g; grep -r deep .; find . -type f | sort | paste -sd+
rmdir d 2>/dev/null; echo $?; mv d d2; cat d2/e/f/g; sed -i s/deep/deeper/ d2/e/f/g; cat d2/e/f/g; ls d2/e/f
printf 0123456789 | dd of=n bs=3 status=none; printf xx | dd of=n bs=1 seek=4 conv=notrunc status=none; cat n; echo
dd if=n bs=1 skip=8 count=2 status=none; echo; truncate -s 4 n; cat n; echo; truncate -s 6 n; wc -c < n
touch t; touch t; stat -c '%s %F' t; : > a; wc -c < a; echo x > .hidden; echo y > 'a@follow'; echo z > log.1
cat .hidden a@follow log.1 | paste -sd+; echo w > "$(printf 'new\\nline')"; cat new*; rm new* n t
mv d2/e/f/g $M/s/other/; cat $M/s/other/g; cp -r d2 $M/s/other/; find $M/s/other -mindepth 1 | wc -l
tar c -C $M/s files | tar t | sort | paste -sd+
exec 3<>u; echo still >&3; rm u; echo here >&3; exec 3>&-; test -e u || echo gone
ln -s a l 2>/dev/null || ln a h 2>/dev/null || mkfifo p 2>/dev/null || echo no links
chmod 600 .hidden && chown $(id -u):$(id -g) .hidden && echo shown; mv -n a .hidden; cat .hidden
rm -rf -- * .hidden; ls -A
"""
SAID = """
one+two
a
c
1
./d/e/f/g:deep
./a+./d/e/f/g
1
deep
deeper
g
0123xx6789
89
0123
6
0 regular empty file
0
x+y+z
w
deeper
4
files/+files/.hidden+files/a+files/a@follow+files/d2/+files/d2/e/+files/d2/e/f/+files/log.1
gone
no links
shown
x
"""


def test_ordinary_tools(mount: Mount, top: FsPath) -> None:
    assert mount.out(TOOLS) == SAID.lstrip("\n")
    assert list(top.iterdir()) == []
    assert "status" in mount.out("ls -l $M/s")


NOT_HERE = {"links_and_nodes_are_refused", "names_have_a_form"}  # here directories can be made, and any name
POSIX = f"""
import os, shutil, sys
from pathlib import Path
from conformance.posix import CHECKS
for check in CHECKS:
    if check.__name__ not in {NOT_HERE}:
        os.mkdir(sys.argv[1] + "/t")
        check(Path(sys.argv[1]) / "t")
        shutil.rmtree(sys.argv[1] + "/t")
"""


def test_posix_by_path(mount: Mount, top: FsPath) -> None:
    argv = [sys.executable, "-c", POSIX, str(mount.at / "s/files")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False, cwd=HERE)
    assert (done.returncode, done.stderr) == (0, ""), done


def test_what_a_sandbox_left_there(mount: Mount, top: FsPath, tmp_path: FsPath) -> None:
    """Links out, FIFOs, endless links, scripts: tools end, see nothing of outside, and can clean up."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("secret")
    (top / "lib/x").mkdir(parents=True)
    (top / "lib/x/f").write_text("needle\n")
    (top / "run").write_text("#!/bin/sh\necho ran\n")
    (top / "run").chmod(0o755)
    os.mkfifo(top / "fifo")
    links = {"out": "../secret", "abs": "/etc", "lib64": "lib", "self": ".", "me": ".", "no": "nothing"}
    for name, target in links.items():
        (top / name).symlink_to(target)
    run = mount.run
    assert run(str(mount.at / "s/files/run")).stdout == "ran\n"
    assert mount.out("cat $M/s/files/lib64/x/f") == "needle\n"
    found = mount.sh("cd $M/s/files; timeout 10 grep -r needle . 2>/dev/null | sort").stdout.split()
    assert "./lib/x/f:needle" in found
    assert len(found) == 1 + 1 + 2 * 1
    assert "secret" not in mount.sh("timeout 10 grep -ra secret $M/s/files 2>/dev/null").stdout
    assert mount.sh("timeout 5 cat $M/s/files/fifo; timeout 5 cat $M/s/files/out/key").returncode == 1
    assert mount.out("cd $M/s/files; timeout 5 ls -lR . | wc -l") != "0\n"
    assert mount.sh("rm -r $M/s/files/lib64").returncode == 1
    assert (top / "lib/x/f").exists(), "a walk that removes went through a link"
    mount.out("cd $M/s/files; rmdir lib64 self me; rm -r lib out abs no fifo run; ls -A")
    assert list(top.iterdir()) == []
    assert (tmp_path / "secret/key").exists()


def test_thousands_of_files_and_a_live_writer(mount: Mount, top: FsPath) -> None:
    for n in range(3_000):
        (top / f"{n:05}").touch()
    assert mount.out("ls $M/s/files | wc -l; find $M/s/files -name '*99' | wc -l") == "3000\n30\n"
    (top / "log").write_text("first\n")
    assert mount.out("cat $M/s/files/log") == "first\n"
    with (top / "log").open("a") as log:
        log.write("second\n")
    assert mount.out("tail -n 1 $M/s/files/log; wc -c < $M/s/files/log") == "second\n13\n"


def test_a_root_taken_away(mount: Mount, top: FsPath) -> None:
    mount.out("echo x > $M/s/files/f")
    (top / "f").unlink()
    top.rmdir()
    assert mount.out("ls $M/s") == "other\nstatus\n"
    assert mount.sh("ls $M/s/files").returncode == 2
    top.mkdir()
    assert mount.out("echo y > $M/s/files/f; cat $M/s/files/f") == "y\n"


# -- over HTTP ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def http(top: FsPath) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a face on a socket; every handle must be closed in the end."""
    opened = Opened(tree(files=files(top), other=files(top.parent / "other")), LIMITS)
    opened.held = []
    face = app(opened, {"op": OPERATOR}.get, LIMITS, hosts=[], ready=lambda: None, note=lambda *_: None)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[str]) -> None:
            await serve(face, "127.0.0.1:0", shutdown=stop.wait, task_status=task_status)

        address = await nursery.start(run)
        headers = {"Authorization": "Bearer op"}
        async with httpx.AsyncClient(base_url=f"http://{address}/s/files", headers=headers) as client:
            yield client
        with trio.fail_after(60):
            while opened.still_open:  # noqa: ASYNC110  # sockets fire no event
                await trio.sleep(0.01)
        stop.set()


async def test_files_over_http(http: httpx.AsyncClient, top: FsPath) -> None:
    assert (await http.put("/a", content=b"0123456789")).status_code == 201
    assert (await http.put("/a", content=b"01234")).status_code == 204
    assert (await http.post("/a", content=b"56789")).status_code == 204
    got = await http.get("/a")
    assert (got.content, got.headers["Content-Type"]) == (b"0123456789", "application/octet-stream")
    head = await http.head("/a")
    assert (head.content, head.headers["Content-Length"], head.headers["ETag"]) == (b"", "10", got.headers["ETag"])
    part = await http.get("/a", headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content, part.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    stale = await http.put("/a", content=b"x", headers={"If-Match": '"1"'})
    assert stale.status_code == 412
    assert (await http.put("/a", content=b"y", headers={"If-Match": got.headers["ETag"]})).status_code == 204
    assert (await http.request("MKCOL", "/d")).status_code == 201
    moved = await http.request("MOVE", "/a", headers={"Destination": "/s/files/d/b"})
    assert moved.status_code == 204
    across = await http.request("MOVE", "/d/b", headers={"Destination": "/s/other/b"})
    assert (across.status_code, across.json()["errno"]) == (409, "EXDEV")
    listed = (await http.get("/d")).json()["entries"]
    assert [[entry[key] for key in ("name", "kind", "size", "mode")] for entry in listed] == [["b", "data", 1, "0644"]]
    assert (await http.delete("/d")).json()["errno"] == "ENOTEMPTY"
    assert [(await http.delete(path)).status_code for path in ("/d/b", "/d", "/d")] == [204, 204, 404]
    assert (await http.get("")).json()["entries"] == []


async def test_names_are_percent_encoded(http: httpx.AsyncClient, top: FsPath) -> None:
    for raw, name in {
        "/%c3%bc": "ü", "/a%20b": "a b", "/x%40follow": "x@follow", "/.git": ".git", "/%25%3f%23": "%?#",
        "/n%0al": "n\nl",
    }.items():  # fmt: skip
        assert (await http.put(raw, content=name.encode())).status_code == 201
        assert (top / name).read_text() == name
        assert (await http.get(raw)).text == name
    assert (await http.put("/%ff", content=b"")).json()["errno"] == "EILSEQ"
    for raw in ("/%2e%2e/x", "/d%2fx", "/a/../../../etc/passwd"):
        url = str(http.base_url).rstrip("/") + raw
        answer = await http.put(httpx.URL(url), content=b"")
        assert answer.status_code in (400, 403, 404), raw
    names = [entry["name"] for entry in (await http.get("/?recursive=1")).json()["entries"]]
    assert names == sorted(["ü", "a b", "x@follow", ".git", "%?#", "n\nl"])


async def test_large_files_are_sent_in_pieces(http: httpx.AsyncClient, top: FsPath) -> None:
    data = os.urandom(9 << 20)
    (top / "big").write_bytes(data)
    got = await http.get("/big")
    assert hashlib.sha256(got.content).digest() == hashlib.sha256(data).digest()
    part = await http.get("/big", headers={"Range": f"bytes=1048575-{(5 << 20) - 1}"})
    assert (part.status_code, part.content == data[1048575 : 5 << 20]) == (206, True)
    small = await http.get("/big", headers={"Range": "bytes=-10"})
    assert (small.content, small.headers["Content-Range"]) == (data[-10:], f"bytes 9437174-9437183/{9 << 20}")
    assert (await http.head("/big")).headers["Content-Length"] == str(9 << 20)
    assert (await http.get("/big", headers={"Range": "bytes=9437184-"})).status_code == 416
    assert (await http.get("/big", headers={"If-None-Match": got.headers["ETag"]})).status_code == 304
    os.truncate(top / "big", 1 << 40)  # holes: as a whole no face could hold it
    head = await http.head("/big")
    assert head.headers["Content-Length"] == str(1 << 40)
    tail = await http.get("/big", headers={"Range": f"bytes={(1 << 40) - 4}-"})
    assert tail.content == bytes(4)
    async with await trio.open_tcp_stream(http.base_url.host, http.base_url.port or 0) as stream:
        await stream.send_all(b"GET /s/files/big HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer op\r\n\r\n")
        assert b" 200 " in await stream.receive_some(1 << 16)
    # the client has gone: the answer must end, and its handle be closed


async def test_a_file_cut_while_it_is_sent_ends_the_connection(http: httpx.AsyncClient, top: FsPath) -> None:
    (top / "big").write_bytes(bytes(64 << 20))
    with pytest.raises(httpx.RemoteProtocolError):
        async with http.stream("GET", "/big") as answer:
            os.truncate(top / "big", 10)
            async for _ in answer.aiter_raw():
                pass
    assert (await http.get("/big")).content == bytes(10)
