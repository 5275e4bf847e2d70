"""`agentctl run` and `agentctl containers` as a person or a script has them, on a real runtime with real sandboxes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from agentctl_kit import served  # noqa: F401
from fake_http_face import END, Face, sse

from agentctl.cli import run
from conformance.drivers import Runtime

BOXES = json.dumps({"local": {"kind": "bubblewrap"}})
SESSIONS = "agents/demo/containers/sessions"


@pytest.fixture(scope="module", name="runtime")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    runtime = Runtime("memory", tmp_path_factory.mktemp("run"), fuse=False, settings=[f"sandboxes={BOXES}"])
    runtime.start()
    try:
        agentctl(runtime, "create", "demo", "--exec", "true")
        yield runtime
    finally:
        assert runtime.stop() == 0


def argv(runtime: Runtime, *words: str) -> list[str]:
    return [sys.executable, "-m", "agentctl", "--url", runtime.url, "--token", runtime.token, *words]


def agentctl(runtime: Runtime, *words: str, given: bytes = b"", code: int = 0) -> tuple[bytes, bytes]:
    """What a command writes to standard output and to standard error; run in this process, to be quick."""
    out, err = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO())
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        ended = run(argv(runtime, *words)[3:])
        out.flush()
        err.flush()
    found = out.buffer, err.buffer
    assert ended == code, [each.getvalue() for each in found if isinstance(each, io.BytesIO)]
    first, second = (each.getvalue() for each in found if isinstance(each, io.BytesIO))
    return first, second


def shell(runtime: Runtime, script: str, *more: str, given: bytes = b"", code: int = 0) -> tuple[bytes, bytes]:
    return agentctl(runtime, "run", "demo", *more, "--", "sh", "-c", script, given=given, code=code)


def about(runtime: Runtime, session: str = "") -> dict[str, object]:
    """A session's row in the list; by default the one that was made last."""
    rows = json.loads(agentctl(runtime, "containers", "ls", "demo", "-o", "json")[0])["data"]
    found: dict[str, object] = max(rows, key=lambda row: (row["session_id"] == session, row["at"]))
    return found


@pytest.fixture(scope="module", name="kept")
def interactive(runtime: Runtime) -> str:
    """A session that stays."""
    made = agentctl(runtime, "write", "--append", "agents/demo/containers/new", '{"kind":"interactive"}')[0]
    session = str(json.loads(made)["session_id"])
    while about(runtime, session)["status"] == "provisioning":
        pass
    return session


def test_streams_come_apart_and_the_code_is_the_programs(runtime: Runtime) -> None:
    assert shell(runtime, "echo out; echo err >&2; exit 7", code=7) == (b"out\n", b"err\n")
    assert shell(runtime, "kill -TERM $$", code=128 + signal.SIGTERM) == (b"", b"")
    assert agentctl(runtime, "run", "demo", "--", "no-such-program", code=127)[0] == b""
    assert agentctl(runtime, "run", "demo", "--", "printf", "%s|", "a b", "$HOME", "-x")[0] == b"a b|$HOME|-x|"


def test_bytes_are_exact(runtime: Runtime) -> None:
    every = bytes(range(256))
    script = 'i=0; while [ $i -lt 256 ]; do printf "\\\\$(printf %o $i)"; i=$((i+1)); done'
    assert shell(runtime, f"{script}; ( {script} ) >&2") == (every, every)
    out, _ = shell(runtime, "seq 400000 | tee numbers; sha256sum numbers >&2; printf '\\303'")
    whole = b"".join(b"%d\n" % n for n in range(1, 400001)) + b"\xc3"
    assert hashlib.sha256(out).digest() == hashlib.sha256(whole).digest()


def test_what_the_program_gets(runtime: Runtime) -> None:
    out, _ = shell(runtime, "cat; echo $A $B", "-i", "-e", "A=1=2", "--env", "B=two", given="ü\n".encode())
    assert out.decode() == "ü\n1=2 two\n"
    assert shell(runtime, "cat")[0] == b""
    assert b"EILSEQ: standard input" in shell(runtime, "cat", "-i", given=b"\xff", code=6)[1]
    _, err = shell(runtime, "head -c 3000000 /dev/zero > big", "--limit", "max_disk_mb=1", code=153)
    assert err.splitlines()[-1] == b"agentctl: ENOSPC: it ran into its limit of disk"
    _, err = shell(runtime, "sleep 60", "--limit", "max_time_secs=1", code=9)
    assert err == b"agentctl: ETIMEDOUT: its time is over\n"


