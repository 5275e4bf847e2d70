"""The mount as any program sees it: paths only, no import of the runtime; what POSIX promises of the calls we claim.

``python -m conformance.posix DIRECTORY`` tests a directory of values (an agent's ``kv``) from a process of its own and
prints every violation. Exit codes: 0 none, 1 violations.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final


@contextmanager
def refused(*codes: int) -> Iterator[None]:
    """The body must fail with one of *codes*."""
    names = " or ".join(errno.errorcode[code] for code in codes)
    try:
        yield
    except OSError as exc:
        assert exc.errno in codes, f"want {names}, got {errno.errorcode[exc.errno or 0]}"
        return
    raise AssertionError(f"want {names}, but it was done")


def create_is_exclusive(top: Path) -> None:
    """O_EXCL refuses what is there; O_CREAT alone opens it; O_TRUNC empties it at the close."""
    path = top / "posix"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with refused(errno.EEXIST):
        os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    path.write_bytes(b"text")
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    assert path.read_bytes() == b"text"
    os.close(os.open(path, os.O_TRUNC | os.O_WRONLY))
    deadline = time.monotonic() + 30  # stored at the release, which the kernel sends behind the close
    while path.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.read_bytes() == b""


def bytes_are_exact(top: Path) -> None:
    """Appends go to the end, truncation cuts and extends with zeros, sizes are true."""
    path = top / "posix"
    path.write_bytes(bytes(range(256)))
    with path.open("ab") as file:
        file.write(b"+end")
    assert path.read_bytes() == bytes(range(256)) + b"+end"
    os.truncate(path, 3)
    assert path.read_bytes() == b"\0\1\2"
    os.truncate(path, 5)
    assert path.read_bytes() == b"\0\1\2\0\0" and path.stat().st_size == 5
    with path.open("r+b") as file:
        file.seek(1)
        file.write(b"X")
    assert path.read_bytes() == b"\0X\2\0\0"


def rename_replaces(top: Path) -> None:
    """Atomically, and an open descriptor keeps what it read."""
    one, two = top / "posix", top / "posix2"
    one.write_bytes(b"one")
    two.write_bytes(b"two")
    with two.open("rb") as old:
        one.rename(two)
        assert two.read_bytes() == b"one" and not one.exists()
        assert old.read() == b"two"
    with refused(errno.ENOENT):
        one.rename(two)


def unlinked_files_stay_open(top: Path) -> None:
    """A descriptor reads on after the unlink; what it then writes is lost with ESTALE."""
    path = top / "posix"
    path.write_bytes(b"kept")
    with path.open("rb") as file:
        path.unlink()
        assert file.read() == b"kept"
    with refused(errno.ENOENT):
        path.unlink()


def links_and_nodes_are_refused(top: Path) -> None:
    """EPERM for symlink, link and device nodes; EACCES for directories where none can be made."""
    path = top / "posix"
    path.write_bytes(b"x")
    with refused(errno.EPERM):
        os.symlink("x", top / "link")
    with refused(errno.EPERM):
        os.link(path, top / "link")
    with refused(errno.EPERM):
        os.mkfifo(top / "fifo")
    with refused(errno.EACCES, errno.EPERM):
        os.mkdir(top / "sub")


def modes_and_times(top: Path) -> None:
    """chmod to what is shown succeeds, to anything else EPERM; times are accepted; nlink is 1; blocks fit the size."""
    path = top / "posix"
    path.write_bytes(b"x" * 1000)
    st = path.stat()
    os.chmod(path, stat.S_IMODE(st.st_mode))
    with refused(errno.EPERM):
        os.chmod(path, 0o777)
    os.utime(path, (1, 1))
    assert st.st_nlink == 1 and st.st_blocks == 2 and stat.S_ISREG(st.st_mode)
    assert path.stat().st_ino == st.st_ino


def names_have_a_form(top: Path) -> None:
    """EINVAL for a dot in front and a tilde behind, ENAMETOOLONG past 255 bytes; case counts."""
    for name in (".swp", "backup~", "a@b"):
        with refused(errno.EINVAL):
            (top / name).write_bytes(b"x")
    with refused(errno.ENAMETOOLONG):
        (top / ("n" * 256)).write_bytes(b"x")
    (top / "posix").write_bytes(b"lower")
    (top / "POSIX").write_bytes(b"upper")
    assert (top / "posix").read_bytes() == b"lower"
    (top / "POSIX").unlink()


def readdir_is_whole(top: Path) -> None:
    """Every name once, while names come and go."""
    names = [f"posix{i:03}" for i in range(150)]
    for name in names:
        (top / name).write_bytes(b"x")
    seen = []
    with os.scandir(top) as entries:
        for i, entry in enumerate(entries):
            seen.append(entry.name)
            if i == 10:
                (top / names[-1]).unlink()
                (top / "posix-new").write_bytes(b"x")
    kept = [name for name in seen if name in names[:-1]]
    assert sorted(kept) == names[:-1], f"{len(kept)} of {len(names) - 1}"


def tools_work(top: Path) -> None:
    """sed -i, dd, tee, tar, cp, mv, vim and statfs do what they do anywhere."""
    script = """
    set -e; cd "$1"
    printf 'one\\ntwo\\n' > posix; sed -i s/two/three/ posix; [ "$(tail -n 1 posix)" = three ]
    dd if=/dev/zero of=posix2 bs=1000 count=3 status=none; [ "$(wc -c < posix2)" = 3000 ]
    echo tee | tee posix2 > /dev/null; [ "$(cat posix2)" = tee ]
    cp posix posix3; cmp posix posix3; mv posix3 posix4; [ ! -e posix3 ]
    tar c posix posix4 | tar t | grep -q posix4
    vim -es -u NONE -i NONE -n +%s/one/uno/ +wq posix; [ "$(head -n 1 posix)" = uno ]
    stat -f . > /dev/null; find . -name posix4 | grep -q posix4; grep -rq uno .
    """
    done = subprocess.run(
        ["bash", "-c", script, "tools", str(top)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr or "a comparison failed"


CHECKS: Final[tuple[Callable[[Path], None], ...]] = (
    create_is_exclusive, bytes_are_exact, rename_replaces, unlinked_files_stay_open, links_and_nodes_are_refused,
    modes_and_times, names_have_a_form, readdir_is_whole, tools_work,
)  # fmt: skip


def violations(top: Path) -> list[str]:
    """Everything that does not hold in *top*, which is left as it was found."""
    before, found = set(os.listdir(top)), []
    for check in CHECKS:
        try:
            check(top)
        except (AssertionError, OSError, subprocess.TimeoutExpired) as exc:
            found.append(f"{check.__name__}: {exc!r}")
        for name in set(os.listdir(top)) - before:
            (top / name).unlink()
    return found


if __name__ == "__main__":
    wrong = violations(Path(sys.argv[1]))
    sys.stdout.writelines(f"{line}\n" for line in wrong)
    sys.exit(1 if wrong else 0)
