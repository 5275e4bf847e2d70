"""What all clients of an HTTP face share: which URL is one, whom TLS believes, and what httpx raises as errors.

It opens no connection; what is asked over one, and with which token, is its callers' business.
"""

from __future__ import annotations

import contextlib
import errno
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

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
            raise error(errno.EINVAL, str(self.key), "key: want its certificate beside it")
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


def found(env: Mapping[str, str], home: Path | None = None, *, is_operator: bool = False) -> Trust:
    """What ``AGENTFS_CA``, ``AGENTFS_CERT`` and ``AGENTFS_KEY`` name, else what the authority's directory *home* has.

    From *home* that is ``ca.pem``, and with *is_operator* the certificate issued under the name ``operator``.
    """
    names = ("AGENTFS_CA", "AGENTFS_CERT", "AGENTFS_KEY")
    ca, cert, key = (Path(env[name]).expanduser() if env.get(name) else None for name in names)
    if home and not ca and (home / "ca.pem").exists():
        ca = home / "ca.pem"
    if home and is_operator and not cert and not key and (home / "operator.pem").exists():
        cert, key = home / "operator.pem", home / "operator.key"
    return Trust(ca, cert, key)


def nobody() -> ssl.SSLContext:
    """The settings of a client that speaks plain HTTP only: no certificate is believed, and no authorities are read.

    Reading this machine's authorities takes far longer than a request.
    """
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def base(url: str) -> str:
    """*url* without its final slash. EINVAL unless it is plain ``http(s)://host[:port][/prefix]``."""
    try:
        parts = urlsplit(url)
        is_sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_sound = False
    if not is_sound or "@" in parts.netloc or parts.query or parts.fragment:
        raise error(errno.EINVAL, url.partition("@")[2] or url, "url: want http://host:port")
    return url.rstrip("/")


def unreachable(path: str, text: str) -> OSError:
    """ENOTCONN as a client sees it: the table's own text says what only a runtime can know, that it is stopping."""
    return OSError(errno.ENOTCONN, text, path)


@contextlib.contextmanager
def translated(url: str, path: str) -> Iterator[None]:
    """Turn what httpx raises into ENOTCONN, ETIMEDOUT, EINVAL, EIO, or EACCES for what TLS refuses."""
    import httpx  # here: who asks for it has it, and who only reads URLs or trust does not wait for it

    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
        raise _lost(exc, path, f"cannot reach {url}") from exc
    except httpx.TimeoutException as exc:
        raise error(errno.ETIMEDOUT, path, f"no answer from {url}") from exc
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError) as exc:
        raise error(errno.EINVAL, path, str(exc)) from exc
    except (httpx.TransportError, httpx.StreamError) as exc:
        raise _lost(exc, path, f"connection to {url} broke") from exc
    except httpx.HTTPError as exc:
        raise error(errno.EIO, path, str(exc)) from exc


def _lost(exc: Exception, path: str, what: str) -> OSError:
    if refused := _refusal(exc):
        return error(errno.EACCES, path, refused)
    text = str(exc) or type(exc).__name__
    return unreachable(path, f"{what}: {text.partition('] ')[2] or text}")


def _refusal(exc: BaseException | None) -> str:
    """Why TLS was refused by one side, where that is what *exc* came from; else ""."""
    while exc is not None:
        if isinstance(exc, ssl.SSLCertVerificationError):
            return f"the runtime's certificate is not believed: {exc.verify_message}"
        if isinstance(exc, ssl.SSLError) and "ALERT" in (exc.reason or ""):
            return f"the runtime refused this client: {exc.reason.lower().replace('_', ' ')}"
        exc = exc.__cause__ or exc.__context__
    return ""