def test_what_is_refused_before_anything_runs(runtime: Runtime) -> None:
    before = about(runtime)
    for more, code, text in (
        (("--limit", "max_memory_mb=much"), 6, "max_memory_mb"), (("--env", "A"), 6, "--env A: want NAME=VALUE"),
        (("--limit", "max_memory_mb=999999"), 4, "the policy allows 4096"), (("--network",), 4, "allow_network"),
        (("--provider", "none"), 3, "there is no 'none'"), (("--limit", "max_color=1"), 6, "max_color"),
    ):  # fmt: skip
        out, err = shell(runtime, "true", *more, code=code)
        assert out == b"" and text in err.decode() and err.startswith(b"agentctl: ")
    assert b"ENOENT: file does not exist: image" in shell(runtime, "true", "--image", "none", code=3)[1]
    agentctl(runtime, "run", "nobody", "--", "true", code=3)
    assert about(runtime)["status"] == "failed" and before["status"] != "failed"


def test_json_is_one_document(runtime: Runtime) -> None:
    out, err = shell(runtime, "echo out; echo err >&2; exit 3", "-o", "json", code=3)
    found = json.loads(out)["data"]
    assert (found["exit_code"], found["stdout"], found["stderr"], err) == (3, "out\n", "err\n", b"")
    out, err = shell(runtime, "echo out; sleep 60", "-o", "json", "--limit", "max_time_secs=1", code=9)
    assert json.loads(out)["data"]["status"] == "expired" and json.loads(err)["error"]["errno"] == "ETIMEDOUT"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, None])
def test_signals_and_a_closed_pipe_stop_the_session(runtime: Runtime, sent: signal.Signals | None) -> None:
    words = argv(runtime, "run", "demo", "--", "sh", "-c", "while echo on; do sleep 0.05; done")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline() == b"on\n"
        if sent is None:
            child.stdout.close()
        else:
            child.send_signal(sent)
        assert child.wait(60) == (128 + sent if sent else 141)
        assert child.stderr.read() == b""
    row = about(runtime)
    agentctl(runtime, "containers", "logs", "demo", str(row["session_id"]))  # to its end
    assert about(runtime, str(row["session_id"]))["error"] == "stopped"


