"""`agentfs ca`: what is made, made once, revoked, and refused in one line."""

from __future__ import annotations

import io
import json
import stat
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from machine import Machine

from agentfs import authority
from agentfs.authority import Pair
from agentfs.cli import main
from agentfs.types import OPERATOR


class Inside(Machine):
    """A machine whose `agentfs` runs in this process."""

    def run(self, *words: str, code: int = 0) -> str:
        out = io.TextIOWrapper(io.BytesIO(), write_through=True)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setenv("AGENTFS_STATE", str(self.state.path))
            patch.setattr(sys, "argv", ["agentfs", *words])
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", out)
            main()
        out.seek(0)
        said = out.read()
        assert (ended.value.code or 0) == code, (words, said)
        return said


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Inside(tmp_path)
    machine.run("ca", "init")
    return machine


def rows(machine: Machine) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(machine.run("ca", "list", "-o", "json"))["data"]
    return found


def cert(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def refused(machine: Machine, *words: str) -> str:
    said = machine.run("ca", *words, code=1)
    assert said.startswith("agentfs: E") and said.count("\n") == 1, said
    return said


def test_init_makes_an_authority_once(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert "made now" in machine.run("ca", "init")
    home = machine.state.ca
    made = cert(home / "ca.pem")
    basic = made.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical and basic.value.ca and basic.value.path_length == 0
    assert 3640 < (made.not_valid_after_utc - authority.now()).days <= 3653
    assert stat.S_IMODE((home / "ca.key").stat().st_mode) == 0o600
    assert authority.revoked((home / "crl.pem").read_bytes()) == frozenset()
    before = {file.name: file.read_bytes() for file in home.iterdir() if file.is_file()}
    assert "kept" in machine.run("ca", "init")
    assert {file.name: file.read_bytes() for file in home.iterdir() if file.is_file()} == before
    assert rows(machine) == []


@pytest.mark.parametrize("name", ["ca.pem", "ca.key", "crl.pem"])
def test_init_repairs_nothing(machine: Machine, name: str) -> None:
    (machine.state.ca / name).unlink()
    assert name in refused(machine, "init")
    assert not (machine.state.ca / name).exists()


def test_issue_writes_what_is_asked_for(machine: Machine, tmp_path: Path) -> None:
    machine.run("ca", "issue", "boss", "--operator", "--days=3")
    machine.run("ca", "issue", "bot", "--agent=bot-1", f"--out={tmp_path}")
    machine.run("ca", "issue", "web", "--server=Example.org", "--server=10.0.0.1", "--server=::1")
    home = machine.state.ca
    found = {row["name"]: row for row in rows(machine)}
    assert {name: row["use"] for name, row in found.items()} == {
        "boss": "agentfs:operator", "bot": "agentfs:agent:bot-1", "web": "example.org 10.0.0.1 ::1",
    }  # fmt: skip
    assert {row["state"] for row in found.values()} == {"valid"}
    uses = {
        home / "boss.pem": ExtendedKeyUsageOID.CLIENT_AUTH,
        tmp_path / "bot.pem": ExtendedKeyUsageOID.CLIENT_AUTH,
        home / "web.pem": ExtendedKeyUsageOID.SERVER_AUTH,
    }
    for file, use in uses.items():
        issued = cert(file)
        issued.verify_directly_issued_by(cert(home / "ca.pem"))
        assert list(issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [use]
        assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert stat.S_IMODE(file.with_suffix(".key").stat().st_mode) == 0o600
        assert f"{issued.serial_number:x}" == found[file.stem]["serial"]
    assert (cert(home / "boss.pem").not_valid_after_utc - authority.now()).days in (2, 3)
    assert not [file.name for file in home.iterdir() if file.suffix not in (".pem", ".key", ".lock", "")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("issue", "x"), "EINVAL"),
        (("issue", "x", "--operator", "--agent=a"), "EINVAL"),
        (("issue", "x", "--operator", "--server=a"), "EINVAL"),
        (("issue", "x", "--agent=Bad/Name"), "EINVAL"),
        (("issue", "x", "--server=a b"), "EINVAL"),
        (("issue", "x", "--server=https://a"), "EINVAL"),
        (("issue", "x/y", "--operator"), "EINVAL"),
        (("issue", "../x", "--operator"), "EINVAL"),
        (("issue", "ca", "--operator"), "EINVAL"),
        (("issue", "x", "--operator", "--out=/nowhere/at/all"), "ENOENT"),
        (("revoke", "x"), "ENOENT"),
    ],
)
def test_bad_wishes_are_refused_in_one_line(machine: Machine, words: tuple[str, ...], said: str) -> None:
    assert said in refused(machine, *words)
    assert rows(machine) == []


def test_a_name_is_issued_again_once_it_is_revoked(machine: Machine) -> None:
    machine.run("ca", "issue", "x", "--operator")
    file = machine.state.ca / "x.pem"
    first = file.read_bytes()
    assert "EEXIST" in refused(machine, "issue", "x", "--agent=a")
    assert file.read_bytes() == first
    machine.run("ca", "revoke", "x")
    machine.run("ca", "issue", "x", "--agent=a")
    assert file.read_bytes() != first
    assert [row["state"] for row in rows(machine)].count("revoked") == 1


def test_files_of_others_are_left_alone(machine: Machine, tmp_path: Path) -> None:
    for name in ("mine.pem", "mine.key"):
        (tmp_path / name).write_text("precious")
        assert "EEXIST" in refused(machine, "issue", "mine", "--operator", f"--out={tmp_path}")
        assert (tmp_path / name).read_text() == "precious"
    assert rows(machine) == []


def test_revoke_by_name_or_serial_and_again(machine: Machine) -> None:
    for name in ("x", "y"):
        machine.run("ca", "issue", name, "--operator")
    by_name = {row["name"]: row["serial"] for row in rows(machine)}
    assert machine.run("ca", "revoke", "x") == f"{by_name['x']}: revoked\n"
    crl = (machine.state.ca / "crl.pem").read_bytes()
    assert machine.run("ca", "revoke", "x") == f"{by_name['x']}: was revoked already\n"
    assert (machine.state.ca / "crl.pem").read_bytes() == crl
    assert machine.run("ca", "revoke", by_name["y"]) == f"{by_name['y']}: revoked\n"
    held = x509.load_pem_x509_crl((machine.state.ca / "crl.pem").read_bytes())
    assert {f"{entry.serial_number:x}" for entry in held} == set(by_name.values())
    assert held.next_update_utc is not None and held.next_update_utc > authority.now() + timedelta(days=3600)
    assert {row["state"] for row in rows(machine)} == {"revoked"}


@pytest.mark.parametrize("words", [("issue", "x", "--operator"), ("revoke", "x"), ("list",)])
def test_without_an_authority(tmp_path: Path, words: tuple[str, ...]) -> None:
    machine = Inside(tmp_path)
    assert "agentfs ca init" in refused(machine, *words)
    assert not machine.state.path.exists()


def test_a_damaged_authority_issues_nothing(machine: Machine) -> None:
    other = authority.found("agentfs", authority.now())
    for damage in (b"", b"x", other.key):
        (machine.state.ca / "ca.key").write_bytes(damage)
        assert "EINVAL" in refused(machine, "issue", "x", "--operator")
    assert rows(machine) == []


def test_nothing_outlives_its_authority() -> None:
    now = authority.now()
    own: Pair = authority.found("agentfs", now)
    made = authority.client(own, "x", OPERATOR, now, now + timedelta(days=365 * 50))
    assert authority.about(made.cert).until == authority.about(own.cert).until
    with pytest.raises(OSError, match="before it begins"):
        authority.client(own, "x", OPERATOR, now, now - timedelta(days=1))
