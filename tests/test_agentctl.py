"""Every command of the command line, in every form, against a fake face on a real socket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from agentctl_kit import BINARY, STATUS, TRACE, Capture, data, fails, ok, served  # noqa: F401
from fake_http_face import BEAT, END, TOKEN, Face, sse

from agentctl.cli import run
from agentctl.client import Client


def process(*args: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "agentctl", *args], stdout=stdout, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )


def test_list_costs_one_request(face: Face, capsysbinary: Capture) -> None:
    assert data(capsysbinary, "list") == [{"name": "demo"}, {"name": "other"}]
    assert [one.path for one in face.seen] == ["agents"]
    assert ok(capsysbinary, "list", "-o", "jsonl") == b'{"name":"demo"}\n{"name":"other"}\n'
    assert ok(capsysbinary, "list", "-o", "table") == b"demo\nother\n"


def test_list_long_shows_state_and_survives_a_removal(face: Face, capsysbinary: Capture) -> None:
    face.fail["agents/demo/status"] = [("ENOENT", "file does not exist")]
    lines = ok(capsysbinary, "list", "--long", "-o", "table").decode().splitlines()
    assert lines[0].split() == ["ID", "STATE", "QUEUE_DEPTH", "TICK_COUNT", "LAST_TICK_AT", "NEXT_WAKE"]
    assert [line.split() for line in lines[1:]] == [["other", "dormant", "2", "1", "-", "-"]]
    assert [one["id"] for one in data(capsysbinary, "list", "-l")] == ["demo", "other"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], {}),
        (["--exec", "python3 'a b.py'"], {"program": {"kind": "exec", "argv": ["python3", "a b.py"]}}),
        (
            ["--prompt", "Be kind.", "--model", "m"],
            {"program": {"kind": "llm", "prompt": "Be kind.", "model": "m"}, "tick_timeout_ms": 600_000},
        ),
        (
            ["--prompt", "Be kind.", "-c", "program.max_steps=2", "-c", "tick_timeout_ms=5"],
            {"program": {"kind": "llm", "prompt": "Be kind.", "max_steps": 2}, "tick_timeout_ms": 5},
        ),
        (["--inline", "mod:Cls"], {"program": {"kind": "inline", "ref": "mod:Cls"}}),
        (["--program", '{"kind":"exec","argv":["x"]}'], {"program": {"kind": "exec", "argv": ["x"]}}),
        (
            ["-c", "retry.attempts=3", "-c", "tick_timeout_ms=5", "-c", "retry.name=x"],
            {"retry": {"attempts": 3, "name": "x"}, "tick_timeout_ms": 5},
        ),
    ],
)
def test_create(face: Face, capsysbinary: Capture, options: list[str], wanted: dict[str, object]) -> None:
    face.answers["agents"] = b'{"id":"new-one","status":"dormant"}\n'
    assert data(capsysbinary, "create", "new-one", *options) == {"id": "new-one", "status": "dormant"}
    assert json.loads(face.did("POST", "agents")[0].body) == {"name": "new-one", **wanted}


@pytest.mark.parametrize(
    "options",
    [
        ["--exec", "a", "--inline", "b:C"],
        ["--exec", "a", "--prompt", "b"],
        ["--model", "a"],
        ["--exec", "'"],
        ["--exec", ""],
        ["--program", "{"],
        ["-c", "x"],
        ["-c", "=1"],
    ],
)
def test_create_refuses_before_it_asks(face: Face, capsysbinary: Capture, options: list[str]) -> None:
    assert fails(capsysbinary, 6, "create", "new-one", *options).startswith("agentctl: EINVAL: ")
    assert face.seen == []


def test_delete_needs_force_for_a_living_agent(face: Face, capsysbinary: Capture) -> None:
    face.fail["agents/demo"] = [("ENOTEMPTY", "directory not empty")] * 3
    text = fails(capsysbinary, 5, "delete", "demo")
    assert text == "agentctl: ENOTEMPTY: agents/demo: directory not empty"
    assert ok(capsysbinary, "delete", "demo", "--force") == b""
    assert [one.body for one in face.did("POST", "agents/demo/ctl")] == [b"terminate\n"]
    assert len(face.did("DELETE", "agents/demo")) == 4


def test_status_and_runtime(face: Face, capsysbinary: Capture) -> None:
    assert data(capsysbinary, "status", "demo") == json.loads(STATUS)
    assert b"queue_depth   2\n" in ok(capsysbinary, "status", "demo", "-o", "table")
    assert ok(capsysbinary, "--output", "jsonl", "status", "demo") == STATUS
    assert data(capsysbinary, "runtime") == {"version": "0.1.0", "agents": 2}


def test_send_prints_the_receipt(face: Face, capsysbinary: Capture) -> None:
    face.answers["agents/demo/inbox"] = b'{"id":"m1","seq":4}\n'
    assert ok(capsysbinary, "send", "demo", '{"not": "an envelope"}', "--id", "m1") == b'{"id":"m1","seq":4}\n'
    assert json.loads(face.seen[0].body) == {"id": "m1", "payload": '{"not": "an envelope"}'}
    assert data(capsysbinary, "send", "demo", "[1, 2]", "--json") == {"id": "m1", "seq": 4}
    second = json.loads(face.seen[1].body)
    assert second["payload"] == [1, 2] and len(second["id"]) == 36
    assert "payload: not JSON" in fails(capsysbinary, 6, "send", "demo", "{", "--json")


@pytest.mark.parametrize(("form", "wanted"), [([], b"four\n"), (["-o", "json"], None)])
def test_send_waits_for_its_own_reply(face: Face, capsysbinary: Capture, form: list[str], wanted: bytes | None) -> None:
    face.answers["agents/demo/inbox"] = b'{"id":"m1"}\n'
    other = sse("e-1", '{"payload":"five","metadata":{"reply_to":"m0"}}') + sse("e-2", "not json")
    mine = sse("e-3", '{"payload":"four","metadata":{"reply_to":"m1"}}')
    face.streams["agents/demo/outbox"] = [[BEAT, other, mine, None]]
    out = ok(capsysbinary, "send", "demo", "2+2", "--id", "m1", "--wait", *form)
    assert out == wanted or json.loads(out)["data"]["reply"]["payload"] == "four"
    assert [one.path for one in face.seen] == ["agents/demo/outbox", "agents/demo/inbox"]  # watched, then sent
    face.more.set()


def test_send_wait_times_out_in_spite_of_heartbeats(face: Face, capsysbinary: Capture) -> None:
    face.answers["agents/demo/inbox"] = b'{"id":"m1"}\n'
    face.streams["agents/demo/outbox"] = [[BEAT, None]]
    text = fails(capsysbinary, 9, "send", "demo", "x", "--wait", "--timeout", "0.2")
    assert text == "agentctl: ETIMEDOUT: agents/demo/outbox: timed out: nothing came in time"


def test_send_wait_reports_a_refused_message(face: Face, capsysbinary: Capture) -> None:
    face.fail["agents/demo/inbox"] = [("EAGAIN", "not ready, try again: inbox is full")]
    face.streams["agents/demo/outbox"] = [[BEAT, None]]
    text = fails(capsysbinary, 7, "send", "demo", "x", "--wait")
    assert text == "agentctl: EAGAIN: agents/demo/inbox: not ready, try again: inbox is full"


def test_tick_and_ctl(face: Face, capsysbinary: Capture) -> None:
    assert ok(capsysbinary, "tick", "demo") == b""
    assert ok(capsysbinary, "ctl", "demo", "snapshot", "a name", "--output", "x") == b""
    assert face.did("POST", "agents/demo/ctl")[0].body == b"snapshot 'a name' --output x\n"
    assert ok(capsysbinary, "ctl", "demo") == b"tick\nwake\n"
    assert data(capsysbinary, "tick", "demo") is None
    assert "one line" in fails(capsysbinary, 6, "ctl", "demo", "tick", "a\nterminate")
    assert len(face.did("POST", "agents/demo/tick")) == 2


def test_logs_of_a_log_that_is_not_followed(face: Face, capsysbinary: Capture) -> None:
    assert ok(capsysbinary, "logs", "demo") == TRACE
    assert ok(capsysbinary, "logs", "demo", "-o", "jsonl", "-n", "1") == TRACE.splitlines(keepends=True)[0]
    assert [one["seq"] for one in data(capsysbinary, "logs", "demo")] == [1, 2]  # type: ignore[attr-defined]
    table = ok(capsysbinary, "logs", "demo", "-o", "table").splitlines()
    assert table[0] == b"2026-01-31T09:00:00Z tick_start seq=1 agent=demo"
    assert fails(capsysbinary, 2, "logs", "demo", "--log", "../x").startswith("agentctl: usage: ")


def test_watch_resumes_behind_the_last_record(
    face: Face, capsysbinary: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(
        "agentctl.command.Client",
        lambda url, token, trust, socket="": Client(url, token, trust=trust, sleep=pauses.append),
    )
    first = sse("e-1", '{"n":1}') + sse("e-2", '{"n":2}')
    # Dropped in the middle of a record: what was cut off comes again, once.
    face.streams["agents/demo/logs/trace"] = [[first, b"id: e-3\ndata: {"], [BEAT], [sse("e-3", '{"n":3}'), END]]
    assert run(["logs", "demo", "--follow", "--since", "0"]) == 0
    out, err = capsysbinary.readouterr()
    assert out == b'{"n":1}\n{"n":2}\n{"n":3}\n'
    assert err.count(b"agentctl: reconnecting: ") == 2 == err.count(b"\n")
    asked = [(one.query.get("since"), one.headers.get("Last-Event-ID")) for one in face.seen]
    assert asked == [(["0"], None), (None, "e-2"), (None, "e-2")]
    assert pauses == [0.25, 0.5]


def test_watch_does_not_retry_what_cannot_come_right(face: Face, capsysbinary: Capture) -> None:
    text = fails(capsysbinary, 6, "watch", "agents/demo/status")
    assert text == "agentctl: EOPNOTSUPP: agents/demo/status: this file cannot do that: not a stream"
    assert len(face.seen) == 1


def test_watch_forms(face: Face, capsysbinary: Capture) -> None:
    face.streams["s"] = [[sse("e-1", '{"n":1}'), sse("e-2", "plain \u2028 text"), END] for _ in range(4)]
    assert ok(capsysbinary, "watch", "s").decode() == '{"n":1}\nplain \u2028 text\n'
    first = ok(capsysbinary, "watch", "s", "-o", "json").splitlines()[0]
    assert json.loads(first) == {"data": {"cursor": "e-1", "record": {"n": 1}}, "error": None}
    assert json.loads(ok(capsysbinary, "watch", "s", "-o", "jsonl").splitlines()[1]) == "plain \u2028 text"
    assert ok(capsysbinary, "watch", "s", "-n", "1", "-o", "table") == b"n=1\n"


def test_a_follower_prints_each_record_at_once_and_ends_on_ctrl_c(face: Face) -> None:
    face.streams["agents/demo/outbox"] = [[sse("e-1", '{"n":1}'), None]]
    with process("watch", "agents/demo/outbox") as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline() == b'{"n":1}\n'  # while the stream stays open
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130
        assert child.stderr.read() == b""


def test_a_reader_that_goes_away_is_no_error(face: Face) -> None:
    face.files["agents/demo/logs/trace"] = TRACE * 20_000
    with process("logs", "demo") as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.wait(60) == 141
        assert child.stderr.read() == b""


def test_a_full_disk_is_told(face: Face) -> None:
    with Path("/dev/full").open("wb") as full, process("read", "agents/demo/status", stdout=full.fileno()) as child:
        assert child.stderr is not None
        assert child.wait(60) == 7
        assert child.stderr.read() == b"agentctl: ENOSPC: standard output: No space left on device\n"


def test_read_is_exact(face: Face, capsysbinary: Capture) -> None:
    assert ok(capsysbinary, "read", "/agents/demo/kv/bin") == BINARY
    assert data(capsysbinary, "read", "agents/demo/status") == json.loads(STATUS)
    assert data(capsysbinary, "read", "agents/demo/ctl") == "tick\nwake\n"
    assert list(data(capsysbinary, "read", "agents/demo/kv/bin")) == ["base64"]  # type: ignore[call-overload]
    assert fails(capsysbinary, 5, "read", "agents").startswith("agentctl: EISDIR: agents: ")


def test_read_and_write_stream_what_is_large(face: Face, tmp_path: Path) -> None:
    big = os.urandom(1 << 20) * 48
    source, copy = tmp_path / "in", tmp_path / "out"
    source.write_bytes(big)
    with source.open("rb") as stdin:
        subprocess.run([sys.executable, "-m", "agentctl", "write", "big"], stdin=stdin, check=True, timeout=60)
    assert face.seen[-1].headers["Content-Length"] == str(len(big))
    with copy.open("wb") as stdout:
        subprocess.run([sys.executable, "-m", "agentctl", "read", "big"], stdout=stdout, check=True, timeout=60)
    assert face.files["big"] == big == copy.read_bytes()


def test_write_takes_bytes_as_they_are(face: Face, capsysbinary: Capture) -> None:
    assert ok(capsysbinary, "write", "agents/demo/kv/a b%2F?#", "text", "--match", "3") == b""
    put = face.seen[-1]
    assert (put.path, put.body, put.headers["If-Match"]) == ("agents/demo/kv/a b%2F?#", b"text", '"3"')
    assert data(capsysbinary, "write", "k", "x", "--exclusive") == {"path": "k", "version": 7}
    assert face.seen[-1].headers["If-None-Match"] == "*"
    piped = [sys.executable, "-m", "agentctl", "write", "k", "-"]
    subprocess.run(piped, input=BINARY, check=True, timeout=60)
    assert (face.files["k"], face.seen[-1].headers["Transfer-Encoding"]) == (BINARY, "chunked")


def test_a_closed_input_empties_nothing(face: Face) -> None:
    face.files["k"] = b"kept"
    closed = ["sh", "-c", f"exec {sys.executable} -m agentctl write k <&-"]
    done = subprocess.run(closed, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (5, b"agentctl: EBADF: standard input: handle is closed\n")
    assert face.files["k"] == b"kept"


def test_arguments_are_utf8_in_every_locale(face: Face) -> None:
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for command in (["write", "ké", "é"], ["send", "demo", "é"]):
        subprocess.run([sys.executable, "-m", "agentctl", *command], env=plain, check=True, timeout=60)
    assert face.files["ké"] == "é".encode()
    assert json.loads(face.seen[-1].body)["payload"] == "é"


def test_write_append_prints_the_answer(face: Face, capsysbinary: Capture) -> None:
    face.answers["agents/demo/identity/sign"] = b"\x00\xffsigned"
    out = ok(capsysbinary, "write", "agents/demo/identity/sign", "x", "--append", "--key", "k1")
    assert out == b"\x00\xffsigned"
    assert face.seen[-1].headers["Idempotency-Key"] == "k1"
    assert ok(capsysbinary, "write", "agents/demo/kv/log", "x", "--append") == b""
    assert "usage" in fails(capsysbinary, 2, "write", "k", "x", "--append", "--match", "1")


def test_ls(face: Face, capsysbinary: Capture) -> None:
    assert ok(capsysbinary, "ls", "-o", "table") == b"agents\nruntime\n"
    face.page = 2
    entries = data(capsysbinary, "ls", "agents", "-R")
    assert [entry["name"] for entry in entries] == sorted(  # type: ignore[attr-defined]
        file.removeprefix("agents/") for file in face.files if file.startswith("agents/")
    )
    assert len(face.did("GET", "agents")) == 3
    long = ok(capsysbinary, "ls", "agents/demo/status", "-l", "-o", "table").decode().splitlines()
    assert long[1].split() == ["file", "0644", str(len(STATUS)), "2026-01-31T09:00:00Z", "3", "status"]
    assert "ENOENT: nowhere: file does not exist" in fails(capsysbinary, 3, "ls", "nowhere")


def test_token(face: Face, capsysbinary: Capture) -> None:
    assert ok(capsysbinary, "token") == TOKEN.encode() + b"\n"
    answer = data(capsysbinary, "token")
    assert isinstance(answer, dict) and (answer["url"], answer["token"]) == (face.url, TOKEN)
    assert face.seen == []
