"""TLS and client certificates on a running runtime: who gets in as whom, and who does not get in at all."""

from __future__ import annotations

import errno
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from tlskit import DAY, Site

from agentfs import authority
from agentfs.authority import principal
from agentfs.client import Trust
from agentfs.providers.remote import RemoteService
from agentfs.types import OPERATOR, Principal
from agentfs.types import Path as TreePath

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("tls")).running() as site:
        yield site


def names(answer: httpx.Response) -> set[str]:
    assert answer.status_code == 200, answer.text
    return {entry["name"] for entry in answer.json()["entries"]}


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- who gets in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newest", VERSIONS)
def test_a_certificate_selects_the_principal(site: Site, newest: ssl.TLSVersion) -> None:
    with site.client("operator", newest=newest) as http:
        assert names(http.get("/")) >= {"agents", "views", "runtime"}
        assert http.get("/agents/demo/status").json()["id"] == "demo"
    with site.client("demo", newest=newest) as http:
        assert names(http.get("/")) >= {"status", "kv", "inbox"}
        assert not names(http.get("/")) & {"agents", "runtime"}
        assert http.get("/status").json()["id"] == "demo"
        assert http.get("/agents/demo/status").status_code == 404
        assert http.put("/kv/mine", content=b"1").is_success
    assert site.get("/agents/demo/kv/mine", "operator").text == "1"


def test_each_connection_has_its_own_principal(site: Site) -> None:
    with site.client("operator") as one, site.client("demo") as two:
        for _ in range(5):
            assert "agents" in names(one.get("/"))
            assert "status" in names(two.get("/"))


def test_an_agent_that_does_not_exist_finds_nothing(site: Site) -> None:
    with site.client("other") as http:
        for path in ("/status", "/agents/demo/status", "/kv/x"):
            assert http.get(path).status_code == 404
        assert not http.put("/kv/x", content=b"1").is_success


def test_a_token_narrows_its_own_principal_only(site: Site) -> None:
    operator = site.machine.state.token.read_text().strip()
    code, own = site.ctl("token", "issue", "--agent", "demo", "--allow", "kv:read")
    assert code == 0, own
    _, other = site.ctl("token", "issue", "--allow", "agents/demo:read")
    own, other = own.strip(), other.strip()
    assert site.get("/agents", "operator", operator).status_code == 200
    assert site.get("/kv/", "demo", own).status_code == 200
    assert not site.get("/status", "demo", own).is_success
    assert site.get("/agents/demo/status", "operator", other).status_code == 200
    assert not site.get("/runtime/status", "operator", other).is_success
    for cert, token in (("demo", operator), ("operator", own), ("demo", other), ("other", own), ("demo", "x")):
        answer = site.get("/", cert, token)
        assert (answer.status_code, answer.json()["errno"]) == (401, "EACCES")
    with site.client("demo") as http:
        assert http.get("/", headers={"Authorization": "Basic eDp5"}).status_code == 401


