"""Every option of the runtime, declared once, and where its value came from: flag, environment, file or default.

It reads one file and starts nothing; what the values are used for is the runtime's business.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from agentfs import fault, toml
from agentfs.errors import error
from agentfs.limits import Limits

FILE: Final = "config.toml"
PASSPHRASE: Final = "AGENTFS_KEYS_PASSPHRASE"
PHRASE_FD: Final = "AGENTFS_KEYS_FD"
_FOR_CLIENTS = {"AGENTFS_URL", "AGENTFS_SOCKET", "AGENTFS_TOKEN", "AGENTFS_CA", "AGENTFS_CERT", "AGENTFS_KEY"}
_FOR_KEYS = {PASSPHRASE, PHRASE_FD}
FOREIGN: Final = frozenset({"AGENTFS_CONFIG", "AGENTFS_ROOT", "AGENTFS_AGENT", fault.ENV} | _FOR_KEYS | _FOR_CLIENTS)
PATHS: Final = frozenset({"state", "mount", "tls_cert", "tls_key", "tls_client_ca"})
DEMO: Final = {"kind": "exec", "argv": ["python3", "-m", "agentfs.demo"]}

Listen = Annotated[str, msgspec.Meta(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+):[0-9]{1,5}\Z")]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4096, pattern=r"^[^\x00]*\Z")]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}\Z")]
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 50)]
Url = Annotated[str, msgspec.Meta(pattern=r"^(https?://[^/@?#\s\x00]+(/[^?#\s\x00]*)?)?\Z", max_length=4096)]
Store = Literal["sqlite", "memory"]
Keeping = Literal["process", "inline"]
Keys = Literal["sealed", "memory", "keyring"]
Fuse = Literal["auto", "wire", "pyfuse3"]
Level = Literal["debug", "info", "warning", "error"]


class Upstream(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server of models: what it speaks, where it is, and its key: ``secret:NAME`` of the runtime's secrets.

    ``url`` "" is Anthropic's own; ``embedded`` runs in this process and has neither.
    """

    kind: Literal["openai", "anthropic", "workers_ai", "embedded"]
    url: Url = ""
    key: Annotated[str, msgspec.Meta(pattern=r"^(secret:[^\x00/]+)?\Z")] = ""

    def __post_init__(self) -> None:
        if self.kind == "embedded" and (self.url or self.key):
            raise ValueError("url, key: an embedded model has neither")
        if self.kind in ("openai", "workers_ai") and not self.url:
            raise ValueError(f"url: {self.kind} needs one")
        try:
            parts = urlsplit(self.url)
            _ = parts.port, (parts.hostname or "").encode("idna")
        except ValueError as exc:  # whoever connects would fail so, each time
            raise ValueError(f"url: {exc}") from None
        if not self.url.isprintable():
            raise ValueError("url: it has characters that do not print")


class Sandboxes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An engine of sandboxes: ``image`` is for a request that names none; what an hour costs is in micro-USD.

    Docker's alone are ``socket``: where its engine listens; ``pull``: fetch images that are not there; ``network``:
    which network sessions join that may have one, "" for none.
    """

    kind: Literal["bubblewrap", "docker"]
    socket: Annotated[str, msgspec.Meta(pattern=r"^/[^\x00]+\Z", max_length=100)] = "/var/run/docker.sock"
    image: Annotated[str, msgspec.Meta(pattern=r"^[^\s\x00]*\Z", max_length=500)] = ""
    pull: bool = False
    network: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]*\Z", max_length=120)] = "bridge"
    usd_per_hour: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] = 0


@dataclass(frozen=True, slots=True)
class Config:
    """The runtime's options, checked and with absolute paths. ``mount`` is None exactly when ``fuse`` is False.

    ``keeper``: what process holds the keys; ``keys``: where they are and what opens them.
    ``hosts``: names accepted in a Host header beside loopback and the listen host. ``default_program``: the config
    document an agent made by ``mkdir`` gets. ``drain_seconds``: how long a stop waits for running ticks.
    ``tls_cert`` and ``tls_key``: both or none; ``tls_client_ca`` only beside them.
    """

    state: Path
    mount: Path | None
    listen: str = "127.0.0.1:8080"
    fuse: bool = True
    fuse_binding: Fuse = "auto"
    store: Store = "sqlite"
    keeper: Keeping = "process"
    keys: Keys = "sealed"
    hosts: tuple[str, ...] = ()
    default_program: Mapping[str, Any] = field(default_factory=lambda: dict(DEMO))
    log_level: Level = "info"
    drain_seconds: int = 10
    providers: Mapping[str, Upstream] = field(default_factory=dict)
    sandboxes: Mapping[str, Sandboxes] = field(default_factory=dict)
    discover: bool = True
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def address(self) -> tuple[str, int]:
        """``listen`` as host (an IPv6 one without brackets) and port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


@dataclass(frozen=True, slots=True)
class Option:
    """One declared option: its dotted name, the type its value must have, its default (None: computed) and use."""

    name: str
    kind: Any
    default: Any
    text: str

    @property
    def env(self) -> str:
        """The environment variable that sets it."""
        return "AGENTFS_" + self.name.upper().replace(".", "_")


