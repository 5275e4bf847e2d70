"""The kit: units, short counts, snapshots, twins, created names, against small tables."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfs.errors import error
from agentfs.limits import Limits
from agentfs.record import RingLog
from agentfs.service import FileHandle
from agentfs.tree import At, Call, Ctl, Data, Dir, Entry, File, Info, Queue, Stream, Tree
from agentfs.tree.intake import Brackets
from agentfs.types import OPERATOR, Kind, Mode, Path, Principal, Want

READ, WRITE, RDWR = Mode.READ, Mode.WRITE, Mode.READ | Mode.WRITE


class Clock:
    def now_ns(self) -> int:
        return 1

    def monotonic_ns(self) -> int:
        return 1

    async def sleep_until(self, at_ns: int) -> None:
        raise AssertionError


class Box:
    """What the functions of the test table did."""

    def __init__(self) -> None:
        self.docs: list[bytes] = []
        self.kv: dict[str, bytes] = {}
        self.text = b"old\n"
        self.places = 1
        self.log = RingLog(Clock(), 200)

    async def read(self, at: At) -> bytes:
        return self.text

    async def write(self, at: At, doc: bytes) -> None:
        self.text = doc

    async def put(self, doc: bytes, *, is_json: bool) -> bytes:
        if b"bad" in doc:
            raise error(errno.EINVAL, detail="payload: bad")
        self.docs.append(doc)
        return b"receipt %d\n" % len(self.docs)

    def close(self) -> None:
        self.places += 1

    async def sink(self, at: At) -> Box:
        if not self.places:
            raise error(errno.EAGAIN, at.path)
        self.places -= 1
        return self

    async def echo(self, at: At, doc: bytes) -> bytes:
        return doc.upper()

    async def say(self, at: At, word: str, *more: str) -> None:
        self.docs.append(word.encode())

    async def fail(self, at: At) -> None:
        raise error(errno.EBUSY, at.path)

    async def get(self, at: At) -> bytes:
        return self.kv[at["key"]]

    async def set(self, at: At, value: bytes) -> None:
        self.kv[at["key"]] = value

    async def new(self, at: At) -> None:
        self.kv[at["key"]] = b""

    async def drop(self, at: At) -> None:
        del self.kv[at["key"]]

    async def move(self, old: At, new: At) -> None:
        self.kv[new["key"]] = self.kv.pop(old["key"])

    async def has(self, at: At, key: str) -> bool:
        return key in self.kv

    async def keys(self, at: At, after: str, limit: int) -> Sequence[Entry]:
        return [Entry(k, Info(size=len(self.kv[k]))) for k in sorted(self.kv) if k > after][:limit]

    async def ring(self, at: At) -> RingLog:
        return self.log

    def tree(self, limits: Limits | None = None) -> Tree:
        value = Data(name="{key}", read=self.get, write=self.set, remove=self.drop)
        kv = Dir(name="kv", each=value, has=self.has, keys=self.keys, create=self.new, rename=self.move)
        return Tree(
            File(name="config", read=self.read, write=self.write, operator=True),
            File(name="status", read=self.read),
            Queue(name="inbox", read=self.read, sink=self.sink),
            Call(name="sign", answer=self.echo, usage="write bytes, read them back\n"),
            Ctl(name="ctl", verbs={"say": self.say, "fail": self.fail}, operator_verbs=frozenset({"fail"})),
            Stream(name="log", log=self.ring),
            kv,
            limits=limits,
        )


@pytest.fixture
def box() -> Box:
    return Box()


async def opened(box: Box, name: str, mode: Mode) -> FileHandle:
    return await box.tree().open(Path(name), mode)


async def fails(code: int, awaitable: object) -> OSError:
    with pytest.raises(OSError) as caught:
        await awaitable  # type: ignore[misc]
    assert caught.value.errno == code, caught.value
    return caught.value


async def test_json_commits_in_the_write_that_completes_it(box: Box) -> None:
    handle = await opened(box, "inbox", WRITE)
    assert await handle.write(b'{"a": "}', 0) == 8
    assert box.docs == []
    assert await handle.write(b'"}\n{"b":1}', 0) == 10
    assert box.docs == [b'{"a": "}"}', b'{"b":1}']


async def test_bad_unit_behind_good_ones_gives_a_short_count_and_then_its_error(box: Box) -> None:
    handle = await opened(box, "inbox", WRITE)
    assert await handle.write(b'{"a":1}{bad', 0) == 7
    await fails(errno.EINVAL, handle.write(b"{bad", 0))
    assert box.docs == [b'{"a":1}']


async def test_impossible_json_fails_at_its_first_write(box: Box) -> None:
    handle = await opened(box, "inbox", WRITE)
    await fails(errno.EINVAL, handle.write(b"{bad", 0))
    await handle.aclose()
    assert box.docs == []


async def test_text_commits_at_a_flush_after_a_newline_and_its_rest_at_close(box: Box) -> None:
    handle = await opened(box, "inbox", WRITE)
    await handle.write(b"one\ntwo", 0)
    await handle.flush()
    assert box.docs == []
    await handle.write(b"\n", 0)
    await handle.flush()
    await handle.write(b"rest", 0)
    await handle.flush()
    assert box.docs == [b"one\ntwo\n"]
    await handle.aclose()
    assert box.docs == [b"one\ntwo\n", b"rest"]
    await fails(errno.EBADF, handle.write(b"x", 0))


async def test_an_aborted_text_is_dropped_by_truncate(box: Box) -> None:
    handle = await opened(box, "inbox", WRITE)
    await handle.write(b"half", 0)
    await handle.truncate(0)
    await handle.aclose()
    assert box.docs == []


async def test_full_queue_refuses_at_open_and_a_handle_holds_its_place(box: Box) -> None:
    handle = await opened(box, "inbox", WRITE)
    await fails(errno.EAGAIN, opened(box, "inbox", WRITE))
    await handle.aclose()
    await handle.aclose()
    assert box.places == 1


async def test_queue_reads_give_receipts_after_a_write(box: Box) -> None:
    handle = await opened(box, "inbox", RDWR)
    assert await handle.read(100, 0) == b"old\n"
    await handle.write(b'{"a":1}', 0)
    assert await handle.read(100, 7) == b"receipt 1\n"


@pytest.mark.parametrize("data", [b"\xff", b"\xc3("])
async def test_not_utf8_is_eilseq_in_the_write(box: Box, data: bytes) -> None:
    handle = await opened(box, "inbox", WRITE)
    await fails(errno.EILSEQ, handle.write(data, 0))


async def test_too_large_is_efbig_in_the_write_that_crosses_it(box: Box) -> None:
    handle = await box.tree(Limits(document_bytes=8)).open(Path("inbox"), WRITE)
    await handle.write(b"1234567\n", 0)
    await fails(errno.EFBIG, handle.write(b"x", 0))
    handle = await box.tree(Limits(document_bytes=8)).open(Path("sign"), WRITE)
    await fails(errno.EFBIG, handle.write(b'{"abcdefgh":1}', 0))


async def test_call_answers_on_the_handle_at_the_offset_of_the_first_read(box: Box) -> None:
    handle = await opened(box, "sign", RDWR)
    assert b"write bytes" in await handle.read(100, 0)
    await handle.write(b"hel", 0)
    await handle.write(b"lo", 3)
    assert await handle.read(3, 5) == b"HEL"
    assert await handle.read(9, 8) == b"LO"
    assert await handle.read(9, 0) == b"HELLO"
    await handle.write(b"again", 5)
    assert await handle.read(9, 5) == b"AGAIN"


async def test_file_is_one_document_per_open(box: Box) -> None:
    handle = await opened(box, "config", WRITE)
    await handle.write(b'{"a":1}', 0)
    assert box.text == b'{"a":1}'
    assert await handle.write(b" \n", 0) == 2
    await fails(errno.EINVAL, handle.write(b"x", 0))
    snapshot = await opened(box, "config", READ)
    box.text = b"changed"
    assert await snapshot.read(100, 0) == b'{"a":1}'


async def test_emptied_but_untouched_changes_nothing(box: Box) -> None:
    handle = await opened(box, "config", WRITE | Mode.TRUNCATE)
    await handle.flush()
    await handle.aclose()
    assert box.text == b"old\n"


async def test_access_bits_follow_the_principal(box: Box) -> None:
    tree, agent = box.tree(), Principal("agent", "demo")
    assert (await tree.stat(Path("config"))).mode & 0o777 == 0o666
    assert (await tree.attach(agent).stat(Path("config"))).mode & 0o777 == 0o444
    await fails(errno.EACCES, tree.attach(agent).open(Path("config"), WRITE))
    await fails(errno.EACCES, tree.open(Path("status"), WRITE))
    handle = await tree.attach(agent).open(Path("ctl"), WRITE)
    await fails(errno.EPERM, handle.write(b"fail\n", 0))


async def test_ctl_runs_lines_and_names_what_is_wrong(box: Box) -> None:
    tree = box.tree()
    handle = await tree.open(Path("ctl"), WRITE)
    assert await handle.write(b"say 'a b' c\n\nsay x", 0) == 18
    assert box.docs == [b"a b"]
    assert await handle.write(b"y\njump\n", 0) == 2
    assert box.docs == [b"a b", b"xy"]
    caught = await fails(errno.EINVAL, handle.write(b"jump\n", 0))
    assert "unknown verb 'jump'" in str(caught)
    caught = await fails(errno.EINVAL, handle.write(b"say\n", 0))
    assert "say: want WORD" in str(caught)
    await fails(errno.EINVAL, handle.write(b"say 'x\n", 0))
    await fails(errno.EBUSY, handle.write(b"fail\n", 0))
    text = await (await tree.open(Path("ctl"), READ)).read(999, 0)
    assert text.startswith(b"say WORD [MORE]\nfail\nlast error: EBUSY ctl")


async def test_data_is_stored_whole_at_flush_and_close(box: Box) -> None:
    tree = box.tree()
    async with await tree.create(Path("kv/a"), WRITE) as handle:
        await handle.write(b"xyz", 2)
        assert box.kv["a"] == b""
        await handle.flush()
        assert box.kv["a"] == b"\0\0xyz"
    async with await tree.open(Path("kv/a"), WRITE | Mode.TRUNCATE) as handle:
        await handle.flush()
        assert box.kv["a"] == b"\0\0xyz"
    assert box.kv["a"] == b""
    async with await tree.open(Path("kv/a"), WRITE | Mode.APPEND) as handle:
        await handle.write(b"1", 0)
        await handle.write(b"2", 0)
    assert box.kv["a"] == b"12"
    await fails(errno.EEXIST, tree.create(Path("kv/a"), WRITE, want=Want(exclusive=True)))
    await tree.rename(Path("kv/a"), Path("kv/b"))
    assert box.kv == {"b": b"12"}
    await tree.remove(Path("kv/b"))
    await fails(errno.ENOENT, tree.stat(Path("kv/b")))


@pytest.mark.parametrize("name", [".a", "a~", "a@b", "a\n", "e\u0301"])
async def test_names_that_cannot_be_created(box: Box, name: str) -> None:
    await fails(errno.EINVAL, box.tree().create(Path(f"kv/{name}"), WRITE))
    await fails(errno.ENOENT, box.tree().stat(Path(f"kv/{name}")))


async def test_sed_writes_beside_a_file_and_renames_onto_it(box: Box) -> None:
    tree = box.tree()
    async with await tree.create(Path("sedAb12Cd"), WRITE) as handle:
        await handle.write(b"new\n", 0)
    assert (await tree.stat(Path("sedAb12Cd"))).size == 4
    assert "sedAb12Cd" not in {s.name for s in await tree.list(Path(""))}
    await tree.rename(Path("sedAb12Cd"), Path("config"))
    assert box.text == b"new\n"
    await fails(errno.ENOENT, tree.stat(Path("sedAb12Cd")))
    await fails(errno.EACCES, tree.create(Path("other"), WRITE))


async def test_listing_pages_without_loss(box: Box) -> None:
    box.kv = {f"k{i:03}": b"x" * i for i in range(50)}
    tree, seen, after = box.tree(), [], ""
    while page := await tree.list(Path("kv"), after, 7):
        seen += [(s.name, s.size) for s in page]
        after = page[-1].name
    assert seen == [(f"k{i:03}", i) for i in range(50)]


async def test_stream_reads_to_its_end_and_its_twin_follows(box: Box) -> None:
    tree = box.tree()
    box.log.append(b'{"type":"a"}')
    stat = await tree.stat(Path("log"))
    assert stat.kind is Kind.STREAM and stat.size == len(b'{"seq":1,"type":"a"}\n')
    plain = await tree.open(Path("log"), READ)
    assert await plain.read(1000, 0) == b'{"seq":1,"type":"a"}\n'
    follow = await tree.open(Path("log@follow"), READ)
    assert not follow.is_ready()
    record = box.log.append(b'{"type":"b"}')
    assert await follow.read(7, 0) == b'{"seq":'
    assert await follow.read(99, 0) == b'2,"type":"b"}\n'
    again = await tree.open(Path(f"log@{record.cursor.split('-')[0]}-1"), READ)
    assert await again.next() == record
    gap = await (await tree.open(Path("log@feed-7"), READ)).next()
    assert gap is not None and b'"gap"' in gap.line and b'"from":"feed-7"' in gap.line
    await fails(errno.EINVAL, tree.open(Path("log@x"), READ))
    await fails(errno.ENOENT, tree.stat(Path("status@follow")))


async def test_watch_semantics(box: Box) -> None:
    """Every record after a cursor, in order, once, across rotations; what is gone yields one gap, never silence."""
    tree, cursors = box.tree(), []
    follow = await tree.open(Path("log@0"), READ)
    slow = await tree.open(Path("log@follow"), READ)
    for i in range(30):
        box.log.append(b'{"n":%d}' % i)
        record = await follow.next()
        assert record is not None and record.line == b'{"seq":%d,"n":%d}\n' % (i + 1, i)
        cursors.append(record.cursor)
    names = [s.name for s in await tree.list(Path(""))]
    assert "log.1" in names and names == sorted(names)
    heads = await box.log.heads()
    for seq in range(heads[0].first, 30):  # each place that is held resumes without a gap, in both generations
        again = await tree.open(Path(f"log@{cursors[seq - 1]}"), READ)
        assert [r.cursor for r in [await again.next() for _ in range(30 - seq)] if r] == cursors[seq:]
    for late in (slow, await tree.open(Path(f"log@{cursors[0]}"), READ)):  # what it had not read has been dropped
        gap, first = await late.next(), await late.next()
        assert gap is not None and b'"type":"gap"' in gap.line
        assert first is not None and first.cursor == cursors[heads[0].first - 1]
        resumed = await tree.open(Path(f"log@{gap.cursor}"), READ)
        assert await resumed.next() == first


async def test_close_wakes_a_blocked_read(box: Box) -> None:
    import anyio

    handle = await opened(box, "log@follow", READ)
    async with anyio.create_task_group() as group:

        async def close() -> None:
            await anyio.lowlevel.checkpoint()
            await handle.aclose()

        group.start_soon(close)
        await fails(errno.EBADF, handle.read(1, 0))


@given(st.recursive(st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)), st.data())
def test_brackets_find_the_end_however_the_bytes_are_cut(value: object, data: st.DataObject) -> None:
    import msgspec

    doc = msgspec.json.encode({"v": value})
    cuts = sorted(data.draw(st.lists(st.integers(0, len(doc)), max_size=5)))
    brackets, begin = Brackets(), 0
    for cut in cuts:
        if begin < cut < len(doc):
            assert brackets.feed(doc[begin:cut]) == -1
            begin = cut
    assert brackets.feed(doc[begin:] + b"tail") == len(doc) - begin


def test_principal_source() -> None:
    assert OPERATOR.source == "operator" and Principal("agent", "demo").source == "demo"


async def test_a_directory_whose_streams_get_twins_tells_no_end_of_its_names() -> None:
    async def log(at: At) -> RingLog:
        return RingLog(Clock(), 10)

    plain, twins = (
        Dir(name="plain", entries=[Ctl(name="ctl", verbs={})]),
        Dir(name="d", entries=[Stream(name="x", log=log)]),
    )
    tree = Tree(plain, twins)
    assert (await tree.stat(Path("plain"))).lists and not (await tree.stat(Path("d"))).lists
