"""What goes wrong around the command line: where it looks, what it refuses, how it fails; and its own wire pieces."""

from __future__ import annotations

import errno
import json
import re
import socket
from pathlib import Path

import pytest
from agentctl_kit import STATUS, Capture, data, fails, ok, served  # noqa: F401
from fake_http_face import TOKEN, Face

from agentctl import sse as parser
from agentctl.cli import COMMANDS
from agentctl.client import Client
from agentctl.discover import Flags, discover
from agentctl.output import EXIT, Output, exit_code, printable
from agentctl.wire import target
from agentfs.client import Trust
from agentfs.errors import ROWS, Row, error


def test_flags_come_before_environment_before_state(
    face: Face, capsysbinary: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AGENTFS_TOKEN", "wrong")
    assert fails(capsysbinary, 4, "list") == "agentctl: EACCES: permission denied: want a bearer token"
    assert ok(capsysbinary, "--token", TOKEN, "list", "-o", "table") == b"demo\nother\n"
    assert ok(capsysbinary, "list", "--state", str(tmp_path / "agentfs"), "-o", "table") == b"demo\nother\n"
    monkeypatch.setenv("AGENTFS_URL", "http://127.0.0.1:1")
    fails(capsysbinary, 8, "list")
    assert ok(capsysbinary, "list", "--url", face.url + "/", "--token", TOKEN, "-o", "table") == b"demo\nother\n"


@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_a_token_file_works_whatever_its_mode(face: Face, capsysbinary: Capture, tmp_path: Path, mode: int) -> None:
    (tmp_path / "agentfs" / "operator.token").chmod(mode)
    ok(capsysbinary, "runtime")


def test_what_is_missing_is_named_with_what_to_do(face: Face, capsysbinary: Capture, tmp_path: Path) -> None:
    state = tmp_path / "agentfs"
    (state / "operator.token").write_text("\n")
    assert "operator.token: permission denied: the token file is empty; give --token" in fails(capsysbinary, 4, "list")
    (state / "operator.token").unlink()
    assert "the token file does not exist; give --token" in fails(capsysbinary, 4, "list")
    (state / "runtime.json").write_text("{")
    assert "runtime.json: invalid argument: want a JSON object" in fails(capsysbinary, 6, "list")
    (state / "runtime.json").unlink()
    assert "start one, or give --url or AGENTFS_URL" in fails(capsysbinary, 8, "list")


def test_the_operators_token_leaves_the_machine_only_when_told(face: Face, capsysbinary: Capture) -> None:
    text = fails(capsysbinary, 4, "list", "--url", "http://agents.example:80")
    assert "stays here" in text and TOKEN not in text


def test_whom_tls_believes_and_what_it_shows(tmp_path: Path) -> None:
    """Flags, then the environment, then what the authority of the state directory's own runtime has."""
    home, url = tmp_path / "ca", "https://127.0.0.1:1"
    home.mkdir()
    for file in (home / "ca.pem", home / "operator.pem", tmp_path / "operator.token"):
        file.write_text("x")
    (tmp_path / "runtime.json").write_text(f'{{"url": "{url}"}}')
    state, other = str(tmp_path), {"url": "https://127.0.0.1:2", "token": "t"}
    named = {"AGENTFS_CA": "/e/ca", "AGENTFS_CERT": "/e/cert", "AGENTFS_KEY": "/e/key"}
    said = Trust(*(Path(file) for file in named.values()))
    own = Trust(home / "ca.pem", home / "operator.pem", home / "operator.key")
    assert discover(Flags(state=state), {}).trust == own
    assert discover(Flags(state=state, token="t"), {}).trust == Trust(home / "ca.pem"), "it could be anybody's"
    assert discover(Flags(state=state, **other), {}).trust == Trust()
    assert discover(Flags(state=state), named).trust == said
    assert discover(Flags(state=state, key="/f/key"), named).trust == Trust(said.ca, said.cert, Path("/f/key"))
    shown = discover(Flags(state=state, ca="~/ca", cert="/f/cert"), named)
    assert shown.trust == Trust(Path.home() / "ca", Path("/f/cert")), "the key named elsewhere is another's"
    assert shown.token == ""


def test_an_absent_runtime_is_one_line(face: Face, capsysbinary: Capture) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        text = fails(capsysbinary, 8, "list", "--url", url)
    assert text == f"agentctl: ENOTCONN: agents: cannot reach {url}: Connection refused"


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "127.0.0.1:80", "http://a:b@127.0.0.1", "http://[::1", "http://x:y"]
)
def test_a_bad_url(face: Face, capsysbinary: Capture, url: str) -> None:
    assert "want http://host:port" in fails(capsysbinary, 6, "list", "--url", url, "--token", "x")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_errno_has_its_line_and_code(face: Face, capsysbinary: Capture, row: Row) -> None:
    name, text = "EOPNOTSUPP" if row.errno == errno.EOPNOTSUPP else row.name, row.text
    face.fail["x"] = [(name, f"{text}: because"), (row.name, text)]
    codes = {name: code for code, (_, names) in EXIT.items() for name in names}
    line = fails(capsysbinary, codes.get(name, 1), "read", "x")
    assert line == f"agentctl: {name}: x: {text}: because"
    with Client(face.url, TOKEN) as client, pytest.raises(OSError, match=re.escape(text)) as raised:
        client.read("x")
    same = error(row.errno, "x")
    assert (type(raised.value), raised.value.args, raised.value.filename) == (type(same), same.args, same.filename)


