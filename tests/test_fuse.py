"""The FUSE face through real tools on a real mount; the tree behind it is `fusescratch.Scratch`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fusemount import Mount, mounted
from fusescratch import SCRATCH

pytestmark = pytest.mark.usefixtures("binding")


@pytest.fixture(scope="module")
def shared(binding: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for the tests that leave it as it was, or nearly so."""
    with mounted(SCRATCH, tmp_path_factory.mktemp("fuse") / "m") as mount:
        yield mount


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Mount]:
    """A mount for one test."""
    with mounted(SCRATCH, tmp_path / "m") as mount:
        yield mount


TOOLS = [
    ("cat", "cat $M/fixed", "fixed\n"),
    ("echo", "echo a > $M/d/e; echo b >> $M/d/e; cat $M/d/e", "a\nb\n"),
    ("no-final-newline", "printf a > $M/d/e2; printf b >> $M/d/e2; cat $M/d/e2", "ab"),
    ("two-writes", "printf 'a\\nb\\n' > $M/d/e3; cat $M/d/e3", "a\nb\n"),
    ("read-write", "exec 3<>$M/d/e3; read x <&3; echo $x; exec 3>&-", "a\n"),
    ("ls", "ls $M/d/sub", "two\n"),
    ("ls -l", "ls -l $M/fixed | cut -c1-10", "-r--------\n"),
    ("ls -lR", "ls -lR -I big $M > /dev/null && echo ok", "ok\n"),
    ("stat", "stat -c '%h %s %b %u %A' $M/fixed $M/d/sub", "1 6 1 0 -r--------\n1 0 0 0 drwx------\n"),
    ("find", "cd $M && find d/sub -type f", "d/sub/two\n"),
    ("grep -r", "cd $M && grep -r two d/sub", "d/sub/two:two\n"),
    ("grep -r all", "cd $M && grep -rl --exclude-dir=big two | grep sub/two", "d/sub/two\n"),
    ("head", "head -c 3 $M/fixed", "fix"),
    ("tail", "tail -n 1 $M/d/sub/two", "two\n"),
    ("wc", "wc -c < $M/fixed", "6\n"),
    ("wc unknown size", "cat $M/snap | wc -c", "1000\n"),
    ("fstat of a snapshot", "wc -c < $M/snap", "1000\n"),
    ("dd", "dd if=$M/snap bs=7 skip=1 count=1 status=none", "7890123"),
    ("dd in", "dd of=$M/d/dd bs=3 status=none <<< abcdefg; cat $M/d/dd", "abcdefg\n"),
    (
        "dd seek",
        "printf 0123456789 > $M/d/dds; printf xx | dd of=$M/d/dds bs=1 seek=4 conv=notrunc status=none; cat $M/d/dds",
        "0123xx6789",
    ),
    ("dd sparse", "printf x | dd of=$M/d/ddh bs=1 seek=3 status=none; od -An -c $M/d/ddh | tr -d ' \\n'", "\\0\\0\\0x"),
    ("tee", "echo t | tee $M/d/t1 $M/d/t2; cat $M/d/t1 $M/d/t2", "t\nt\nt\n"),
    ("tee -a", "echo u | tee -a $M/d/t1 > /dev/null; cat $M/d/t1", "t\nu\n"),
    ("sed -i", "echo old > $M/d/sed; sed -i s/old/new/ $M/d/sed; cat $M/d/sed; ls $M/d | grep -c '^sed'", "new\n1\n"),
    (
        "cp in",
        "T=$(mktemp); echo c > $T; cp $T $M/d/cp; rm $T; cat $M/d/cp",
        "c\n",
    ),
    (
        "cp -r",
        "T=$(mktemp -d); cp -r $M/d/sub $T/; cat $T/sub/two; cp -r $T/sub $M/d/sub2; cat $M/d/sub2/two; rm -r $T",
        "two\ntwo\n",
    ),
    ("mv", "echo m > $M/d/mv; mv $M/d/mv $M/d/mv2; cat $M/d/mv2; ls $M/d/mv 2>/dev/null | wc -l", "m\n0\n"),
    ("mv over", "echo 1 > $M/d/o1; echo 2 > $M/d/o2; mv $M/d/o1 $M/d/o2; cat $M/d/o2", "1\n"),
    ("mv dir", "mkdir -p $M/d/a/b; echo z > $M/d/a/b/f; mv $M/d/a $M/d/q; cat $M/d/q/b/f; rm -r $M/d/q", "z\n"),
    ("mv -n", "echo 1 > $M/d/o1; echo 2 > $M/d/o2; mv -n $M/d/o1 $M/d/o2; cat $M/d/o2", "2\n"),
    ("rm", "echo r > $M/d/rm; rm $M/d/rm; test -e $M/d/rm || echo gone", "gone\n"),
    ("mkdir rmdir", "mkdir $M/d/dir && rmdir $M/d/dir && test ! -e $M/d/dir && echo ok", "ok\n"),
    ("touch", "touch $M/d/touched && touch $M/d/touched && stat -c %s $M/d/touched", "0\n"),
    ("truncate", "echo 12345 > $M/d/tr; truncate -s 3 $M/d/tr; cat $M/d/tr", "123"),
    ("truncate path", "echo 12345 > $M/d/tr; python3 -c \"import os; os.truncate('$M/d/tr', 2)\"; cat $M/d/tr", "12"),
    ("tar", "tar c -C $M d/sub | tar t", "d/sub/\nd/sub/two\n"),
    ("chmod shown", "chmod 600 $M/d/one && chown $(id -u):$(id -g) $M/d/one && echo ok", "ok\n"),
    ("mknod", "python3 -c \"import os; os.mknod('$M/d/nod', 0o100600)\"; stat -c %F $M/d/nod", "regular empty file\n"),
    ("df", "df --output=size,used $M | tail -n 1 | xargs", "1048576 1024\n"),
    ("big", "ls -U $M/big | sort -u | wc -l; ls -f $M/big | head -n 1", "10000\n00000\n"),
    (
        "vim",
        "echo one > $M/d/v; vim -es -c '%s/one/two/' -c wq $M/d/v < /dev/null; cat $M/d/v; ls $M/d | grep -c '^v'",
        "two\n1\n",
    ),
    ("node", "node -e \"process.stdout.write(require('fs').readFileSync('$M/snap').slice(0,3))\"", "012"),
    ("node async", "node -e \"require('fs').readFile('$M/fixed',(e,d)=>process.stdout.write(d))\"", "fixed\n"),
    ("awk", "awk '{print $1}' $M/fixed", "fixed\n"),
    ("sync", "echo s > $M/d/s; sync $M/d/s && cat $M/d/s", "s\n"),
    ("exec", "exec 3> $M/d/x3; echo 1 >&3; /bin/true; echo 2 >&3; exec 3>&-; cat $M/d/x3", "1\n2\n"),
    ("late", "echo l > $M/late/l; cat $M/late/l", "l\n"),
    ("late touch", "touch $M/late/t; echo $?; test -e $M/late/t || echo absent", "0\nabsent\n"),
]