def _declared() -> Iterator[Option]:
    yield Option("state", Text, None, "state directory: store, token, log")
    yield Option("mount", Text, None, "where the tree is mounted")
    yield Option("listen", Listen, "127.0.0.1:8080", "HOST:PORT of the HTTP face")
    yield Option("fuse", bool, True, "serve a mount beside HTTP")
    yield Option("fuse_binding", Fuse, "auto", "what speaks with the kernel: wire (ours), pyfuse3, or what works")
    yield Option("store", Store, "sqlite", "store provider; memory forgets everything at exit")
    yield Option("keeper", Keeping, "process", "who holds the keys: a process of its own, or inline, to develop")
    yield Option("keys", Keys, "sealed", "what opens them: file or passphrase, the OS keyring; memory forgets at exit")
    yield Option("hosts", tuple[Text, ...], (), "further NAME or NAME:PORT accepted in a Host header")
    yield Option("default_program", dict[str, Any], DEMO, "config document of an agent made by mkdir")
    yield Option("log_level", Level, "info", "least severe record that is logged")
    yield Option("drain_seconds", Annotated[int, msgspec.Meta(ge=0, le=3600)], 10, "wait for running ticks at a stop")
    yield Option("providers", dict[Name, Upstream], {}, "servers of models by name: kind, url, key")
    yield Option("sandboxes", dict[Name, Sandboxes], {}, "engines of sandboxes by name: kind, socket, usd_per_hour")
    yield Option("discover", bool, True, "use what is found here: models on their usual ports, engines of sandboxes")
    yield Option("tls_cert", Text, None, "PEM certificate of the HTTP face, which then speaks TLS only")
    yield Option("tls_key", Text, None, "PEM private key of tls_cert")
    yield Option("tls_client_ca", Text, None, "PEM authority of the certificates that clients then need")
    for limit in fields(Limits):
        yield Option(f"limits.{limit.name}", Count, limit.default, "a limit, see agentfs/limits.py")


