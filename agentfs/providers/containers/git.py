"""Cloning a repository into a workdir: git as the sandboxes' user, with no hooks, submodules or configuration.

The secret goes in through the environment and is kept nowhere.
"""

from __future__ import annotations

import base64
import errno
import os
import signal
import subprocess
from collections.abc import Mapping
from typing import Final

import anyio
import anyio.to_thread

from agentfs.containers.documents import Limits, Repo
from agentfs.errors import error
from agentfs.providers.containers.reach import Reach
from agentfs.providers.containers.rootfs import PATH
from agentfs.providers.containers.workdir import Owner, Workdir

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


async def clone(workdir: Workdir, owner: Owner, repo: Repo, secret: str, limits: Limits) -> None:
    """Fill *workdir* with what *repo* has. *secret*: a token, or ``USER:TOKEN``; "" for none.

    EREMOTEIO with git's words, cleaned of it; ENOENT for a missing subdir or git; EFBIG past the limits of the disk.
    """
    reach = Reach(owner if os.geteuid() == 0 else None, [str(workdir.path)])
    words = [reach.seen(str(workdir.path)), repo.url, repo.git_ref or "HEAD", repo.subdir]
    argv = [*reach.before(), "/bin/sh", "-c", _SCRIPT, "clone", *words, str(limits.file_bytes // 512)]
    is_over = False
    async with await anyio.open_process(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=_environment(secret), start_new_session=True
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
    if is_over or _is_cut(git.returncode, said) or await anyio.to_thread.run_sync(workdir.is_over, limits):
        raise error(errno.EFBIG, detail=f"repo: over limits.max_disk_mb ({limits.max_disk_mb}) or limits.max_files")
    if git.returncode == 66:
        raise error(errno.ENOENT, detail=f"repo.subdir: no directory {repo.subdir!r} in it")
    if git.returncode:
        raise error(errno.EREMOTEIO, detail=f"repo: {_cleaned(said, secret)}")


def _environment(secret: str) -> Mapping[str, str]:
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


def _is_cut(code: int | None, said: str) -> bool:
    """Whether git, or a part of it, wrote a file that is larger than all may be together."""
    return code == 128 + signal.SIGXFSZ or f"signal {signal.SIGXFSZ:d}" in said or os.strerror(errno.EFBIG) in said


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
