"""Whom the client of an https URL believes and what it shows of itself: PEM files that flags or environment name.

It opens no connection, and decides nothing about which files.
"""

from __future__ import annotations

import errno
import ssl
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
            raise error(errno.EINVAL, str(self.key), "key: give its certificate with --cert or AGENTFS_CERT")
        for name, file in (("ca", self.ca), ("cert", self.cert), ("key", self.key)):
            if file and not file.is_file():
                raise error(errno.ENOENT, str(file), name)
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as exc:
            raise error(errno.EINVAL, str(self.ca), f"ca: not a PEM certificate: {exc.strerror}") from exc
        try:
            if self.cert:
                context.load_cert_chain(self.cert, self.key, password=lambda: b"")  # never asks a terminal
        except (OSError, ValueError) as exc:
            raise error(errno.EINVAL, str(self.cert), "cert: want a PEM certificate and its own key") from exc
        return context


def refusal(exc: BaseException | None) -> str:
    """Why TLS was refused by one side, where that is what *exc* came from; else ""."""
    while exc is not None:
        if isinstance(exc, ssl.SSLCertVerificationError):
            return f"the runtime's certificate is not believed: {exc.verify_message}"
        if isinstance(exc, ssl.SSLError) and "ALERT" in (exc.reason or ""):
            return f"the runtime refused this client: {exc.reason.lower().replace('_', ' ')}"
        exc = exc.__cause__ or exc.__context__
    return ""
