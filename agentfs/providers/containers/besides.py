"""What an engine must be given besides that speaks Docker's language and is not Docker: Podman. No calls of it."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import anyio
import anyio.to_thread

from agentfs.containers.port import Spec
from agentfs.errors import error
from agentfs.providers.containers import seccomp
from agentfs.providers.containers.daemon import LONG_S


async def besides(profile: Path, spec: Spec) -> str:
    """The path *profile*, where what `seccomp` refuses is written: Podman's own lets code make namespaces.

    EINVAL naming what *spec* binds and is not there: Podman would make it.
    """
    for path in [*filter(None, [spec.view]), *spec.sockets.values()]:
        with anyio.fail_after(LONG_S):  # in a process: it may be a mount that this one serves
            found = await anyio.run_process(["test", "-e", path], check=False)
        if found.returncode:
            raise error(errno.EINVAL, detail=f"bind source path does not exist: {path}")
    await anyio.to_thread.run_sync(_put, profile, seccomp.profile())
    return str(profile)


def _put(path: Path, data: bytes) -> None:
    """Have *data* in *path*, which may be read meanwhile."""
    if not path.exists() or path.read_bytes() != data:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            file.write(data)
        Path(file.name).rename(path)
