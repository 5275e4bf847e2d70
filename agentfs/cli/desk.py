"""`Desk`: the files of the certificate authority in ``STATE/ca``, each written whole or not at all.

It knows nothing of who may connect: a face reads ``ca.pem`` and ``crl.pem`` for itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from agentfs import authority
from agentfs.authority import About, Pair
from agentfs.cli import process
from agentfs.errors import error
from agentfs.state import StateDir, draft
from agentfs.types import OPERATOR, Principal

PATIENCE_S: Final = 10.0
_SERIAL: Final = re.compile(r"[0-9a-f]{16,40}\Z")


class Desk:
    """The authority of one state directory.

    ``issued/`` keeps a copy of every certificate under its serial number, so that it can be listed and revoked.
    Every call may raise EBUSY while another ``agentfs ca`` is at work, EACCES and what else the directory says.
    """

    def __init__(self, state: StateDir) -> None:
        self._state, self.top = state, state.ca
        self.cert, self.key, self.crl = self.top / "ca.pem", self.top / "ca.key", self.top / "crl.pem"
        self._issued = self.top / "issued"

    def init(self) -> bool:
        """Make the authority where there is none; whether it is new. EINVAL when part of one is there."""
        self._state.prepare()
        self._issued.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._turn():
            missing = [file for file in (self.cert, self.key, self.crl) if not file.exists()]
            if len(missing) == 3:
                made = authority.found("agentfs", authority.now())
                _put(self.key, made.key)
                _put(self.crl, authority.revoke(made, b"", [], authority.now()))
                _put(self.cert, made.cert)
                return True
            if missing:
                raise error(errno.EINVAL, str(missing[0]), f"is gone; restore it, or remove {self.top} to begin anew")
        return False

    def issue(
        self, name: str, agent: str | None, operator: bool, hosts: Sequence[str], days: int, out: Path | None
    ) -> tuple[Path, Path]:
        """Issue a certificate and a key, and where they are.

        EINVAL for a bad name or not exactly one use, EEXIST when *name* is valid still or the files are not of one
        issued here, ENOENT without an authority or a directory *out*.
        """
        if (agent is not None) + operator + bool(hosts) != 1:
            raise error(errno.EINVAL, name, "want exactly one of --agent, --operator, --server")
        place = out or self.top
        cert, key = place / f"{authority.check_name(name)}.pem", place / f"{name}.key"
        with self._turn():
            signer, now = self._pair(), authority.now()
            since, until = now - authority.SKEW, now + timedelta(days=days)
            self._make_room(name, cert, key)
            if hosts:
                made = authority.server(signer, name, hosts, since, until)
            else:
                principal = OPERATOR if agent is None else Principal("agent", agent)
                made = authority.client(signer, name, principal, since, until)
            _put(self._issued / f"{authority.about(made.cert).serial}.pem", made.cert)
            _put(key, made.key)
            _put(cert, made.cert)
        return cert, key

    def revoke(self, which: str) -> list[tuple[str, bool]]:
        """Revoke what has this name or serial number: each serial, and whether that is new. ENOENT when none has."""
        with self._turn():
            signer, held = self._pair(), self.crl.read_bytes()
            found = [a.serial for a in self._all() if which in (a.name, a.serial)]
            if not found and _SERIAL.match(which):
                found = [which]  # its copy is gone
            if not found:
                raise error(errno.ENOENT, which, "no certificate of this name or serial number was issued here")
            gone = self._revoked(held)
            fresh = [serial for serial in found if int(serial, 16) not in gone]
            if fresh:
                _put(self.crl, authority.revoke(signer, held, [int(s, 16) for s in fresh], authority.now()))
        return [(serial, serial in fresh) for serial in found]

    def rows(self) -> Iterator[dict[str, object]]:
        """What was issued, by name; of one name the oldest first. ENOENT without an authority."""
        self._pair()
        gone, now = self._revoked(self.crl.read_bytes()), authority.now()
        for about in self._all():
            state = "revoked" if int(about.serial, 16) in gone else "expired" if about.until <= now else "valid"
            yield {
                "name": about.name, "use": about.use, "state": state, "until": f"{about.until:%Y-%m-%dT%H:%M:%SZ}",
                "serial": about.serial,
            }  # fmt: skip

    def _turn(self) -> contextlib.AbstractContextManager[None]:
        if not self.top.is_dir():
            raise self._absent()
        return process.turn(self.top / "turn.lock", PATIENCE_S)

    def _pair(self) -> Pair:
        try:
            return Pair(self.cert.read_bytes(), self.key.read_bytes())
        except FileNotFoundError as exc:
            raise self._absent() from exc

    def _absent(self) -> OSError:
        return error(errno.ENOENT, str(self.cert), "there is no authority; agentfs ca init makes one")

    def _all(self) -> list[About]:
        found = [authority.about(file.read_bytes()) for file in self._issued.glob("*.pem")]
        return sorted(found, key=lambda about: (about.name, about.since, about.serial))

    @staticmethod
    def _revoked(held: bytes) -> frozenset[int]:
        return frozenset(serial for _, serial in authority.revoked(held))

    def _make_room(self, name: str, cert: Path, key: Path) -> None:
        """Refuse to replace what is valid, or a stranger's."""
        gone, now = self._revoked(self.crl.read_bytes()), authority.now()
        known = self._all()
        if any(a.name == name and a.until > now and int(a.serial, 16) not in gone for a in known):
            raise error(errno.EEXIST, name, "a certificate of this name is valid; revoke it, or take another name")
        if not cert.parent.is_dir():
            raise error(errno.ENOENT, str(cert.parent), "out: no such directory")
        for file in (cert, key):
            if file.exists() and not (cert.exists() and _serial(cert) in {a.serial for a in known}):
                raise error(errno.EEXIST, str(file), "was not issued here and is left alone")


def _serial(cert: Path) -> str:
    with contextlib.suppress(OSError):
        return authority.about(cert.read_bytes()).serial
    return ""


def _put(file: Path, content: bytes) -> None:
    """Write *file* (0600) whole: a crash leaves the old one or the new one."""
    with draft(file) as new:
        with new.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        new.replace(file)