def test_errors_in_json(face: Face, capsysbinary: Capture) -> None:
    body = json.loads(fails(capsysbinary, 3, "read", "nowhere", "-o", "json"))
    assert body == {"data": None, "error": {"errno": "ENOENT", "path": "nowhere", "detail": "file does not exist"}}
    assert json.loads(fails(capsysbinary, 3, "-o", "jsonl", "ls", "nowhere"))["data"] is None


@pytest.mark.parametrize("path", ["agents/../x", "a//b", "a/./b", "a\0b", "\udcff", "/" * 3, "a" * 256])
def test_a_path_no_file_can_have_is_refused_before_it_is_sent(face: Face, capsysbinary: Capture, path: str) -> None:
    fails(capsysbinary, 6, "read", path)
    fails(capsysbinary, 6, "status", "a/b")
    assert face.seen == []


def test_an_answer_from_something_else(face: Face, capsysbinary: Capture) -> None:
    face.files["agents/demo/status"] = b"<html>"
    assert "want one JSON object" in fails(capsysbinary, 1, "status", "demo")
    face.kinds["agents/new"] = "dir"
    assert "another shape" in fails(capsysbinary, 1, "ls", "agents/new")


@pytest.mark.parametrize("args", [[], ["frobnicate"], ["list", "--nope"], ["read"], ["list", "-o", "xml"]])
def test_usage_is_one_line_and_code_2(face: Face, capsysbinary: Capture, args: list[str]) -> None:
    assert fails(capsysbinary, 2, *args).startswith("agentctl: usage: ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(capsysbinary: Capture, name: str) -> None:
    assert b"--output" in ok(capsysbinary, name, "--help")


def test_help_documents_the_exit_codes(capsysbinary: Capture) -> None:
    text = ok(capsysbinary, "--help")
    assert all(name.encode() in text for _, names in EXIT.values() for name in names)
    assert ok(capsysbinary, "--version").startswith(b"agentctl ")


def test_text_from_an_agent_cannot_steer_the_terminal(face: Face, capsysbinary: Capture) -> None:
    face.files["runtime/status"] = json.dumps({"a": "\x1b[2J\u202e[bold]x", "b": [1, "\n"]}).encode()
    out = ok(capsysbinary, "runtime", "-o", "table").decode()
    assert out == 'a  \\x1b[2J\\u202e[bold]x\nb  [1,"\\n"]\n'
    face.fail["x"] = [("EINVAL", "bad\n\x1b[31mline")]
    assert "bad\\n\\x1b[31mline" in fails(capsysbinary, 6, "read", "x")


def test_the_environments_proxy_never_sees_a_request(
    face: Face, capsysbinary: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    ok(capsysbinary, "list")


def test_client_mkdir_rename_and_stat(face: Face) -> None:
    with Client(face.url, TOKEN) as client:
        client.mkdir("agents/x")
        client.rename("agents/demo/kv/a", "agents/demo/kv/b c", exclusive=True)
        move = face.did("MOVE", "agents/demo/kv/a")[0]
        assert (move.headers["Destination"], move.headers["Overwrite"]) == ("/agents/demo/kv/b%20c", "F")
        assert client.stat("agents/demo/status").size == len(STATUS)
        assert face.did("MKCOL", "agents/x")


def test_a_listing_that_does_not_advance_ends(face: Face) -> None:
    face.files["loop"] = b'{"entries":[],"cursor":"a"}'
    face.kinds["loop"] = "dir"
    with Client(face.url, TOKEN) as client, pytest.raises(OSError, match="does not advance"):
        list(client.ls("loop"))


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_events_however_they_are_cut(step: int) -> None:
    raw = b": hi\r\n\r\nid: 1\r\ndata: a\r\n\r\nid: 2\n\ndata:b\ndata: c\nretry: 5\n\nevent: end\n\ndata: cut"
    found = parser.events(raw[at : at + step] for at in range(0, len(raw), step))
    assert [(one.type, one.id, one.data) for one in found] == [
        ("message", "1", b"a"), ("id", "2", b""), ("message", "2", b"b\nc"), ("end", "2", b""),
    ]  # fmt: skip


def test_paths_are_encoded_once() -> None:
    assert target("/a b/%2e%2e/c@follow", since=None, watch="1") == "/a%20b/%252e%252e/c%40follow?watch=1"
    assert target("/") == "/"


def test_local_errors_have_codes_too() -> None:
    assert exit_code(OSError(errno.ENOSPC, "x")) == 7
    assert exit_code(OSError("no errno")) == 1
    assert printable("a\x9bb") == "a\\x9bb"
    assert Output().is_json is False


@pytest.mark.parametrize("words", [["--prompt", "\udcff"], ["--exec", "x \udcff"], ["-c", "program.prompt=\udcff"]])
def test_a_program_that_is_no_text_is_refused_before_it_is_sent(
    face: Face, capsysbinary: Capture, words: list[str]
) -> None:
    assert "EILSEQ" in fails(capsysbinary, 6, "create", "a", *words)
    assert face.seen == []
