"""TLS of the HTTP face: the settings of new connections, and the principal that a client's certificate names.

hypercorn 0.18 on trio tells an application nothing of the client's certificate. But each connection is one task, in
which the handshake is made and from which every request of that connection is started, and a trio task hands its
context variables on. So the `ssl.SSLObject` of a connection, whose class an `ssl.SSLContext` lets us choose, notes the
certificate in a context variable when its handshake is done, and each request finds there the certificate of its own
connection. The context given to hypercorn makes each connection's object by the newest context, so that files that
were replaced are in force for new connections.

It knows no path and no token, and serves nothing itself.
"""

from __future__ import annotations

import errno
import logging
import ssl
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from agentfs.authority import Peer, Revoked, peer, revoked
from agentfs.errors import error
from agentfs.types import Principal

log = logging.getLogger(__name__)

CRL: Final = "crl.pem"
_PEER: ContextVar[Peer | None] = ContextVar("peer", default=None)


@dataclass(frozen=True, slots=True)
class Files:
    """The server's certificate (with its chain) and key, and the authority of clients; None: clients need none."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    @property
    def crl(self) -> Path | None:
        """The revocation list beside the authority."""
        return self.client_ca.with_name(CRL) if self.client_ca else None

    def stamp(self) -> tuple[tuple[int, ...], ...]:
        """Differs once any of the files was replaced, appeared or is gone."""
        return tuple(_stamp(file) for file in (self.cert, self.key, self.client_ca, self.crl) if file)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What the files said when they had this *stamp*."""

    context: ssl.SSLContext
    stamp: tuple[tuple[int, ...], ...]
    revoked: Revoked | None


class Gate(ssl.SSLContext):
    """The context of a face that speaks TLS; a connection gets what `Files` say when it begins.

    Files that became unreadable change nothing: what was in force stays so, and the log says why.
    """

    _files: Files
    _loaded: _Loaded
    _failed: tuple[tuple[int, ...], ...] | None

    @classmethod
    def open(cls, files: Files) -> Gate:
        """A gate with *files*. ENOENT or EINVAL names the option whose file is absent, damaged or does not match."""
        gate = cls(ssl.PROTOCOL_TLS_SERVER)
        gate._files, gate._loaded, gate._failed = files, _load(files), None
        return gate

    @property
    def certified(self) -> Callable[[], Principal | None] | None:
        """Tells the principal of the connection that asks; None when clients need no certificate."""
        return self._principal if self._files.client_ca else None

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, server_side: bool = False,
        server_hostname: str | bytes | None = None, session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:  # fmt: skip
        """As the newest context does."""
        return self._newest().context.wrap_bio(incoming, outgoing, server_side, server_hostname, session)

    def _principal(self) -> Principal | None:
        """Who the certificate of this task's connection names; None when it ended or was revoked meanwhile."""
        found, gone = _PEER.get(), self._newest().revoked or frozenset()
        is_good = found is not None and found.until > datetime.now(UTC) and found.ident not in gone
        return found.principal if found and is_good else None

    def _newest(self) -> _Loaded:
        stamp = self._files.stamp()
        if stamp not in (self._loaded.stamp, self._failed):
            try:
                self._renew()
                self._failed = None
            except OSError as exc:
                self._failed = stamp
                log.error("the TLS files as they were stay in force: %s: %s", exc.filename, exc.strerror)
        return self._loaded

    def _renew(self) -> None:
        fresh = _load(self._files)
        if fresh.revoked is None and self._loaded.revoked is not None:
            raise error(errno.ENOENT, str(self._files.crl), "tls_client_ca: its list of revoked certificates is gone")
        self._loaded = fresh
        log.info("TLS files read anew")


class _Connection(ssl.SSLObject):
    """One connection's side of TLS."""

    _refused: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """Note whose certificate it is once it is verified.

        trio would drop a connection at once, and a client whose certificate is refused would not learn why: "more
        input is wanted" makes trio send the alert first and come again when the client has hung up.
        """
        if self._refused is not None:
            raise self._refused
        try:
            super().do_handshake()
        except ssl.SSLError as exc:
            if "CERTIFICATE" not in (exc.reason or ""):
                raise
            self._refused = exc
            raise ssl.SSLWantReadError from exc
        _PEER.set(self._peer())

    def _peer(self) -> Peer | None:
        der = self.getpeercert(binary_form=True)
        try:
            return peer(der) if der else None
        except OSError as exc:
            log.warning("a client's certificate cannot be read: %s", exc.strerror)
            return None


def gate(cert: Path | None, key: Path | None, client_ca: Path | None) -> Gate | None:
    """The gate these options make, or None for a face without TLS. ENOENT or EINVAL names the option."""
    return Gate.open(Files(cert, key, client_ca)) if cert and key else None


def _load(files: Files) -> _Loaded:
    stamp = files.stamp()  # before they are read: one replaced meanwhile is noticed later
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = _Connection
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # a resumed session would not show its certificate again, which may be revoked by then
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    _load_own(context, files)
    return _Loaded(context, stamp, _load_clients(context, files) if files.client_ca else None)


def _load_own(context: ssl.SSLContext, files: Files) -> None:
    _certificates("tls_cert", files.cert)
    _read("tls_key", files.key)
    try:
        context.load_cert_chain(files.cert, files.key, password=lambda: b"")  # never asks a terminal
    except (ssl.SSLError, ValueError) as exc:
        is_other = isinstance(exc, ssl.SSLError) and "MISMATCH" in (exc.reason or "")
        why = f"not the key of {files.cert}" if is_other else "not a PEM private key without a password"
        raise error(errno.EINVAL, str(files.key), f"tls_key: {why}") from exc


def _load_clients(context: ssl.SSLContext, files: Files) -> Revoked | None:
    """Ask for certificates of the authority; what is revoked, None without a list."""
    assert files.client_ca is not None and files.crl is not None
    _certificates("tls_client_ca", files.client_ca)
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(files.client_ca)
        if not files.crl.exists():
            return None
        gone = revoked(_read("tls_client_ca", files.crl))
        context.load_verify_locations(files.crl)
    except ssl.SSLError as exc:
        raise error(errno.EINVAL, str(files.client_ca), f"tls_client_ca: {exc}") from exc
    except OSError as exc:
        raise exc if exc.filename else error(errno.EINVAL, str(files.crl), f"tls_client_ca: {exc.strerror}") from exc
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return gone


def _certificates(option: str, file: Path) -> None:
    try:
        x509.load_pem_x509_certificates(_read(option, file))
    except ValueError as exc:
        raise error(errno.EINVAL, str(file), f"{option}: not PEM certificates") from exc


def _read(option: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise error(errno.ENOENT, str(file), option) from exc
    except OSError as exc:
        raise error(errno.EINVAL, str(file), f"{option}: {exc.strerror}") from exc


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        about = file.stat()
    except OSError:
        return ()
    return about.st_ino, about.st_mtime_ns, about.st_size
