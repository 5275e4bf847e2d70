"""Cloning a repository into a workdir: git in a sandbox, with the network and no hooks, submodules or configuration.

The secret goes in through the environment and is kept nowhere. Where there is no bwrap for it, git runs without a
sandbox, as the sandboxes' user.
"""

from __future__ import annotations

import base64
import errno
import os
import signal
import subprocess
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import anyio
import anyio.to_thread
import msgspec

from agentfs.containers.documents import Limits, Repo
from agentfs.containers.port import Command, Exit, Happening, Spec
from agentfs.errors import error
from agentfs.providers.containers.reach import Reach
from agentfs.providers.containers.rootfs import PATH
from agentfs.providers.containers.workdir import Owner, Workdir

_PROCESSES: Final = 64  # git has at least so many, whatever the session has
_MEMORY_MB: Final = 256
_WORDS_MAX: Final = 65_536  # far more than is told: what is cut could be half of a secret
_SCRIPT: Final = """set -e
umask 022; ulimit -f "$5"; cd "$1"; top=$(pwd -P)
git init -q .
git remote add origin "$2"
git fetch -q --depth 1 --no-tags --no-recurse-submodules origin "$3"
git checkout -q --detach FETCH_HEAD
if [ -n "$4" ]; then
  mkdir .git/subdir
  (
    none() { echo "no directory $4" >&2; exit 66; }
    cd -P -- "./$4" && [ "$(pwd -P)" = "$top/${4%/}" ] || none "$@"  # a link on the way may lead out
    case "$4/" in (.git/*) none "$@";; esac
    find . -mindepth 1 -maxdepth 1 -exec mv -t "$top/.git/subdir" -- {} +
  )
  find . -mindepth 1 -maxdepth 1 ! -name .git -exec rm -rf -- {} +
  find .git/subdir -mindepth 1 -maxdepth 1 -exec mv -t . -- {} +
  rmdir .git/subdir
fi
"""
_PROXIES: Final = frozenset({"http_proxy", "https_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir"})
_CONFIG: Final = {
    "core.hooksPath": "/dev/null", "core.fsmonitor": "false", "core.askPass": "", "credential.helper": "",
    "protocol.allow": "never", "protocol.https.allow": "always", "protocol.http.allow": "always",
    "submodule.recurse": "false", "init.defaultBranch": "main", "advice.detachedHead": "false", "gc.auto": "0",
}  # fmt: skip