def test_a_signal_that_is_ignored_stops_nothing(runtime: Runtime) -> None:
    words = argv(runtime, "run", "demo", "--", "sh", "-c", "echo on; sleep 1; echo off")
    with subprocess.Popen(["nohup", *words], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as child:
        assert child.stdout is not None and child.stdout.readline() == b"on\n"
        child.send_signal(signal.SIGHUP)
        assert child.stdout.read() == b"off\n" and child.wait(60) == 0


def test_whoever_stops_it_the_command_fails(runtime: Runtime) -> None:
    words = argv(runtime, "run", "demo", "--", "sh", "-c", "echo on; exec sleep 60")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline() == b"on\n"
        agentctl(runtime, "containers", "stop", "demo", str(about(runtime)["session_id"]))
        assert child.wait(60) == 1 and child.stderr.read() == b"agentctl: ECANCELED: stopped\n"


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_connection_that_broke_is_resumed_and_lost_output_is_told(
    face: Face, capsysbinary: pytest.CaptureFixture[bytes], *, is_lost: bool
) -> None:
    top = f"{SESSIONS}/s1"
    made = {"session_id": "s1", "output_path": "containers/sessions/s1/output"}
    face.answers["agents/demo/containers/new"] = json.dumps(
        made | {"result_path": "containers/sessions/s1/result"}
    ).encode()
    face.files[f"{top}/result"] = b'{"exit_code":0,"errno":null,"error":null}'
    one = sse("e-1", '{"seq":1,"stream":"stdout","data":"one "}')
    gap = sse("e-2", '{"type":"gap","from":"e-1","to":"e-3","reason":"lagged"}')
    two = sse("e-2", '{"seq":2,"stream":"stderr","base64":"/w=="}')
    rest = [
        sse("e-3", '{"seq":3,"stream":"stdout","data":"two"}'),
        sse("e-4", '{"seq":4,"stream":"stdout","done":true}'),
    ]
    face.streams[f"{top}/output"] = [[one, b"id: e-2\ndata: {"], [gap if is_lost else two, *rest, END]]
    assert run(["run", "demo", "--", "x"]) == (1 if is_lost else 0)
    out, err = capsysbinary.readouterr()
    said = err.splitlines(keepends=True)
    assert out == b"one two" and said[0].startswith(b"agentctl: reconnecting: ")
    lost = b"agentctl: some of the output was lost: it came faster than it was taken\n"
    assert said[1:] == [lost if is_lost else b"\xff"]
    assert [seen.headers.get("Last-Event-ID") for seen in face.did("GET", f"{top}/output")] == [None, "e-1"]


def test_a_session_that_may_go_on_is_told(face: Face, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    face.answers["agents/demo/containers/new"] = b'{"session_id":"s1","output_path":"o","result_path":"r"}'
    assert run(["run", "demo", "--", "x"]) == 6
    assert capsysbinary.readouterr().err.splitlines()[0] == f"agentctl: it may go on: {SESSIONS}/s1".encode()
    assert not face.did("POST", f"{SESSIONS}/s1/ctl")


def test_a_session_that_stays(runtime: Runtime, kept: str) -> None:
    boxes = ("containers", "exec", "demo", kept)
    assert agentctl(runtime, *boxes, "-i", "--", "sh", "-c", "cat > f; exit 5", given=b"text\n", code=5) == (b"", b"")
    assert agentctl(runtime, *boxes, "--", "cat", "f")[0] == b"text\n"
    found = json.loads(agentctl(runtime, *boxes, "-o", "jsonl", "--", "cat", "none", code=1)[0])
    assert found["exit_code"] == 1 and "none" in found["stderr"]
    with subprocess.Popen(
        argv(runtime, *boxes, "--", "sh", "-c", "echo on; exec sleep 60"), stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == b"on\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130
    ran = f"{SESSIONS}/{kept}/exec"
    names = agentctl(runtime, "ls", ran, "-o", "jsonl")[0].splitlines()
    execs = [name for line in names if (name := json.loads(line)["name"]) != "new"]
    logs = [agentctl(runtime, "containers", "logs", "demo", kept, name)[0] for name in execs]
    assert sorted(log for log in logs if log) == [b"on\n", b"text\n"]
    states = [json.loads(agentctl(runtime, "read", f"{ran}/{name}/status")[0])["status"] for name in execs]
    assert sorted(states) == ["cancelled", "complete", "complete", "complete"]


def test_files_go_in_and_out(runtime: Runtime, kept: str, tmp_path: Path) -> None:
    big, tree = tmp_path / "big", tmp_path / "tree"
    big.write_bytes(os.urandom(1 << 20) * 21)
    (tree / "sub" / "deep").mkdir(parents=True)
    (tree / "empty").touch()
    (tree / "sub" / "odd name %2e.txt").write_bytes(bytes(range(256)))
    (tree / "sub" / "link").symlink_to("odd name %2e.txt")
    cp = ("containers", "cp", "demo")
    assert agentctl(runtime, *cp, str(big), f"{kept}:") == (b"", b"")
    agentctl(runtime, *cp, str(big), f"{kept}:other", "-r")
    agentctl(runtime, *cp, f"{kept}:other", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == big.read_bytes()
    agentctl(runtime, *cp, str(tree), f"{kept}:made", "-r")
    agentctl(runtime, *cp, str(tree), f"{kept}:made", "--recursive")  # now below it
    agentctl(runtime, *cp, f"{kept}:/made/tree", str(tmp_path / "out"), "-r")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
    assert found == {"empty", "sub", "sub/deep", "sub/link", "sub/odd name %2e.txt"}
    assert (tmp_path / "out" / "sub" / "link").read_bytes() == bytes(range(256))
    for words, code, text in (
        ((f"{kept}:made", str(tmp_path / "x")), 5, "copy it with -r"), ((str(tree), f"{kept}:x"), 5, "copy it with -r"),
        ((f"{kept}:none", str(tmp_path / "x")), 3, "files/none"), ((str(tmp_path / "none"), f"{kept}:x"), 3, "none"),
        ((f"{kept}:a", f"{kept}:b"), 6, "one of the two"), (("a", "b"), 6, "one of the two"),
        ((f"{kept}:../x", str(tmp_path / "x")), 6, "EINVAL"), (("none:f", str(tmp_path / "x")), 3, "no such session"),
    ):  # fmt: skip
        assert text in agentctl(runtime, *cp, *words, code=code)[1].decode(), words
    assert not (tmp_path / "x").exists()


def test_what_hostile_code_leaves_is_left_there(runtime: Runtime, tmp_path: Path) -> None:
    script = "mkdir d; echo x > d/f; ln -s /etc/passwd d/out; ln -s .. d/up; ln -s f d/in; mkfifo d/p; ln -s . d/loop"
    shell(runtime, script)
    session = str(about(runtime)["session_id"])
    _, err = agentctl(runtime, "containers", "cp", "demo", f"{session}:d", str(tmp_path), "-r", code=4)
    assert sorted(line.rpartition(b"/")[2] for line in err.splitlines()[:-1]) == [b"loop", b"out", b"p", b"up"]
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["f", "in"]
    (tmp_path / "d" / "none").symlink_to("nowhere")
    stays = f"{session}:d2"
    _, err = agentctl(runtime, "containers", "cp", "demo", str(tmp_path / "d"), stays, "-r", code=4)
    assert b"d/none" in err.splitlines()[0] and b"1 left out" in err.splitlines()[1]


def test_the_list_and_the_end(runtime: Runtime) -> None:
    shell(runtime, "echo kept")
    session = str(about(runtime)["session_id"])
    table = agentctl(runtime, "containers", "ls", "demo", "-o", "table")[0].decode().splitlines()
    assert table[0].split() == ["SESSION_ID", "STATUS", "PROVIDER_ID", "EXIT_CODE", "COST_USD", "AT", "ERROR"]
    assert any(line.split()[:4] == [session, "complete", "local", "0"] for line in table)
    assert agentctl(runtime, "containers", "logs", "demo", session) == (b"kept\n", b"")
    agentctl(runtime, "containers", "stop", "demo", session)
    _, err = agentctl(runtime, "containers", "cp", "demo", f"{session}:", "/tmp", "-r", code=3)
    assert b"its files are gone" in err
    for words in (("logs", "demo", "none"), ("stop", "demo", "none"), ("exec", "demo", "none", "--", "true")):
        _, err = agentctl(runtime, "containers", *words, code=3)
        assert err == b"agentctl: ENOENT: agents/demo/containers/sessions/none: file does not exist: no such session\n"
    assert b"ESTALE" in agentctl(runtime, "containers", "exec", "demo", session, "--", "true", code=5)[1]
    assert agentctl(runtime, "containers", "ls", "nobody", code=3)[1].startswith(b"agentctl: ENOENT: agents/nobody")
    assert b"want one of ls logs exec cp stop" in agentctl(runtime, "containers", code=6)[1]


def test_the_runtime_is_reached_by_a_socket_from_inside_and_outside(runtime: Runtime) -> None:
    curl = 'curl -s --unix-socket $AGENTFS_SOCKET -H "Authorization: Bearer $AGENTFS_TOKEN" $AGENTFS_URL'
    out, _ = shell(runtime, f"{curl}/status; {curl}/kv/k -X PUT -d v; {curl}/agents; {curl}/kv/k")
    assert json.loads(out.partition(b"\n}")[0] + b"}")["id"] == "demo" and b"ENOENT" in out and out.endswith(b"v")
    script = """
import http.client, os, socket
class Near(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX); self.sock.connect(os.environ["AGENTFS_SOCKET"])
near = Near("localhost")
near.request("GET", "/kv/k", headers={"Authorization": "Bearer " + os.environ["AGENTFS_TOKEN"]})
print(near.getresponse().read().decode())
"""
    assert agentctl(runtime, "run", "demo", "--", "python3", "-c", script)[0] == b"v\n"
    near = {
        "AGENTFS_SOCKET": str(runtime.state.socket),
        "AGENTFS_URL": "http://elsewhere",
        "AGENTFS_TOKEN": runtime.token,
    }
    words = [sys.executable, "-m", "agentctl", "run", "demo", "--", "sh", "-c", "echo near; exit 3"]
    done = subprocess.run(words, env=os.environ | near, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"near\n", b"")
    gone = subprocess.run(
        [*words[:3], "list"],
        env=os.environ | near | {"AGENTFS_SOCKET": "/none"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert gone.returncode == 8 and gone.stderr.startswith(b"agentctl: ENOTCONN")
