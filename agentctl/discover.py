"""Finds the runtime to speak to: its URL and a token, from flags, the environment or the state directory.

It reads two small files and opens no connection.
"""

from __future__ import annotations

import errno
import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from agentfs.client import Trust, found, unreachable
from agentfs.errors import error

SIZE_MAX = 64 << 10
SOCKET = "AGENTFS_SOCKET"


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line said; None where it said nothing."""

    url: str | None = None
    token: str | None = None
    state: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A runtime: its URL, a bearer token, where the URL came from, what TLS needs, and the path of its socket, if any.

    The token is empty where a certificate was named and no token: the certificate says who asks.
    """

    url: str
    token: str = ""
    origin: str = "--url"
    trust: Trust = field(default_factory=Trust)
    socket: str = ""


class _Runtime(msgspec.Struct):
    """The part of ``runtime.json`` a client needs."""

    url: str


def discover(flags: Flags, env: dict[str, str] | None = None) -> Target:
    """Where and as whom to connect: flag, then ``AGENTFS_URL``/``AGENTFS_TOKEN``, then the state directory.

    A ``--state`` flag comes before the environment, and ``AGENTFS_SOCKET``, which sandboxes have, before
    ``AGENTFS_URL``. The token of a state directory is sent to its own runtime and
    to this machine only, and an https URL of its own runtime is believed by its own ``ca/ca.pem``. ENOTCONN without a
    URL, EACCES without a token, EINVAL for a malformed one.
    """
    env = dict(os.environ) if env is None else env
    state = state_dir(flags, env)
    url, origin = _url(flags, env, state)
    if origin == SOCKET:
        return Target(url, _token(flags, env, state)[0], origin, socket=env[SOCKET])
    is_tls = url.startswith("https:")
    if is_tls and _is_certificate_enough(flags, env):
        return Target(url, "", origin, _trust(flags, env, state, url, is_operator=False))
    token, is_own = _token(flags, env, state)
    if is_own and not (_is_loopback(url) or url == _runtime_url(state / "runtime.json")):
        raise error(errno.EACCES, url, "this machine's operator token stays here; give --token or AGENTFS_TOKEN")
    return Target(url, token, origin, _trust(flags, env, state, url, is_operator=is_own) if is_tls else Trust())


def elsewhere(flags: Flags) -> Target:
    """The runtime that ``--url`` names, for requests that carry their own proof. EINVAL without ``--url``."""
    if not flags.url:
        raise error(errno.EINVAL, "--as", "give the other runtime with --url")
    files = (Path(name).expanduser() if name else None for name in (flags.ca, flags.cert, flags.key))
    return Target(flags.url, trust=Trust(*files))


def _is_certificate_enough(flags: Flags, env: dict[str, str]) -> bool:
    """A certificate is named and no token: a token found in the state directory could be another principal's."""
    is_token = flags.token or (env.get("AGENTFS_TOKEN") and not flags.state)
    return bool((flags.cert or env.get("AGENTFS_CERT")) and not is_token)


def _trust(flags: Flags, env: dict[str, str], state: Path, url: str, *, is_operator: bool) -> Trust:
    """What flags name, then the environment, then for the state directory's own runtime what its authority has."""
    named = {"AGENTFS_CA": flags.ca, "AGENTFS_CERT": flags.cert, "AGENTFS_KEY": flags.key}
    said = {name: value for name, value in named.items() if value}
    unsaid = {"AGENTFS_KEY": ""} if flags.cert else {}  # the environment's is of another certificate
    is_own = url == _runtime_url(state / "runtime.json")
    return found(env | unsaid | said, state / "ca" if is_own else None, is_operator=is_operator)


def find_token(flags: Flags, env: dict[str, str] | None = None) -> str:
    """The token that `discover` would use, without asking for a runtime. EACCES, EINVAL."""
    env = dict(os.environ) if env is None else env
    return _token(flags, env, state_dir(flags, env))[0]


def state_dir(flags: Flags, env: dict[str, str]) -> Path:
    """``--state``, ``AGENTFS_STATE``, ``$XDG_STATE_HOME/agentfs`` or ``~/.local/state/agentfs``.

    A relative ``XDG_STATE_HOME`` is ignored (XDG base directory specification).
    """
    named = flags.state or env.get("AGENTFS_STATE")
    if named:
        return Path(named).expanduser()
    home = Path(env.get("XDG_STATE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".local" / "state") / "agentfs"


def _url(flags: Flags, env: dict[str, str], state: Path) -> tuple[str, str]:
    if flags.url:
        return flags.url, "--url"
    file = state / "runtime.json"
    found = _runtime_url(file)
    if env.get(SOCKET) and not (flags.state and found):
        return "http://localhost", SOCKET
    if env.get("AGENTFS_URL") and not (flags.state and found):
        return env["AGENTFS_URL"], "AGENTFS_URL"
    if not found:
        raise unreachable(str(file), "no runtime is running here; start one, or give --url or AGENTFS_URL")
    return found, str(file)


def _runtime_url(file: Path) -> str:
    raw = _small(file)
    if raw is None:
        return ""
    try:
        return msgspec.json.decode(raw, type=_Runtime).url
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise error(errno.EINVAL, str(file), f"want a JSON object with url: {exc}") from exc


def _token(flags: Flags, env: dict[str, str], state: Path) -> tuple[str, bool]:
    """A token, and whether it is the state directory's own."""
    if flags.token:
        return _checked(flags.token, "--token"), False
    file = state / "operator.token"
    raw = _small(file)
    found = raw.decode("ascii", "replace").strip() if raw else ""
    if env.get("AGENTFS_TOKEN") and not (flags.state and found):
        return _checked(env["AGENTFS_TOKEN"].strip(), "AGENTFS_TOKEN"), False
    if not found:
        why = "is empty" if raw is not None else "does not exist"
        raise error(errno.EACCES, str(file), f"the token file {why}; give --token or AGENTFS_TOKEN")
    return _checked(found, str(file)), True


def _checked(token: str, origin: str) -> str:
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise error(errno.EINVAL, origin, "a token is one word of printable ASCII")
    return token


def _small(file: Path) -> bytes | None:
    try:
        with file.open("rb") as handle:
            return handle.read(SIZE_MAX)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