Run: TypeAlias = Callable[[Spec, Command, Workdir, Mapping[str, bytes]], AsyncGenerator[Happening, None]]
"""`agentfs.providers.containers.bubblewrap.Bubblewrap.enclose`."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """How git ended and what it said; ``cause``: which limit ended it."""

    code: int
    said: str
    cause: str = ""


async def clone(
    workdir: Workdir, owner: Owner, repo: Repo, secret: str, limits: Limits, run: Run | None = None
) -> None:
    """Fill *workdir* with what *repo* has. *secret*: a token, or ``USER:TOKEN``; "" for none. *run*: the sandbox.

    EREMOTEIO with git's words, cleaned of it; ENOENT for a missing subdir or git; EFBIG past the limits of the disk;
    ENOMEM.
    """
    words = [repo.url, repo.git_ref or "HEAD", repo.subdir, str(limits.file_bytes // 512)]
    if run is None:
        ended = await _bare(workdir, owner, words, _environment(secret), limits)
    else:
        ended = await _enclosed(run, workdir, words, _environment(secret), limits)
    if ended.cause == "memory":
        raise error(errno.ENOMEM, detail="repo: git ran into its limit of memory")
    if ended.cause in ("disk", "file") or _is_cut(ended) or await anyio.to_thread.run_sync(workdir.is_over, limits):
        most = f"max_disk_mb ({limits.max_disk_mb}), limits.max_file_mb ({limits.max_file_mb}) or limits.max_files"
        raise error(errno.EFBIG, detail=f"repo: over limits.{most}")
    if ended.code == 66:
        raise error(errno.ENOENT, detail=f"repo.subdir: no directory {repo.subdir!r} in it")
    if ended.code:
        raise error(errno.EREMOTEIO, detail=f"repo: {_cleaned(ended.said, secret)}")


async def _enclosed(run: Run, workdir: Workdir, words: Sequence[str], env: dict[str, str], limits: Limits) -> _Ended:
    most = msgspec.structs.replace(
        limits, allow_network=True, max_processes=max(limits.max_processes, _PROCESSES),
        max_memory_mb=max(limits.max_memory_mb, _MEMORY_MB),
    )  # fmt: skip
    spec = Spec(workdir.path.name, "", limits=most)
    command = Command("git", ["/bin/sh", "-c", _SCRIPT, "clone", spec.workdir, *words], env)
    said = bytearray()
    async with aclosing(run(spec, command, workdir, _seen(env))) as happenings:
        async for happening in happenings:
            if isinstance(happening, Exit):
                return _Ended(happening.code, said.decode(errors="replace"), happening.cause)
            if happening.stream == "stderr":
                said += happening.data[: max(0, _WORDS_MAX - len(said))]
    raise error(errno.EREMOTEIO, detail="the sandbox did not tell how git ended")


def _seen(env: dict[str, str]) -> dict[str, bytes]:
    """What of this machine git needs besides its programs, by where it is inside; *env* is told so."""
    files = {"/etc/hosts": Path("/etc/hosts")}
    for name in [name for name in env if name.lower() == "ssl_cert_file"]:
        files["/etc/ssl/given.pem"] = Path(env[name])
        env[name] = "/etc/ssl/given.pem"
    return {inside: path.read_bytes() for inside, path in files.items() if path.is_file()}


async def _bare(workdir: Workdir, owner: Owner, words: Sequence[str], env: Mapping[str, str], limits: Limits) -> _Ended:
    reach = Reach(owner if os.geteuid() == 0 else None, [str(workdir.path)])
    argv = [*reach.before(), "/bin/sh", "-c", _SCRIPT, "clone", reach.seen(str(workdir.path)), *words]
    is_over = False
    async with await anyio.open_process(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=env, start_new_session=True
    ) as git:

        async def watch() -> None:
            nonlocal is_over
            await workdir.watch(limits)
            is_over = True
            _kill(git.pid)

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                said = await _said(git)
                await git.wait()
                group.cancel_scope.cancel()
        finally:
            if git.returncode is None:
                _kill(git.pid)
    return _Ended(git.returncode or 0, said, "disk" if is_over else "")


def _environment(secret: str) -> dict[str, str]:
    config = dict(_CONFIG)
    if secret:
        config["http.extraHeader"] = f"Authorization: Basic {_basic(secret)}"
        config["http.followRedirects"] = "false"  # else wherever it is sent to learns the secret
    pairs = {f"GIT_CONFIG_{part}_{n}": word for n, pair in enumerate(config.items()) for part, word in
             zip(("KEY", "VALUE"), pair, strict=True)}  # fmt: skip
    fixed = {
        "PATH": PATH, "HOME": "/nonexistent", "LANG": "C.UTF-8", "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_COUNT": str(len(config)),
        "GIT_LFS_SKIP_SMUDGE": "1",
    }  # fmt: skip
    proxies = {name: value for name, value in os.environ.items() if name.lower() in _PROXIES}
    return {**fixed, **proxies, **pairs}


async def _said(git: anyio.abc.Process) -> str:
    said = bytearray()
    assert git.stderr is not None
    async for piece in git.stderr:
        said += piece[: max(0, _WORDS_MAX - len(said))]
    return said.decode(errors="replace")


def _basic(secret: str) -> str:
    pair = secret if ":" in secret else f"x-access-token:{secret}"
    return base64.b64encode(pair.encode()).decode()


def _is_cut(ended: _Ended) -> bool:
    """Whether git, or a part of it, wrote a file that is larger than one may be."""
    words = f"signal {signal.SIGXFSZ:d}", os.strerror(errno.EFBIG)
    return ended.code == 128 + signal.SIGXFSZ or any(word in ended.said for word in words)


def _cleaned(said: str, secret: str) -> str:
    """*said* without the secret, in any form in which a server could tell it back."""
    basic = _basic(secret) if secret else ""
    for word in (basic, basic.rstrip("="), secret, secret.partition(":")[2]):
        said = said.replace(word, "[secret]") if word else said
    return " ".join(said.split())[:500] or "git failed"


def _kill(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
