"""The tier STREAM of the file suite: no listed file blocks, and a watcher gets every record once, in order.

Rules that need a new record ask the bench to stir the service; without that they say so in its notes.
"""

from __future__ import annotations

import errno
from typing import Any

import anyio
import msgspec

from agentfs.service import FileHandle
from agentfs.types import Kind, Mode, Path, Record
from conformance.bench import FOREVER_S, Bench, refused, rule

FOREIGN = "00000000000000ff-5"


async def _next(handle: FileHandle) -> Record:
    with anyio.fail_after(FOREVER_S):
        record = await handle.next()
    assert record is not None, "the stream ended"
    assert record.line.endswith(b"\n"), f"a record without newline: {record.line!r:.60}"
    return record


def _doc(record: Record | bytes) -> dict[str, Any]:
    doc = msgspec.json.decode(record if isinstance(record, bytes) else record.line)
    assert isinstance(doc, dict), doc
    return doc


async def _held(bench: Bench, path: Path) -> list[bytes]:
    """Every record held, in order, of both generations."""
    older = Path(f"{path}.1")
    try:
        before = await bench.read(older)
    except FileNotFoundError:
        before = b""
    return (before + await bench.read(path)).splitlines(keepends=True)


async def _stirred(bench: Bench, path: Path) -> bool:
    if bench.stir is None:
        bench.notes.append(f"{path}: nothing here can make it grow: give a stir")
        return False
    await bench.stir()
    return True


@rule("STREAM", Kind.STREAM)
async def a_plain_read_ends(bench: Bench, path: Path) -> None:
    """What there is, whole lines, numbered without a hole; then the end of file."""
    await _stirred(bench, path)
    size = (await bench.service.stat(path)).size
    whole = await bench.read(path)
    assert len(whole) >= size, f"size {size}, content {len(whole)}"
    assert not whole or whole.endswith(b"\n"), f"ends with {whole[-20:]!r}"
    numbers = [_doc(line)["seq"] for line in await _held(bench, path)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True, numbers


@rule("STREAM", Kind.STREAM)
async def twins_are_not_listed(bench: Bench, path: Path) -> None:
    """``X@follow`` and ``X@0`` can be looked up but are in no listing; ``X.1`` is there exactly when it is listed."""
    names = {at for at, _ in bench.found}
    assert not [name for name in names if "@" in name]
    for twin in (Path(f"{path}@follow"), Path(f"{path}@0"), Path(f"{path}@{FOREIGN}")):
        assert not (await bench.service.stat(twin)).is_dir
        await refused(bench.service.open(twin, Mode.WRITE), errno.EACCES, errno.EROFS)
    older = Path(f"{path}.1")
    if older in names:
        assert (await bench.read(older)).endswith(b"\n")
    else:
        await refused(bench.service.stat(older), errno.ENOENT)
        await refused(bench.service.open(older, Mode.READ), errno.ENOENT)


@rule("STREAM", Kind.STREAM)
async def the_oldest_cursor_gives_all(bench: Bench, path: Path) -> None:
    """``X@0`` begins with the oldest record held and gives each once, with the same bytes."""
    if not await _stirred(bench, path):
        return
    held = await _held(bench, path)
    async with await bench.service.open(Path(f"{path}@0"), Mode.READ) as handle:
        got = [(await _next(handle)).line for _ in held]
    assert got == held, f"{len(got)} records differ from the {len(held)} held"


@rule("STREAM", Kind.STREAM)
async def following_waits_for_the_next(bench: Bench, path: Path) -> None:
    """``X@follow`` gives nothing that was there, waits, and then the first record that comes."""
    if bench.stir is None:
        return
    last = len(await _held(bench, path))
    got: list[Record] = []
    async with await bench.service.open(Path(f"{path}@follow"), Mode.READ) as handle:

        async def watch() -> None:
            got.append(await _next(handle))

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            await anyio.sleep(0.05)
            if len(await _held(bench, path)) == last:
                assert not got, f"nothing had come, but it gave {got}"
            await bench.stir()
    held = await _held(bench, path)
    assert got[0].line == held[last], f"gave {got[0].line!r:.80} instead of {held[last]!r:.80}"


@rule("STREAM", Kind.STREAM, needs="cursor")
async def a_cursor_resumes_behind_its_record(bench: Bench, path: Path) -> None:
    """``X@<cursor>`` gives the record after, then the next, at every place."""
    if not await _stirred(bench, path):
        return
    held = await _held(bench, path)
    async with await bench.service.open(Path(f"{path}@0"), Mode.READ) as handle:
        records = [await _next(handle) for _ in held[:5]]
    assert len({r.cursor for r in records}) == len(records), [r.cursor for r in records]
    for record, wanted in zip(records, held[1:], strict=False):
        async with await bench.service.open(Path(f"{path}@{record.cursor}"), Mode.READ) as handle:
            assert (await _next(handle)).line == wanted, f"behind {record.cursor}"


@rule("STREAM", Kind.STREAM)
async def a_foreign_cursor_gives_one_gap(bench: Bench, path: Path) -> None:
    """A cursor of another epoch: one gap record {from, to, reason}, then the oldest record, and no silence."""
    if not await _stirred(bench, path):
        return
    held = await _held(bench, path)
    async with await bench.service.open(Path(f"{path}@{FOREIGN}"), Mode.READ) as handle:
        gap, first = await _next(handle), await _next(handle)
    doc = _doc(gap)
    assert doc["type"] == "gap", doc
    assert doc["from"] == FOREIGN, doc
    assert {"to", "reason"} <= set(doc), doc
    assert first.line == held[0], f"went on with {first.line!r:.80} instead of {held[0]!r:.80}"
    if len(held) > 1:  # what the gap names is a cursor of this log
        async with await bench.service.open(Path(f"{path}@{doc['to']}"), Mode.READ) as handle:
            assert (await _next(handle)).line == held[1]


@rule("STREAM", Kind.STREAM)
async def a_malformed_cursor_is_refused(bench: Bench, path: Path) -> None:
    """EINVAL at open."""
    for cursor in ("nonsense", "-1", "1", "ab-", "ab-x", "ab--1", "00", "ab-1 ", "ab-99999999999999999999"):
        error = await refused(bench.service.open(Path(f"{path}@{cursor}"), Mode.READ), errno.EINVAL)
        assert str(error), cursor


@rule("STREAM", Kind.STREAM)
async def a_cancelled_read_loses_nothing(bench: Bench, path: Path) -> None:
    """A watcher that gave up waiting, several times, gets the very next record when it asks again."""
    if not await _stirred(bench, path):
        return
    assert bench.stir is not None
    held = await _held(bench, path)
    async with await bench.service.open(Path(f"{path}@0"), Mode.READ) as handle:
        got = [(await _next(handle)).line for _ in held]
        for _ in range(3):
            with anyio.move_on_after(0.02):
                record = await handle.next()
                assert record is not None
                got.append(record.line)
        await bench.stir()
        held = await _held(bench, path)
        while len(got) < len(held):
            got.append((await _next(handle)).line)
    assert got == held


RULES = (
    a_plain_read_ends, twins_are_not_listed, the_oldest_cursor_gives_all, following_waits_for_the_next,
    a_cursor_resumes_behind_its_record, a_foreign_cursor_gives_one_gap, a_malformed_cursor_is_refused,
    a_cancelled_read_loses_nothing,
)  # fmt: skip
