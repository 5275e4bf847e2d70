"""A real server of git repositories over HTTP on a loopback port: ``git http-backend``, with or without a password."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Hub:
    """*top*: bare repositories. *basic*: the Authorization header that is wanted. *seen*: the ones that came.

    *gate*: requests wait until it is set. *refusal*: what a refused request is told, with the header for ``{}``.
    """

    top: Path
    basic: str = ""
    refusal: str = "go away"
    seen: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)
    url: str = ""


class _Answers(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        given = self.headers.get("Authorization", "")
        self.hub.seen.append(given)
        self.hub.asked.set()
        assert self.hub.gate.wait(100)
        if self.path.startswith("/moved/"):
            self.send_response(301)
            self.send_header("Location", f"{self.hub.url}/{self.path.removeprefix('/moved/')}")
            return self.end_headers()
        if self.hub.basic and given != self.hub.basic:
            self.send_response(403 if given else 401)
            self.send_header("WWW-Authenticate", 'Basic realm="hub"')
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            self.wfile.write(self.hub.refusal.format(given).encode())
            return None
        return self._run()

    def _run(self) -> None:
        path, _, query = self.path.partition("?")
        env = {
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(self.hub.top), "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command, "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_TYPE": self.headers.get("Content-Type", ""), "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""), "HTTP_CONTENT_ENCODING":
            self.headers.get("Content-Encoding", ""), "CONTENT_LENGTH": self.headers.get("Content-Length", ""),
        }  # fmt: skip
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        done = subprocess.run(
            ["git", "http-backend"], input=body, env=env, capture_output=True, timeout=100, check=False
        )
        head, _, rest = done.stdout.partition(b"\r\n\r\n")
        fields = [line.partition(": ")[::2] for line in head.decode().split("\r\n")]
        status = next((int(value.split()[0]) for name, value in fields if name == "Status"), 200)
        self.send_response(status)
        for name, value in fields:
            if name and name != "Status":
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(rest)

    do_GET = do_POST = _serve  # noqa: N815


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A git that is killed goes away in the middle."""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """*hub* on a port of its own."""
    with _Server(("127.0.0.1", 0), type("Answers", (_Answers,), {"hub": hub})) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.gate.set()
            server.shutdown()
            thread.join()


def git(where: Path, *words: str) -> str:
    """What git says, run in *where* without any configuration of this machine."""
    names = {f"GIT_{who}_{what}": "t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", **names}
    return subprocess.run(
        ["git", *words], cwd=where, env=env, capture_output=True, text=True, check=True
    ).stdout.strip()


def repository(top: Path) -> dict[str, str]:
    """Make ``top/hub/code.git``, with all that is odd; its commits by name."""
    work = top / "work"
    (work / "lib" / "deep").mkdir(parents=True)
    (work / "hooks").mkdir()
    for name, text in (
        ("which", "first\n"), ("lib/a", "a\n"), ("lib/deep/b", "b\n"),
        ("hooks/post-checkout", "#!/bin/sh\ntouch /tmp/x\n"),
        (".gitattributes", "*.bin filter=lfs\n"), ("big.bin", "version https://git-lfs.github.com/spec/v1\n"),
        (".gitmodules", '[submodule "sub"]\n\tpath = sub\n\turl = ../none.git\n'),
    ):  # fmt: skip
        (work / name).write_text(text)
    (work / "out").symlink_to("/etc/passwd")
    (work / "way").symlink_to("lib")
    git(work, "init", "-q", "-b", "trunk")
    git(work, "add", "-A")
    git(work, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},sub")
    git(work, "commit", "-qm", "first")
    first = git(work, "rev-parse", "HEAD")
    git(work, "tag", "-a", "v1", "-m", "one")
    for branch, text in (("side", "side\n"), ("trunk", "last\n")):
        git(work, "checkout", "-q", *(["-b", branch] if branch == "side" else [branch]))
        (work / "which").write_text(text)
        git(work, "commit", "-qam", text)
    (top / "hub").mkdir()
    git(top, "clone", "-q", "--bare", str(work), "hub/code.git")
    return {"first": first, "side": git(work, "rev-parse", "side"), "trunk": git(work, "rev-parse", "trunk")}
