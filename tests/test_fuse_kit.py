"""The tree kit through the FUSE face: that each kind of file behaves under tools as its contract says."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fusemount import TIMEOUT_S, Mount, follow, mounted

from agentfs.errors import error
from agentfs.providers.clock import SystemClock
from agentfs.record import RingLog
from agentfs.tree import At, Call, Ctl, Data, Dir, Entry, File, Info, Queue, Stream, Tree

pytestmark = pytest.mark.usefixtures("binding")


class Kit:
    """One of each kind; the queue and the ctl append to the log."""

    def __init__(self) -> None:
        self.text, self.kv = b'{"old": 1}\n', dict[str, bytes]()
        self.log = RingLog(SystemClock(), 1 << 20)

    async def read(self, at: At) -> bytes:
        return self.text

    async def write(self, at: At, doc: bytes) -> None:
        self.text = doc.rstrip() + b"\n"

    async def sink(self, at: At) -> Kit:
        return self

    async def put(self, doc: bytes, *, is_json: bool) -> bytes:
        self.log.append(b'{"doc":%d}' % len(doc))
        return b"accepted %d\n" % len(doc)

    def close(self) -> None:
        return

    async def upper(self, at: At, doc: bytes) -> bytes:
        return doc.upper()

    async def say(self, at: At, word: str) -> None:
        self.log.append(b'{"say":"%s"}' % word.encode())

    async def finish(self, at: At) -> None:
        self.log.finish()

    async def stream(self, at: At) -> RingLog:
        return self.log

    async def get(self, at: At) -> bytes:
        return self.kv[at["key"]]

    async def set(self, at: At, value: bytes) -> None:
        self.kv[at["key"]] = value

    async def drop(self, at: At) -> None:
        del self.kv[at["key"]]

    async def move(self, old: At, new: At) -> None:
        self.kv[new["key"]] = self.kv.pop(old["key"])

    async def create(self, at: At) -> None:
        if at["key"] == "no":
            raise error(errno.EDQUOT, at.path)
        self.kv[at["key"]] = b""

    async def has(self, at: At, key: str) -> bool:
        return key in self.kv

    async def keys(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        return [Entry(key, Info(size=len(self.kv[key]))) for key in sorted(self.kv) if key > after][:limit]


def tree() -> Tree:
    """What the child serves."""
    kit = Kit()
    value = Data(name="{key}", read=kit.get, write=kit.set, remove=kit.drop)
    return Tree(
        File(name="config", read=kit.read, write=kit.write),
        File(name="status", read=kit.read),
        Queue(name="inbox", read=kit.read, sink=kit.sink),
        Call(name="sign", answer=kit.upper, usage="write bytes, read them back\n"),
        Ctl(name="ctl", verbs={"say": kit.say, "finish": kit.finish}),
        Stream(name="log", log=kit.stream),
        Dir(name="kv", each=value, has=kit.has, keys=kit.keys, create=kit.create, rename=kit.move),
    )


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    with mounted("test_fuse_kit:tree", tmp_path / "m") as found:
        yield found


def test_files_are_documents(mount: Mount) -> None:
    assert mount.out("echo '{\"new\": 2}' > $M/config; cat $M/config $M/status") == '{"new": 2}\n' * 2
    done = mount.sh("echo '{bad' > $M/config")
    assert (done.returncode, "Invalid argument" in done.stderr) == (1, True)
    assert "Permission denied" in mount.sh("echo x > $M/status").stderr
    assert mount.out(": > $M/config; cat $M/config") == '{"new": 2}\n', "an untouched empty buffer changes nothing"
    assert mount.out("vim -es -c '%s/2/3/' -c wq $M/config < /dev/null; cat $M/config") == '{"new": 3}\n'
    assert mount.out("sed -i s/3/4/ $M/config; cat $M/config; ls $M | wc -l") == '{"new": 4}\n7\n'


def test_ctl_call_and_queue(mount: Mount) -> None:
    for line in ("nonsense", "say", "say a b"):
        assert mount.sh(f"echo {line} > $M/ctl").returncode == 1, line
    assert mount.out("cat $M/ctl").count("EINVAL") == 1
    assert mount.out("exec 3<>$M/sign; printf hello >&3; cat <&3") == "HELLO"
    assert mount.out("cat $M/sign") == "write bytes, read them back\n"
    assert mount.out('exec 3<>$M/inbox; echo \'{"a":1}{"b":22}\' >&3; cat <&3') == "accepted 7\naccepted 8\n"
    assert mount.out("echo text > $M/inbox; wc -l < $M/log") == "3\n"


def test_values_have_random_access_and_names(mount: Mount) -> None:
    mount.out("echo one > $M/kv/a; printf X | dd of=$M/kv/a bs=1 conv=notrunc status=none")
    assert mount.out("cat $M/kv/a; echo two >> $M/kv/a; cat $M/kv/a") == "Xne\nXne\ntwo\n"
    assert mount.out("sed -i s/X/o/ $M/kv/a; mv $M/kv/a $M/kv/b; cat $M/kv/*; ls $M/kv") == "one\ntwo\nb\n"
    assert mount.out("touch $M/kv/t; truncate -s 2 $M/kv/b; wc -c < $M/kv/b; : > $M/kv/b; cat $M/kv/b") == "2\n"
    assert "quota" in mount.sh("echo x > $M/kv/no").stderr
    assert "Invalid argument" in mount.sh("echo x > $M/kv/.x").stderr
    assert mount.out("rm $M/kv/b; ls $M/kv") == "t\n"


def test_streams(mount: Mount) -> None:
    mount.out("echo say a > $M/ctl; tar c -C $M . | tar xO > /dev/null")
    first = mount.out("cat $M/log")
    assert '"say":"a"' in first
    reader = follow(mount)
    mount.out("echo say b > $M/ctl; echo finish > $M/ctl")
    assert '"say":"b"' in reader.communicate(timeout=TIMEOUT_S)[0]
    assert mount.out("cat $M/log@0") == mount.out("cat $M/log"), "a finished stream is replayed and ends"


def test_nonblocking_follow_sees_its_backlog(mount: Mount) -> None:
    mount.out("echo say a > $M/ctl")
    code = """
import os, select
fd = os.open(M + '/log@0', os.O_RDONLY | os.O_NONBLOCK)
poller = select.poll(); poller.register(fd, select.POLLIN)
assert poller.poll(30_000), 'the backlog is there to be read'
assert b'"say":"a"' in os.read(fd, 4096)
try: os.read(fd, 10); raise SystemExit('read more than there is')
except BlockingIOError: pass
"""
    mount.python(code)
    done = mount.run(sys.executable, "-c", f"print(open('{mount.at}/log@nonsense').read())")
    assert "Invalid argument" in done.stderr
