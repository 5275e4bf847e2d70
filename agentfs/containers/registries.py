"""Which registry an image is of, and what lets an agent fetch from one: the document ``containers/auth/token``.

No I/O; what is sealed and used is `agentfs.engine.registries`.
"""

from __future__ import annotations

import errno
import re
from typing import Final

import msgspec

from agentfs.errors import error

PUBLIC: Final = "docker.io"
"""The registry of an image that names none."""
_HOST: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,252}[a-z0-9])?(:[0-9]{1,5})?\Z")
_WORD_MAX: Final = 1000  # characters of a username
_PASSWORD_MAX: Final = 16_384  # characters: some registries give out long tokens


class Login(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who an agent is at ``registry``, host[:port]. Without username and password it stands for nobody."""

    registry: str
    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"Login({self.registry!r})"


def parse(doc: bytes) -> Login:
    """*doc* as a `Login`. EINVAL naming the field, never its value."""
    try:
        login = msgspec.json.decode(doc, type=Login)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise error(errno.EINVAL, detail=f"token: {exc}") from None  # its context holds the document
    registry = _plain(login.registry)
    if not _HOST.match(registry):
        raise error(errno.EINVAL, detail="registry: want a host, or host:port")
    if bool(login.username) != bool(login.password):
        raise error(errno.EINVAL, detail="username, password: want both, or none to forget them")
    for name, text, most in (("username", login.username, _WORD_MAX), ("password", login.password, _PASSWORD_MAX)):
        if len(text) > most or not text.isprintable():
            raise error(errno.EINVAL, detail=f"{name}: want at most {most} printable characters")
    return msgspec.structs.replace(login, registry=registry)


def registry_of(image: str) -> str:
    """The registry of *image*: its first part, when that looks like a host."""
    first, slash, _ = image.partition("/")
    is_host = bool(slash) and ("." in first or ":" in first or first == "localhost")
    return _plain(first) if is_host else PUBLIC


def _plain(registry: str) -> str:
    name = registry.lower()
    return PUBLIC if name in ("index.docker.io", "registry-1.docker.io") else name
