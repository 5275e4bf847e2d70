"""Commands in sandboxes for tests: by a provider in this process, and as a user without rights in one of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import msgspec
import trio

from agentfs.containers.documents import Limits
from agentfs.containers.port import Command, Exit, Output, Spec
from agentfs.providers.containers.bubblewrap import Bubblewrap
from agentfs.providers.containers.cgroup import Groups
from agentfs.providers.containers.workdir import Owner

NOBODY = 65534
OWNER = Owner(65532, 65532) if os.geteuid() == 0 else Owner(os.geteuid(), os.getegid())
BASE = Path(__file__).parent.parent
UNSHARED = """set -e
closed=$1 prefix=$2; shift 2
if [ -n "$closed" ]; then
  mount -n --rbind "$prefix" /mnt; mount -n -t tmpfs -o mode=0755 closed "$closed"
  mkdir -p "$prefix"; mount -n --move /mnt "$prefix"
fi
exec setpriv --reuid 65534 --regid 65534 --clear-groups -- "$@"
"""


class Case(msgspec.Struct, frozen=True):
    """One command in a session of its own."""

    argv: Sequence[str]
    limits: Limits = Limits()
    stdin: bytes = b""
    env: dict[str, str] = {}
    cwd: str = ""


class Ran(msgspec.Struct):
    """How it went."""

    code: int = -1
    cause: str = ""
    stdout: bytes = b""
    stderr: bytes = b""
    cpu_ms: int | None = None
    peak_memory_bytes: int | None = None

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


def provider(top: Path, *, is_grouped: bool = True) -> Bubblewrap:
    """Over *top*, with control groups where there are any, or as where there are none."""
    top.mkdir(exist_ok=True, parents=True)
    groups = None if is_grouped else Groups("agentfs-none", top / "none", [])
    return Bubblewrap(top / "containers", OWNER, top / "images", groups=groups)


@asynccontextmanager
async def opened(top: Path, *, is_grouped: bool = True) -> AsyncIterator[Bubblewrap]:
    """A provider, its sessions removed at the end; it must be well."""
    box = provider(top, is_grouped=is_grouped)
    try:
        assert await box.health() == ""
        yield box
    finally:
        with trio.CancelScope(shield=True):
            for session in await box.found():
                await box.remove(session)
            await box.aclose()


async def collected(box: Bubblewrap, spec: Spec, command: Command) -> Ran:
    """*command* in the session of *spec*, to its end."""
    ran = Ran()
    async with aclosing(box.run(spec, command)) as happenings:
        async for happening in happenings:
            if isinstance(happening, Output):
                assert 0 < len(happening.data) <= 1 << 16
                name = happening.stream
                setattr(ran, name, getattr(ran, name) + happening.data)
            elif isinstance(happening, Exit):
                ran.code, ran.cause, used = happening.code, happening.cause, happening.used
                ran.cpu_ms, ran.peak_memory_bytes = used.cpu_ms, used.peak_memory_bytes
    return ran


async def play(top: Path, case: Case, *, is_grouped: bool) -> Ran:
    """*case* in a new session."""
    async with opened(top, is_grouped=is_grouped) as box:
        spec = Spec("case", "alice", limits=case.limits)
        await box.make(spec)
        return await collected(box, spec, Command("one", case.argv, case.env, case.cwd, case.stdin))


def play_as_nobody(case: Case) -> Ran:
    """*case* by a runtime without any right, in a process of its own; to be called by root."""
    prefix = Path(sys.base_prefix)
    closed = [str(above) for above in reversed(prefix.parents) if not above.stat().st_mode & 1]
    top = tempfile.mkdtemp()
    try:
        os.chown(top, NOBODY, NOBODY)
        child = ["unshare", "--mount", "--propagation", "slave", "/bin/sh", "-c", UNSHARED, "nobody"]
        words = [*child, closed[0] if closed else "", str(prefix), sys.executable, "-m", "boxes", top]
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{BASE}:{BASE / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            words, input=msgspec.json.encode(case), capture_output=True, env=env, cwd="/", timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return msgspec.json.decode(done.stdout, type=Ran)
    finally:
        shutil.rmtree(top)


if __name__ == "__main__":
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Case)
    found = trio.run(lambda: play(Path(sys.argv[1]), asked, is_grouped=True))
    sys.stdout.buffer.write(msgspec.json.encode(found))