OPTIONS: Final = {option.name: option for option in _declared()}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A `Config` and, by option name, the origin of each value: ``flag``, ``env X``, ``file F:12`` or ``default``."""

    config: Config
    origins: Mapping[str, str]

    def items(self) -> Iterator[tuple[str, object, str]]:
        """Name, value (as JSON can hold it) and origin of every option, in the order declared."""
        for name in OPTIONS:
            top, _, rest = name.partition(".")
            value = getattr(getattr(self.config, top), rest) if rest else getattr(self.config, top)
            yield name, str(value) if isinstance(value, Path) else value, self.origins[name]


@dataclass(frozen=True, slots=True)
class _Found:
    """A checked value of one option and where it was found."""

    value: Any
    origin: str


def load(flags: Mapping[str, Any], env: Mapping[str, str], file: Path | None = None) -> Loaded:
    """The configuration: flag > environment > *file* > default.

    *flags* by option name, as text or as the value itself; None is "not given". *file* must exist; without it
    ``AGENTFS_CONFIG``, else ``config.toml`` of the state directory if there is one. EINVAL names origin and option
    for an unknown key or a wrong value; ENOENT when a named file is absent.
    """
    found = _from_env(env) | _from_flags(flags)
    named = file or (Path(env["AGENTFS_CONFIG"]) if env.get("AGENTFS_CONFIG") else None)
    state = Path(found["state"].value) if "state" in found else _default_state(env)
    source = named or state / FILE
    raw = _content(source, is_required=named is not None)
    if raw is not None:
        lower = _from_file(toml.parse(raw, os.path.abspath(source)))  # noqa: PTH100 - keeps symbolic links
        if named is None and "state" in lower:
            raise error(errno.EINVAL, lower["state"].origin[5:], "state: a file inside it cannot name it")
        found = lower | found
    return _loaded(found, env)


def _loaded(found: dict[str, _Found], env: Mapping[str, str]) -> Loaded:
    state = Path(found["state"].value) if "state" in found else _default_state(env)
    values = {name: found[name].value if name in found else option.default for name, option in OPTIONS.items()}
    limits = {name[7:]: values.pop(name) for name in list(values) if name.startswith("limits.")}
    values |= {"state": state, "mount": None, "limits": Limits(**limits)}
    if values["fuse"]:
        values["mount"] = Path(found["mount"].value) if "mount" in found else _default_mount(env, state)
    for name in PATHS - {"state", "mount"}:
        values[name] = Path(values[name]) if values[name] else None
    origins = {name: found[name].origin if name in found else "default" for name in OPTIONS}
    if not values["fuse"]:
        origins["mount"] = origins["fuse"]
    config = Config(**values)
    _check_tls(config, origins)
    if config.mount is not None and state.is_relative_to(config.mount):
        raise error(errno.EINVAL, str(config.mount), f"mount: it would cover the state directory {state}")
    return Loaded(config, origins)


def _check_tls(config: Config, origins: Mapping[str, str]) -> None:
    """EINVAL for options that only make sense together."""
    for name, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert"), ("tls_client_ca", "tls_cert")):
        if getattr(config, name) is not None and getattr(config, other) is None:
            where = origins[name].partition(" ")[2] or f"flag {name}"
            raise error(errno.EINVAL, where, f"{name}: want {other} beside it")


def _from_flags(flags: Mapping[str, Any]) -> dict[str, _Found]:
    found = {}
    for name, value in flags.items():
        if value is not None:
            option = _option(name, f"flag {name}")
            is_text = isinstance(value, str)
            found[name] = _Found(_checked(option, value, f"flag {name}", Path.cwd(), is_text=is_text), "flag")
    return found


def _from_env(env: Mapping[str, str]) -> dict[str, _Found]:
    names = {option.env: option for option in OPTIONS.values()}
    found = {}
    for key in sorted(key for key in env if key.startswith("AGENTFS_") and key not in FOREIGN):
        if key not in names:
            raise error(errno.EINVAL, key, "unknown environment variable; agentfs config lists those that exist")
        if env[key]:  # set but empty is the shell's way to unset
            option = names[key]
            found[option.name] = _Found(_checked(option, env[key], key, Path.cwd(), is_text=True), f"env {key}")
    return found


def _from_file(document: toml.Document) -> dict[str, _Found]:
    found = {}
    for key, value in _leaves(document.values, ()):
        where = document.where(key)
        option = _option(".".join(key), where)
        if option.name in ("providers", "sandboxes") and isinstance(value, dict):
            for name, place in value.items():
                _checked(option, {name: place}, document.where((*key, name)), Path())
        found[option.name] = _Found(_checked(option, value, where, Path(document.name).parent), f"file {where}")
    return found


def _leaves(values: Mapping[str, Any], top: toml.Key) -> Iterator[tuple[toml.Key, Any]]:
    """What could be options: a table is entered only where option names have a dot."""
    for name, value in values.items():
        key = (*top, name)
        if key == ("limits",) and isinstance(value, dict):
            yield from _leaves(value, key)
        else:
            yield key, value


def _option(name: str, where: str) -> Option:
    if name not in OPTIONS:
        raise error(errno.EINVAL, where, f"unknown key {name!r}; agentfs config lists those that exist")
    return OPTIONS[name]


def _checked(option: Option, raw: Any, where: str, base: Path, *, is_text: bool = False) -> Any:
    """*raw* as a value of *option*: text of flags and environment is read first, paths become absolute."""
    try:
        value = msgspec.convert(_read(option, raw) if is_text else raw, option.kind, strict=not is_text)
    except msgspec.DecodeError as exc:
        raise error(errno.EINVAL, where, f"{option.name}: {exc}") from None  # its context may hold a key
    reason = _fault(option, value)
    if reason:
        raise error(errno.EINVAL, where, f"{option.name}: {reason}")
    return os.path.normpath(base / _home(value)) if option.name in PATHS else value


def _read(option: Option, text: str) -> Any:
    """The form that text of a flag or of the environment has: a list by commas, a document as JSON."""
    if option.name == "hosts":
        return [part.strip() for part in text.split(",") if part.strip()]
    if option.name in ("default_program", "providers", "sandboxes"):
        return msgspec.json.decode(text)
    return text.lower() if option.kind is bool else text


def _fault(option: Option, value: Any) -> str:
    if option.name == "listen" and int(value.rpartition(":")[2]) > 65535:
        return "port over 65535"
    if option.name == "default_program" and not isinstance(value.get("kind"), str):
        return 'want a document with a text "kind"'
    if option.name in PATHS and _home(value).startswith("~"):
        return f"no such user in {value!r}"
    return ""


def _home(path: str) -> str:
    """*path* with ``~`` and ``~user`` expanded; that of an unknown user stays."""
    return os.path.expanduser(path)  # noqa: PTH111 - pathlib raises for an unknown user


def _content(file: Path, *, is_required: bool) -> bytes | None:
    try:
        with file.open("rb") as handle:
            return handle.read(toml.SIZE_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        if is_required:
            raise error(errno.ENOENT, str(file), "the configuration file that was named") from None
        return None


def _default_state(env: Mapping[str, str]) -> Path:
    """``$XDG_STATE_HOME/agentfs`` or ``~/.local/state/agentfs``; a relative variable is ignored (XDG specification)."""
    home = Path(env.get("XDG_STATE_HOME", ""))
    try:
        return (home if home.is_absolute() else Path.home() / ".local" / "state") / "agentfs"
    except RuntimeError as exc:
        raise error(errno.EINVAL, "flag state", "state: there is no home directory, so name one") from exc


def _default_mount(env: Mapping[str, str], state: Path) -> Path:
    """``/run/agentfs`` for root, else below ``XDG_RUNTIME_DIR``, else in the state directory."""
    if os.geteuid() == 0:
        return Path("/run/agentfs")
    runtime = Path(env.get("XDG_RUNTIME_DIR", ""))
    return runtime / "agentfs" if runtime.is_absolute() else state / "mnt"
