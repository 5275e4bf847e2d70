"""What a sandbox sees as its root: the machine's own programs, or an image, in the words of bwrap(1).

Nothing is started here; what is bound is read-only but for the workdir and the agent's view.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from agentfs.containers.port import VIEW, Spec
from agentfs.providers.containers.workdir import MIB, Owner

HOST: Final = "host"
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOSTNAME: Final = "agentfs"
_IMAGE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_LINKS: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC: Final = (
    "alternatives", "ca-certificates", "ca-certificates.conf", "ethertypes", "ld.so.cache", "ld.so.conf",
    "ld.so.conf.d", "localtime", "magic", "mime.types", "pki/ca-trust/extracted", "pki/tls/certs", "protocols",
    "services", "ssl/certs", "ssl/openssl.cnf", "timezone",
)  # fmt: skip
_OURS: Final = frozenset({"proc", "sys", "dev", "tmp", VIEW[1:]})
_NSSWITCH: Final = b"passwd: files\ngroup: files\nhosts: files dns\n"
_HOSTS: Final = b"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 agentfs\n"


def is_name(image: str) -> bool:
    """Whether *image* can be the name of one: no path."""
    return _IMAGE.match(image) is not None


def words(spec: Spec, workdir: str, image: Path | None, seen: Callable[[str], str]) -> Iterator[str]:
    """The options of bwrap for *spec*, whose files are in *workdir*; *image* is a root file system, None the host's.

    *seen*: the path of a directory or file of this machine as bwrap will find it.
    """
    yield from ("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv")
    yield from ("--hostname", HOSTNAME)
    if spec.limits.allow_network:
        yield "--share-net"
    yield from _host(spec) if image is None else _image(spec, image, seen)
    size = str(max(1, spec.limits.max_memory_mb // 2) * MIB)
    yield from ("--proc", "/proc", "--dev", "/dev")
    for place in ("/dev/shm", "/tmp"):  # noqa: S108
        yield from ("--perms", "1777", "--size", size, "--tmpfs", place)
    yield from ("--bind", seen(workdir), spec.workdir)
    if spec.view:
        yield from ("--bind", seen(spec.view), VIEW)
    for inside, outside in spec.sockets.items():
        yield from ("--bind", seen(outside), inside)


def made(spec: Spec, owner: Owner, image: Path | None) -> dict[str, bytes]:
    """The small files that are written for *spec*, by their paths inside."""
    line = f"agent:x:{owner.uid}:{owner.gid}:agent:{spec.workdir}:/bin/sh\n"
    files = {
        "/etc/passwd": f"root:x:0:0:root:/:/bin/sh\n{line}nobody:x:65534:65534:nobody:/:/bin/sh\n".encode(),
        "/etc/group": f"root:x:0:\nagent:x:{owner.gid}:\nnogroup:x:65534:\n".encode(),
        "/etc/hosts": _HOSTS,
        "/etc/nsswitch.conf": _NSSWITCH,
    }
    if spec.limits.allow_network and Path("/etc/resolv.conf").exists():
        files["/etc/resolv.conf"] = Path("/etc/resolv.conf").read_bytes()
    if image is not None and (image / "etc").exists():  # read-only: only over files that it has
        return {path: data for path, data in files.items() if _is_file(image / path[1:])}
    return files


def _host(spec: Spec) -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr")
    for name in _LINKS:
        path = Path("/") / name
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))
    for name in _ETC:
        yield from ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")
    yield from ("--dir", "/var", "--symlink", "../tmp", "/var/tmp")  # noqa: S108


def _image(spec: Spec, image: Path, seen: Callable[[str], str]) -> Iterator[str]:
    """Its top directories one by one: a mount point for the workdir can be made beside them."""
    hidden = set(_OURS)
    if not (image / spec.workdir[1:]).is_dir():
        hidden.add(spec.workdir.split("/")[1])
    for name in sorted(os.listdir(image)):
        path = image / name
        if name in hidden:
            continue
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), f"/{name}")
        elif path.is_dir() or path.is_file():
            yield from ("--ro-bind", f"{seen(str(image))}/{name}", f"/{name}")


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