def test_a_watch_over_tls(site: Site) -> None:
    with site.client("demo") as http, http.stream("GET", "/logs/trace", params={"watch": "1", "since": "0"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert site.get("/kv/", "demo").is_success
        with site.client("demo") as other:
            assert other.post("/ctl", content=b"tick\n").is_success
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith("event:")) == "event: record"
        assert "type" in json.loads(next(line for line in lines if line.startswith("data:"))[5:])


@pytest.mark.parametrize(
    ("uris", "who"),
    [
        (["agentfs:operator"], OPERATOR),
        (["https://example.org", "agentfs:agent:a-1"], Principal("agent", "a-1")),
        ([], None), (["agentfs:agent:"], None), (["agentfs:agent:A"], None), (["agentfs:agent:a/b"], None),
        (["agentfs:operator", "agentfs:agent:a"], None), (["agentfs:operator", "agentfs:operator"], None),
        (["AGENTFS:operator"], None), (["agentfs:operator "], None), (["agentfs:driver:x"], None),
    ],
)  # fmt: skip
def test_names_stand_for_one_principal_or_nobody(uris: list[str], who: Principal | None) -> None:
    assert principal(uris) == who


# -- who does not ------------------------------------------------------------------------------------------------------


def strangers(site: Site) -> dict[str, str | Path | None]:
    now = authority.now()
    twin = authority.found("agentfs", now)  # of the same name, with another key
    past = authority.client(site.authority, "past", OPERATOR, now - 2 * DAY, now - DAY)
    early = authority.client(site.authority, "early", OPERATOR, now + DAY, now + 2 * DAY)
    site.issue("gone")
    site.desk.revoke("gone")
    return {
        "none": None,
        "twin": site.keep("twin", authority.client(twin, "operator", OPERATOR, now - DAY, now + DAY)),
        "self": site.keep("self", twin),
        "past": site.keep("past", past),
        "early": site.keep("early", early),
        "server": "server",
        "revoked": "gone",
    }


def test_strangers_are_refused_in_the_handshake(site: Site) -> None:
    operator = site.machine.state.token.read_text().strip()
    for name, cert in strangers(site).items():
        for newest in VERSIONS:
            with site.client(cert, operator, newest) as http, pytest.raises(httpx.TransportError):
                print(name, http.put("/agents/demo/kv/intruder", content=b"1"))  # noqa: T201  # shown on failure
    assert site.get("/agents/demo/kv/intruder", "operator").status_code == 404


def test_plain_http_gets_no_answer(site: Site) -> None:
    token = site.machine.state.token.read_text().strip()
    request = f"PUT /agents/demo/kv/plain HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
    with socket.create_connection(("127.0.0.1", site.machine.port), timeout=60) as plain:
        plain.sendall(f"{request}Content-Length: 1\r\n\r\n1".encode())
        plain.shutdown(socket.SHUT_WR)
        got = b""
        while piece := plain.recv(4096):
            got += piece
    assert b"HTTP" not in got
    assert site.get("/agents/demo/kv/plain", "operator").status_code == 404


def test_the_client_is_told_why(site: Site) -> None:
    def said(cert: str | None) -> str:
        with pytest.raises(httpx.TransportError) as caught:
            site.get("/", cert)
        return str(caught.value).lower()

    site.issue("told")
    site.desk.revoke("told")
    assert "certificate required" in said(None)
    assert "certificate revoked" in said("told")


@pytest.mark.parametrize("newest", VERSIONS)
def test_revoked_while_the_runtime_runs(site: Site, newest: ssl.TLSVersion) -> None:
    name = f"short-{newest.name.lower().replace('_', '-')}"
    site.issue(name, "demo")
    context = site.context(name, newest)
    with (
        site.client(name, newest=newest) as http,
        socket.create_connection(("127.0.0.1", site.machine.port), timeout=60) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as before,
    ):
        assert http.get("/status").status_code == 200
        session = before.session
        assert "revoked" in site.run("ca", "revoke", name)
        answer = http.get("/status")  # on the connection that is open still
        assert (answer.status_code, answer.json()["errno"]) == (401, "EACCES")
    with site.client(name, newest=newest) as again, pytest.raises(httpx.TransportError):
        again.get("/status")
    with (  # no session is resumed that was opened with it
        pytest.raises(OSError),
        socket.create_connection(("127.0.0.1", site.machine.port), timeout=60) as raw,
        context.wrap_socket(raw, server_hostname="localhost", session=session) as after,
    ):
        after.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert after.recv(100) == b""
        raise ConnectionResetError
    assert site.get("/status", "demo").status_code == 200


@pytest.mark.parametrize("damage", [None, b"", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"])
def test_a_lost_or_damaged_list_lets_nobody_back_in(site: Site, damage: bytes | None) -> None:
    crl = site.home / "crl.pem"
    name = f"lost-{len(damage) if damage is not None else 'all'}"
    site.issue(name)
    site.desk.revoke(name)
    with pytest.raises(httpx.TransportError):
        site.get("/", name)
    whole = crl.read_bytes()
    try:
        crl.unlink() if damage is None else crl.write_bytes(damage)
        with pytest.raises(httpx.TransportError):
            site.get("/", name)
        assert site.get("/", "operator").status_code == 200
        assert "stay in force" in site.machine.state.log.read_text()
    finally:
        crl.write_bytes(whole)
    with pytest.raises(httpx.TransportError):
        site.get("/", name)


def test_a_certificate_that_ends_is_refused_on_its_open_connection(site: Site) -> None:
    for seconds in (3, 9, 27):  # the machine may be too busy to show one before it ends
        now = authority.now()
        ends = now + DAY / 86_400 * seconds
        cert = site.keep("brief", authority.client(site.authority, "brief", Principal("agent", "demo"), now, ends))
        with site.client(cert) as http, suppress(httpx.TransportError):
            if http.get("/status").status_code == 200:
                return until(lambda: http.get("/status").status_code == 401)
    raise AssertionError("it never got in")


def test_a_server_certificate_is_renewed_without_a_restart(site: Site) -> None:
    def serial() -> str:
        with (
            socket.create_connection(("127.0.0.1", site.machine.port), timeout=60) as raw,
            site.context("operator").wrap_socket(raw, server_hostname="localhost") as tls,
        ):
            shown = tls.getpeercert()
            assert shown is not None and tls.version() == "TLSv1.3"
            return str(shown["serialNumber"])

    before = serial()
    site.desk.revoke("server")
    site.issue("server", hosts=["localhost", "127.0.0.1"])
    assert serial() != before


# -- the commands ------------------------------------------------------------------------------------------------------


def test_status_and_discovery(site: Site) -> None:
    assert site.machine.look()["is_ready"] is True
    assert site.machine.look()["url"] == site.url
    assert site.ctl("read", "agents/demo/status")[0] == 0


def test_agentctl_shows_a_certificate(site: Site) -> None:
    home, runtime = site.home, site.machine.state.runtime
    shown = f"--url {site.url} --ca {home}/ca.pem --cert {home}/demo.pem --key {home}/demo.key"
    code, said = site.ctl(shown, "read", "status")
    assert code == 0 and '"id"' in said, said
    code, said = site.ctl(f"--ca {home}/ca.pem --cert {home}/operator.pem --key {home}/operator.key", "status", "demo")
    assert code == 0 and "dormant" in said, (said, runtime.read_text())
    names = f"AGENTFS_CA={home}/ca.pem AGENTFS_CERT={home}/demo.pem AGENTFS_KEY={home}/demo.key"
    done = site.machine.shell(f"{names} agentctl --url {site.url} write kv/a one && {names} agentctl read kv/a")
    assert (done.returncode, done.stdout) == (0, "one"), done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--url {url} --token x --state /nowhere", "not believed"),
        ("--url {url} --token x --ca {home}/ca.pem", "refused this client"),
        ("--ca /nowhere/ca.pem", "ENOENT: /nowhere/ca.pem"),
        ("--ca {home}/ca.key", "EINVAL: {home}/ca.key"),
        ("--cert {home}/demo.pem --key {home}/other.key", "EINVAL: {home}/demo.pem"),
        ("--key {home}/demo.key", "EINVAL: {home}/demo.key"),
    ],
)
def test_agentctl_says_what_is_wrong_in_one_line(site: Site, words: str, said: str) -> None:
    code, text = site.ctl(words.format(url=site.url, home=site.home), "ls")
    wanted = said.format(home=site.home)
    parts = wanted.split(": ")
    assert code != 0 and text.count("\n") == 1 and all(part in text for part in parts), text


async def test_the_remote_tree_over_tls(site: Site) -> None:
    token = site.machine.state.token.read_text().strip()
    trust = Trust(site.home / "ca.pem", site.home / "operator.pem", site.home / "operator.key")
    async with RemoteService(site.url, token, trust=trust) as service:
        assert (await service.stat(TreePath("agents/demo/status"))).name == "status"
    async with RemoteService(site.url, token, trust=Trust(site.home / "ca.pem")) as service:
        with pytest.raises(PermissionError, match="refused this client"):
            await service.stat(TreePath("agents"))
    async with RemoteService(site.url, token) as service:
        with pytest.raises(PermissionError, match="not believed"):
            await service.stat(TreePath("agents"))


# -- starting ----------------------------------------------------------------------------------------------------------


def test_without_a_client_authority_a_token_is_enough(tmp_path: Path) -> None:
    site = Site(tmp_path, mutual=False)
    site.machine.env["AGENTFS_LISTEN"] = f"0.0.0.0:{site.machine.port}"
    with site.running():
        token = site.machine.state.token.read_text().strip()
        assert site.get("/agents/demo/status", None, token).status_code == 200
        assert site.get("/agents/demo/status", "operator").status_code == 401
        assert site.ctl("status", "demo")[0] == 0
        assert site.machine.look()["is_ready"] is True
        assert site.machine.look()["url"] == site.url  # a name that the certificate has
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(site.url.replace("https", "http"), trust_env=False)


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (("--tls-cert={home}/server.pem",), errno.EINVAL, "tls_cert"),
        (("--tls-key={home}/server.key",), errno.EINVAL, "tls_key"),
        (("--tls-client-ca={home}/ca.pem",), errno.EINVAL, "tls_client_ca"),
        (("--tls-cert={home}/no.pem", "--tls-key={home}/server.key"), errno.ENOENT, "tls_cert"),
        (("--tls-cert={home}/server.pem", "--tls-key={home}/no.key"), errno.ENOENT, "tls_key"),
        (("--tls-cert={home}/server.pem", "--tls-key={home}"), errno.EINVAL, "tls_key"),
        (("--tls-cert={home}/server.key", "--tls-key={home}/server.key"), errno.EINVAL, "tls_cert"),
        (("--tls-cert={home}/server.pem", "--tls-key={home}/server.pem"), errno.EINVAL, "tls_key"),
        (("--tls-cert={home}/server.pem", "--tls-key={home}/demo.key"), errno.EINVAL, "tls_key"),
        (
            ("--tls-cert={home}/server.pem", "--tls-key={home}/server.key", "--tls-client-ca={home}/no.pem"),
            errno.ENOENT, "tls_client_ca",
        ),
        (
            ("--tls-cert={home}/server.pem", "--tls-key={home}/server.key", "--tls-client-ca={home}/demo.key"),
            errno.EINVAL, "tls_client_ca",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["serve", "mount"])
def test_bad_files_are_refused_at_start(
    site: Site, tmp_path: Path, verb: str, options: tuple[str, ...], code: int, named: str
) -> None:
    env = {name: value for name, value in site.machine.env.items() if "_TLS_" not in name}
    site.machine.env, kept = env, site.machine.env
    try:
        words = [word.format(home=site.home) for word in options]
        said = site.run(verb, "--no-fuse", f"--state={tmp_path}", "--listen=127.0.0.1:0", *words, code=1)
    finally:
        site.machine.env = kept
    assert errno.errorcode[code] in said and named in said and said.count("\n") == 1, said
    assert not (tmp_path / "runtime.json").exists()
