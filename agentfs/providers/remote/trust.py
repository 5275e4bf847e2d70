"""Whom a client of an https URL believes and what it shows of itself, from the environment and a state directory.

It opens no connection.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agentfs.errors import error


@dataclass(frozen=True, slots=True)
class Trust:
    """PEM files: the *ca* that is believed instead of this machine's, the *cert* to show and its *key*.

    *cert* may hold its key itself.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """The settings of a connection. ENOENT or EINVAL names the file that will not do."""
        if self.key and not self.cert:
            raise error(errno.EINVAL, str(self.key), "a key without its certificate")
        for file in (self.ca, self.cert, self.key):
            if file and not file.is_file():
                raise error(errno.ENOENT, str(file))
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as exc:
            raise error(errno.EINVAL, str(self.ca), f"not a PEM certificate: {exc.strerror}") from exc
        try:
            if self.cert:
                context.load_cert_chain(self.cert, self.key, password=lambda: b"")  # never asks a terminal
        except (OSError, ValueError) as exc:
            raise error(errno.EINVAL, str(self.cert), "want a PEM certificate and its own key") from exc
        return context


def found(env: Mapping[str, str], home: Path | None = None, *, is_operator: bool = False) -> Trust:
    """What ``AGENTFS_CA``, ``AGENTFS_CERT`` and ``AGENTFS_KEY`` name, else what the authority's directory *home* has.

    From *home* that is ``ca.pem``, and with *is_operator* the certificate issued under the name ``operator``.
    """
    named = {name: Path(env[name]) for name in ("AGENTFS_CA", "AGENTFS_CERT", "AGENTFS_KEY") if env.get(name)}
    ca, cert, key = named.get("AGENTFS_CA"), named.get("AGENTFS_CERT"), named.get("AGENTFS_KEY")
    if home and not ca and (home / "ca.pem").exists():
        ca = home / "ca.pem"
    if home and is_operator and not cert and not key and (home / "operator.pem").exists():
        cert, key = home / "operator.pem", home / "operator.key"
    return Trust(ca, cert, key)


def refusal(exc: BaseException | None) -> str:
    """Why TLS was refused by one side, where that is what *exc* came from; else ""."""
    while exc is not None:
        if isinstance(exc, ssl.SSLCertVerificationError):
            return f"the runtime's certificate is not believed: {exc.verify_message}"
        if isinstance(exc, ssl.SSLError) and "ALERT" in (exc.reason or ""):
            return f"the runtime refused this client: {exc.reason.lower().replace('_', ' ')}"
        exc = exc.__cause__ or exc.__context__
    return ""
