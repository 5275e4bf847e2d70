"""A runtime that speaks TLS, with its own authority, and clients with any certificate."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import httpx
from machine import Machine

from agentfs.authority import Pair
from agentfs.cli.desk import Desk

DAY = timedelta(days=1)


class Site:
    """A `Machine` with an authority: ``operator``, the agent ``demo`` and another agent ``other``."""

    def __init__(self, top: Path, *, mutual: bool = True) -> None:
        self.machine = Machine(top)
        self.home, self.top = self.machine.state.ca, top
        self.desk = Desk(self.machine.state)
        self.desk.init()
        self.issue("server", hosts=["localhost", "127.0.0.1"])
        self.issue("operator")
        for agent in ("demo", "other"):
            self.issue(agent, agent)
        self.machine.env |= {
            "AGENTFS_TLS_CERT": str(self.home / "server.pem"),
            "AGENTFS_TLS_KEY": str(self.home / "server.key"),
        }
        if mutual:
            self.machine.env["AGENTFS_TLS_CLIENT_CA"] = str(self.home / "ca.pem")

    @contextmanager
    def running(self) -> Iterator[Site]:
        self.run("mount", "--no-fuse", "--agent=demo")
        try:
            yield self
        finally:
            self.run("umount")

    def run(self, *words: str, code: int = 0) -> str:
        return self.machine.run(*words, code=code)

    def issue(self, name: str, agent: str | None = None, hosts: Sequence[str] = ()) -> None:
        """Issue a certificate for *agent*, or a server, or the operator."""
        self.desk.issue(name, agent, agent is None and not hosts, hosts, 30, None)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.machine.port}"

    @property
    def authority(self) -> Pair:
        return Pair((self.home / "ca.pem").read_bytes(), (self.home / "ca.key").read_bytes())

    def keep(self, name: str, made: Pair) -> Path:
        """Write a certificate with its key into one file."""
        file = self.top / f"{name}.both"
        file.write_bytes(made.cert + made.key)
        return file

    def context(self, cert: str | Path | None, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.home / "ca.pem")
        context.maximum_version = newest
        if isinstance(cert, str):
            context.load_cert_chain(self.home / f"{cert}.pem", self.home / f"{cert}.key")
        elif cert:
            context.load_cert_chain(cert)
        return context

    def client(
        self, cert: str | Path | None, token: str = "", newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        verify = self.context(cert, newest)
        return httpx.Client(base_url=self.url, headers=headers, verify=verify, trust_env=False, timeout=60)

    def get(self, path: str, cert: str | Path | None, token: str = "") -> httpx.Response:
        with self.client(cert, token) as http:
            return http.get(path)

    def ctl(self, *words: str) -> tuple[int, str]:
        """What `agentctl` answers and prints in this site's environment."""
        done = self.machine.shell(" ".join(["agentctl", *words]))
        return done.returncode, done.stdout + done.stderr
