"""What the tests of the command line share: a fake face to speak to, and ways to run a command and look at it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_http_face import TOKEN, Face, serving

from agentctl.cli import run

BINARY = bytes(range(256)) * 3
STATUS = b'{"id":"demo","state":"dormant","queue_depth":2,"tick_count":1,"last_tick_at":null,"next_wake":null}\n'
TRACE = b'{"seq":1,"ts":"2026-01-31T09:00:00Z","type":"tick_start","agent":"demo"}\n{"seq":2,"type":"tick_end"}\n'


@pytest.fixture(name="face")
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Face]:
    files = {
        "agents/new": b"usage\n",
        "agents/demo/status": STATUS,
        "agents/demo/ctl": b"tick\nwake\n",
        "agents/demo/kv/bin": BINARY,
        "agents/demo/logs/trace": TRACE,
        "agents/other/status": STATUS.replace(b"demo", b"other"),
        "runtime/status": b'{"version":"0.1.0","agents":2}\n',
    }
    with serving(Face(files, {"agents/new": "call", "agents/demo/logs/trace": "stream"})) as running:
        for name in ("AGENTFS_URL", "AGENTFS_TOKEN", "AGENTFS_STATE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        state = tmp_path / "agentfs"
        state.mkdir()
        (state / "runtime.json").write_text(json.dumps({"url": running.url, "pid": 1, "mount": None, "version": "0"}))
        (state / "operator.token").write_text(TOKEN + "\n")
        yield running


Capture = pytest.CaptureFixture[bytes]


def ok(capture: Capture, *args: str) -> bytes:
    code = run(list(args))
    out, err = capture.readouterr()
    assert (code, err) == (0, b"")
    return out


def fails(capture: Capture, code: int, *args: str) -> str:
    assert run(list(args)) == code
    out, err = capture.readouterr()
    assert out == b""
    assert err.count(b"\n") == 1, err
    return err.decode().removesuffix("\n")


def data(capture: Capture, *args: str) -> object:
    answer = json.loads(ok(capture, *args, "--output", "json"))
    assert answer.keys() == {"data", "error"} and answer["error"] is None
    return answer["data"]
