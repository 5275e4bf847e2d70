"""The options every command shares, and how they become a configuration.

It declares no command.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from agentfs.cli.show import Format
from agentfs.config import Loaded, load
from agentfs.errors import error

State = Annotated[str | None, typer.Option("--state", metavar="DIR", help="State directory.")]
Mount = Annotated[str | None, typer.Option("--mount", metavar="DIR", help="Mount the tree exactly here.")]
Listen = Annotated[str | None, typer.Option("--listen", metavar="HOST:PORT", help="Where HTTP is served.")]
Fuse = Annotated[bool | None, typer.Option("--fuse/--no-fuse", help="Serve a mount beside HTTP.")]
FuseBinding = Annotated[
    str | None, typer.Option("--fuse-binding", metavar="auto|wire|pyfuse3", help="What speaks with the kernel.")
]
Store = Annotated[str | None, typer.Option("--store", metavar="sqlite|memory", help="Store provider.")]
TlsCert = Annotated[str | None, typer.Option("--tls-cert", metavar="FILE", help="Serve HTTPS only, as this PEM says.")]
TlsKey = Annotated[str | None, typer.Option("--tls-key", metavar="FILE", help="The private key of --tls-cert.")]
TlsClientCa = Annotated[
    str | None, typer.Option("--tls-client-ca", metavar="FILE", help="Clients need a certificate of this authority.")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Instead of STATE/config.toml.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any option, e.g. limits.handles=64; repeat.")
]
Output = Annotated[Format | None, typer.Option("--output", "-o", help="Default: table on a terminal, else json.")]
Url = Annotated[str | None, typer.Option("--url", metavar="URL", help="Whose tree --token opens; else this state's.")]
Token = Annotated[
    str | None, typer.Option("--token", metavar="TOKEN", help="Mount what this opens. With --url: or AGENTFS_TOKEN.")
]
Link = Annotated[Path | None, typer.Option("--link", metavar="NAME", help="A symbolic link to the mount.")]


class Given:
    """The shared options as they were given; None where nothing was said."""

    def __init__(self, file: Path | None = None, settings: Sequence[str] | None = None, **flags: Any) -> None:
        self._file = file
        self._flags = flags
        self._settings = list(settings or ())

    def load(self) -> Loaded:
        """The configuration these, the environment and the file make together. EINVAL, ENOENT."""
        flags = dict(self._flags)
        for setting in self._settings:
            name, found, value = setting.partition("=")
            if not found:
                raise error(errno.EINVAL, "flag set", f"{setting!r}: want NAME=VALUE")
            if flags.get(name) is not None:
                raise error(errno.EINVAL, "flag set", f"{name} is given twice")
            flags[name] = value
        return load(flags, os.environ, self._file)

    def words(self) -> list[str]:
        """The same as words for another ``agentfs`` command in the same directory and environment."""
        words = [f"--config={self._file}"] if self._file else []
        for name, value in self._flags.items():
            if name == "fuse" and value is not None:
                words.append("--fuse" if value else "--no-fuse")
            elif value is not None:
                words.append(f"--{name.replace('_', '-')}={value}")
        return words + [f"--set={setting}" for setting in self._settings]
