"""What an engine is asked for a sandbox: everything closed that code in it can do without. No I/O."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from docker.types import LogConfig, Mount, Ulimit

from agentfs.containers.documents import Limits
from agentfs.containers.port import VIEW, Spec
from agentfs.errors import error
from agentfs.providers.containers.workdir import MIB, Owner

SESSION: Final = "agentfs.session"
AGENT: Final = "agentfs.agent"
RUNTIME: Final = "agentfs.runtime"
KEEP: Final = ["/bin/sh", "-c", "while sleep 3600; do :; done"]
"""The main process: it only waits, and is nobody's that code inside can signal or trace."""
OWN_PROCESSES: Final = 8  # init, the two that wait, and what begins a command
_LEAST_MEMORY_MB: Final = 6
_FILES: Final = 1024
_PROCESSES: Final = 1 << 14


def name_of(id: str) -> str:
    """What the container of session *id* is called."""
    return f"agentfs-{id}"


def keeper(owner: Owner) -> int:
    """The uid and gid of the main process: never that of the code."""
    return 65533 if owner.uid != 65533 else 65534


def config(
    spec: Spec, image: Mapping[str, Any], owner: Owner, runtime: str, main: Sequence[str] = (), **where: Any
) -> Any:
    """The arguments of ``create_container`` for *spec* of the inspected *image*; ``host_config``: of its own call.

    *main*: what runs in it as the code's user, with a stdin, until its end; empty: it only waits. *where*: ``workdir``
    of this machine, ``network`` and ``cpus`` of the engine, ``profile``: a file of `seccomp`, "" for Docker, whose own
    lets no code make namespaces.
    """
    user = f"{owner.uid}:{owner.gid}" if main else f"{keeper(owner)}:{keeper(owner)}"
    return {
        "image": image["Id"],
        "name": name_of(spec.id),
        "hostname": "agentfs",
        "entrypoint": list(main) or KEEP,
        "command": [],
        "user": user,
        "stdin_open": bool(main),
        "working_dir": spec.workdir,
        "labels": {SESSION: spec.id, AGENT: spec.agent, RUNTIME: runtime},
        "healthcheck": {"test": ["NONE"]},  # the image's own would run beside all limits of time
        "host_config": {
            **_walls(spec.limits, where["network"], where["profile"]),
            **_amounts(spec.limits, where["cpus"], is_docker=not where["profile"]),
            "mounts": _mounts(spec, str(where["workdir"])),
            "tmpfs": _scratch(spec, (image.get("Config") or {}).get("Volumes") or (), counts=not where["profile"]),
        },
    }


def _walls(limits: Limits, network: str, profile: str) -> dict[str, Any]:
    calls = [f"seccomp={profile}"] if profile else []  # else the engine's own stays, as that of AppArmor does
    return {
        "network_mode": network if limits.allow_network else "none",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges", *calls],
        "read_only": True,
        "ipc_mode": "private",
        "cgroupns": "private",
        "init": True,
        "log_config": LogConfig(type="none"),
    }


def _amounts(limits: Limits, cpus: int, *, is_docker: bool) -> dict[str, Any]:
    if limits.max_memory_mb < _LEAST_MEMORY_MB:
        raise error(errno.EINVAL, detail=f"limits.max_memory_mb: the engine gives no less than {_LEAST_MEMORY_MB}")
    memory, file = limits.max_memory_mb * MIB, limits.file_bytes
    # Podman would ask for more than some machines let it; of all sandboxes together, for they are of one user
    processes = () if is_docker else (_PROCESSES,)
    return {
        "mem_limit": memory,
        "memswap_limit": memory,  # both: so none of it is swap
        "nano_cpus": int(min(max(limits.max_cpu_cores, 0.01), cpus) * 1e9),
        "pids_limit": limits.max_processes + OWN_PROCESSES,
        "shm_size": min(64 * MIB, memory // 4),
        "ulimits": [
            Ulimit(name="nofile", soft=_FILES, hard=_FILES),
            Ulimit(name="core", soft=0, hard=0),
            Ulimit(name="fsize", soft=file, hard=file),
            *(Ulimit(name="nproc", soft=most, hard=most) for most in processes),
        ],
    }


def _mounts(spec: Spec, workdir: str) -> list[Mount]:
    mounts = [Mount(spec.workdir, workdir, type="bind")]
    if spec.view:
        mounts.append(Mount(VIEW, spec.view, type="bind"))
    return mounts + [Mount(inside, here, type="bind") for inside, here in spec.sockets.items()]


def _scratch(spec: Spec, volumes: Iterable[str], *, counts: bool) -> dict[str, str]:
    """/tmp in memory, and the same over each volume of the image, which would be a disk without a limit.

    *counts*: the engine can limit how many files are there; elsewhere the limit of memory does, which holds them all.
    """
    size = max(1, min(spec.limits.max_memory_mb // 2, spec.limits.max_disk_mb))
    options = f"rw,nosuid,nodev,exec,mode=1777,size={size}m"
    options += f",nr_inodes={spec.limits.max_files}" if counts else ""
    taken = {spec.workdir, VIEW, *spec.sockets}
    return {place.rstrip("/") or "/": options for place in {"/tmp", *volumes} if place.rstrip("/") not in taken}