@pytest.mark.parametrize(("script", "want"), [t[1:] for t in TOOLS], ids=[t[0] for t in TOOLS])
def test_tools(shared: Mount, script: str, want: str) -> None:
    assert shared.out(script) == want


REFUSALS = [
    ("ctl", "echo bad > $M/ctl", "Invalid argument"),
    ("ctl after good", "printf 'emit x\\nbad\\n' > $M/ctl", "Invalid argument"),
    ("read only", "echo x > $M/fixed", "Permission denied"),
    ("absent", "cat $M/none", "No such file"),
    ("below a file", "cat $M/fixed/x", "Not a directory"),
    ("create refused", "echo x > $M/new", "Permission denied"),
    ("name refused", "echo x > $M/late/.hidden", "Invalid argument"),
    ("long name", f"cat $M/{'x' * 256}", "File name too long"),
    ("not UTF-8", "cat $M/$'\\xff'", "Invalid or incomplete"),
    ("deep", f"mkdir -p $M/d{'/x' * 70}", "File name too long"),
    ("noclobber", "set -C; echo x > $M/d/one", "cannot overwrite"),
    ("chmod", "chmod 644 $M/d/one", "Operation not permitted"),
    ("chown", "chown 1 $M/d/one", "Operation not permitted"),
    ("mkfifo", "mkfifo $M/d/fifo", "Operation not permitted"),
    ("symlink", "ln -s x $M/d/link", "Operation not permitted"),
    ("link", "ln $M/d/one $M/d/link", "Operation not permitted"),
    ("rmdir", "rmdir $M/d", "not empty"),
    ("rm dir", "rm $M/d", "Is a directory"),
    ("mv over", "mv -T $M/d/one $M/d/sub", "cannot overwrite directory"),
    ("mv out of bounds", "mv $M/d $M/d/sub/", "subdirectory of itself"),
    ("xattr", "python3 -c \"import os; os.setxattr('$M/fixed', 'user.a', b'b')\"", "Operation not supported"),
]


@pytest.mark.parametrize(("script", "text"), [t[1:] for t in REFUSALS], ids=[t[0] for t in REFUSALS])
def test_refusals(shared: Mount, script: str, text: str) -> None:
    done = shared.sh(script)
    assert done.returncode == 1
    assert text in done.stderr


def test_open_flags_arrive_as_flags(fresh: Mount) -> None:
    fresh.out("echo 1 > $M/d/one; echo 2 >> $M/d/one; cat $M/d/one > /dev/null; : > $M/d/one; exec 3<>$M/d/one")
    fresh.python("import os; os.open(M + '/d/new', os.O_WRONLY | os.O_CREAT | os.O_EXCL)")
    assert fresh.out("cat $M/calls").splitlines() == [
        "open d/one WRITE+TRUNCATE",
        "open d/one WRITE+APPEND",
        "open d/one READ",
        "open d/one WRITE+TRUNCATE",
        "open d/one READ+WRITE",
        "create d/new WRITE",
    ]


def test_listing_opens_and_renders_nothing(fresh: Mount) -> None:
    fresh.out("ls -R $M; find $M; ls -l $M; stat $M/* $M/big/00001")
    assert fresh.out("cat $M/calls") == ""


def test_only_the_owner_has_access(shared: Mount) -> None:
    as_other = "import os; os.setgid(12345); os.setuid(12345); os.listdir(M)"
    done = shared.run(sys.executable, "-c", f"M={str(shared.at)!r}; {as_other}")
    assert "PermissionError" in done.stderr


def test_seeking_in_a_big_directory_repeats_nothing(shared: Mount) -> None:
    shared.python("""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
class Dirent(ctypes.Structure):
    _fields_ = [('ino', ctypes.c_ulong), ('off', ctypes.c_long), ('len', ctypes.c_ushort), ('type', ctypes.c_ubyte),
                ('name', ctypes.c_char * 256)]
libc.opendir.restype = libc.readdir.argtypes = None
libc.opendir.restype = ctypes.c_void_p
libc.readdir.argtypes = libc.telldir.argtypes = libc.rewinddir.argtypes = [ctypes.c_void_p]
libc.readdir.restype = ctypes.POINTER(Dirent)
libc.telldir.restype = ctypes.c_long
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
at = libc.opendir((M + '/big').encode())
def take(n):
    got = []
    while len(got) < n and (e := libc.readdir(at)):
        if e.contents.name not in (b'.', b'..'):
            got.append(e.contents.name)
    return got
first = take(1500); here = libc.telldir(at)
rest = take(20000)
libc.seekdir(at, here)
assert take(20000) == rest
libc.rewinddir(at)
assert take(1500) == first and len(first + rest) == 10000 == len(set(first + rest))
""")


def test_numbers_are_stable_and_follow_a_rename(shared: Mount) -> None:
    shared.python("""
import os
os.makedirs(M + '/d/n1/deep'); open(M + '/d/n1/deep/f', 'w').close()
before = os.stat(M + '/d/n1/deep/f').st_ino
assert before == os.stat(M + '/d/n1/deep/f').st_ino == next(os.scandir(M + '/d/n1/deep')).inode()
fd = os.open(M + '/d/n1/deep/f', os.O_RDWR)
os.rename(M + '/d/n1', M + '/d/n2')
assert os.fstat(fd).st_ino == before == os.stat(M + '/d/n2/deep/f').st_ino
os.write(fd, b'still'); os.close(fd)
assert open(M + '/d/n2/deep/f').read() == 'still'
assert not os.path.exists(M + '/d/n1')
""")


def test_a_removed_or_replaced_file_is_stale(shared: Mount) -> None:
    shared.python("""
import errno, os
def code(call, *args):
    try: call(*args)
    except OSError as exc: return exc.errno
path = M + '/d/stale'
open(path, 'w').write('first')
fd = os.open(path, os.O_RDWR); old = os.fstat(fd).st_ino
assert os.read(fd, 9) == b'first'
os.unlink(path)
assert os.pread(fd, 9, 0) == b'first', 'the snapshot stays'
assert code(os.fstat, fd) == errno.ESTALE
os.write(fd, b'x'); assert code(os.fsync, fd) == errno.ESTALE
open(path, 'w').write('second')
assert os.stat(path).st_ino != old and open(path).read() == 'second'
fd = os.open(path, os.O_RDONLY)
open(M + '/ctl', 'w').write('replace d/stale\\n')
assert code(os.fstat, fd) == errno.ESTALE
assert open(path).read() == 'replaced\\n'
""")


def test_exclusive_create_and_rename_flags(shared: Mount) -> None:
    shared.python("""
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def rename2(a, b, flags):
    if libc.renameat2(-100, (M + a).encode(), -100, (M + b).encode(), flags):
        return ctypes.get_errno()
open(M + '/d/r1', 'x').close(); open(M + '/d/r2', 'x').close()
try: open(M + '/d/r1', 'x'); raise SystemExit('created twice')
except FileExistsError: pass
assert rename2('/d/r1', '/d/r2', 1) == errno.EEXIST
assert rename2('/d/r1', '/d/r2', 2) == errno.EINVAL
assert rename2('/d/r1', '/d/r3', 1) is None
assert rename2('/d/r3', '/d/r2', 0) is None
""")


def test_a_bug_is_eio_and_logged_and_the_mount_goes_on(tmp_path: Path) -> None:
    mount = Mount(SCRATCH, tmp_path / "m")
    try:
        for name in ("bug-read", "bug-type", "bug-long", "bug-open", "bug-stat", "bug-size"):
            assert "Input/output error" in mount.sh(f"cat $M/{name}").stderr, name
        for name in ("bug-group", "bug-long"):
            assert "Input/output error" in mount.sh(f"echo x > $M/{name}").stderr, name
        assert mount.out("cat $M/fixed") == "fixed\n"
        for words in ("ZeroDivisionError: bug-read", "ValueError: not an OSError", "KeyError", "took -1"):
            assert words in mount.log
        assert mount.terminate() == 0
    finally:
        mount.kill()
