"""The tiers CTL and WRITE of the file suite: units commit in the write that completes them, and bad input is refused.

Rules for values make files of their own and remove them again; documents come from the bench's samples.
"""

from __future__ import annotations

import errno

from agentfs.types import Kind, Mode, Path, Want, join
from conformance.bench import FRESH, READ_WRITE, Bench, fill, read_all, refused, rule

NAME = "conformance-value"


# -- CTL ---------------------------------------------------------------------------------------------------------------


@rule("CTL", Kind.CTL)
async def reading_lists_the_verbs(bench: Bench, path: Path) -> None:
    """A ctl file that can be read says what it takes, a verb a line."""
    text = (await bench.read(path)).decode()
    assert text.endswith("\n"), repr(text[-20:])
    assert all(line.split() for line in text.splitlines()), text


@rule("CTL", Kind.CTL)
async def an_unknown_verb_is_refused(bench: Bench, path: Path) -> None:
    """EINVAL in the write, and the reason can be read afterwards; comments and blank lines are nothing."""
    exc = await refused(bench.put(path, b"conformance-nonsense now\n", Mode.WRITE), errno.EINVAL)
    assert str(exc)
    assert b"EINVAL" in await bench.read(path), "the last error is not readable"
    await bench.put(path, b"\n# a comment\n", Mode.WRITE)


@rule("CTL", Kind.CTL)
async def bad_quoting_and_bytes_are_refused(bench: Bench, path: Path) -> None:
    """EINVAL for an open quote, EILSEQ for what is not UTF-8, EFBIG for an endless line."""
    await refused(bench.put(path, b"tick 'open\n", Mode.WRITE), errno.EINVAL)
    await refused(bench.put(path, b"\xff\xfe\n", Mode.WRITE), errno.EILSEQ)
    await refused(bench.put(path, b"x" * (1 << 17) + b"\n", Mode.WRITE), errno.EFBIG)


@rule("CTL", Kind.CTL, needs="short")
async def a_bad_line_behind_good_ones_gives_a_short_count(bench: Bench, path: Path) -> None:
    """The good lines are done and counted; the same bytes again give the error."""
    good, bad = b"\n# good\n", b"conformance-nonsense\n"
    async with await bench.service.open(path, Mode.WRITE) as handle:
        taken = await handle.write(good + bad, 0)
        assert taken == len(good), f"took {taken} of {len(good)} good bytes"
        await refused(handle.write(bad, taken), errno.EINVAL)


# -- WRITE: documents --------------------------------------------------------------------------------------------------


@rule("WRITE", Kind.FILE, Kind.QUEUE, Kind.CALL)
async def an_impossible_document_is_refused(bench: Bench, path: Path) -> None:
    """EINVAL for ``{bad`` in its first write; nothing of it stays."""
    st = await bench.service.stat(path)
    if not st.mode & 0o200:
        return
    before = await bench.read(path) if st.mode & 0o400 else b""
    await refused(bench.put(path, b"{bad", FRESH if st.kind is Kind.FILE else Mode.WRITE), errno.EINVAL)
    if st.mode & 0o400 and st.kind is Kind.FILE:
        assert await bench.read(path) == before, "a refused document changed the file"


@rule("WRITE", Kind.FILE)
async def a_sample_can_be_written(bench: Bench, path: Path) -> None:
    """A valid document is taken and read back as JSON that holds it; a second one on the handle is EINVAL."""
    sample = bench.samples.get(path)
    if sample is None or not (await bench.service.stat(path)).mode & 0o200:
        return
    await bench.put(path, sample)
    assert await bench.read(path), "nothing to read after a write"
    await refused(bench.put(path, sample + sample), errno.EINVAL)


@rule("WRITE", Kind.FILE, Kind.QUEUE)
async def a_document_has_a_limit(bench: Bench, path: Path) -> None:
    """EFBIG for one that is too large, in the write that crosses the limit."""
    st = await bench.service.stat(path)
    if st.mode & 0o200:
        await refused(bench.put(path, b'{"x": "' + b"y" * (3 << 20) + b'"}', Mode.WRITE), errno.EFBIG)


@rule("WRITE", Kind.QUEUE)
async def every_document_has_its_receipt(bench: Bench, path: Path) -> None:
    """Each unit is acknowledged on its handle, in order, as a line."""
    sample = bench.samples.get(path)
    if sample is None:
        return
    async with await bench.service.open(path, READ_WRITE) as handle:
        await fill(handle, sample + b"\n" + sample)
        receipts = (await read_all(handle)).splitlines()
    assert len(receipts) == 2, receipts
    assert receipts[0] != receipts[1], "two messages without ids have one receipt"


@rule("WRITE", Kind.QUEUE, needs="short pieces")
async def a_bad_document_behind_a_good_one_gives_a_short_count(bench: Bench, path: Path) -> None:
    """The good one is acknowledged; one cut in pieces is one."""
    sample = bench.samples.get(path)
    if sample is None:
        return
    async with await bench.service.open(path, Mode.WRITE) as handle:
        await handle.write(sample[:3], 0)
        taken = await handle.write(sample[3:] + b"{bad", 3)
        assert taken == len(sample) - 3, f"took {taken}, the good one has {len(sample) - 3}"
        await refused(handle.write(b"{bad", len(sample)), errno.EINVAL)


# -- WRITE: values -----------------------------------------------------------------------------------------------------


@rule("WRITE", Kind.DATA)
async def bytes_come_back(bench: Bench, path: Path) -> None:
    """What is written is read, whatever the bytes; replaced whole, appended, emptied."""
    at = join(path, NAME)
    for data in (b"", b"x", bytes(range(256)) * 40, b'{"looks": "like JSON"}'):
        await bench.gone(at)
        await bench.make(at, data)
        assert await bench.read(at) == data
        assert (await bench.service.stat(at)).size == len(data)
    await bench.put(at, b"short")
    assert await bench.read(at) == b"short"
    await bench.put(at, b"+more", Mode.WRITE | Mode.APPEND)
    assert await bench.read(at) == b"short+more"
    await bench.put(at, b"")
    assert await bench.read(at) == b""
    await bench.gone(at)


@rule("WRITE", Kind.DATA, needs="pieces")
async def offsets_count(bench: Bench, path: Path) -> None:
    """Writes at offsets, holes are zeros, truncate cuts and extends, and nothing is visible before a flush."""
    at = join(path, NAME)
    await bench.gone(at)
    await bench.make(at, b"0123456789")
    async with await bench.service.open(at, READ_WRITE) as handle:
        await handle.write(b"AB", 3)
        await handle.write(b"C", 12)
        assert await handle.read(20, 0) == b"012AB56789\0\0C"
        await handle.truncate(5)
        await handle.truncate(7)
        await handle.flush()
    assert await bench.read(at) == b"012AB\0\0"
    await bench.gone(at)


@rule("WRITE", Kind.DATA)
async def values_have_a_limit(bench: Bench, path: Path) -> None:
    """EFBIG past it, and the value stays what it was."""
    at = join(path, NAME)
    await bench.gone(at)
    await bench.make(at, b"kept")
    await refused(bench.put(at, b"x" * (bench.value_bytes + 1), Mode.WRITE), errno.EFBIG)
    assert await bench.read(at) == b"kept"
    await bench.put(at, b"y" * bench.value_bytes)
    assert (await bench.service.stat(at)).size == bench.value_bytes
    await bench.gone(at)


@rule("WRITE", Kind.DATA)
async def creating_is_exclusive_if_asked(bench: Bench, path: Path) -> None:
    """EEXIST for what is there; otherwise it is opened."""
    at = join(path, NAME)
    await bench.gone(at)
    await bench.make(at, b"one", exclusive=True)
    await refused(bench.make(at, b"two", exclusive=True), errno.EEXIST)
    assert await bench.read(at) == b"one"
    await refused(bench.service.mkdir(at), errno.EEXIST)
    await bench.gone(at)


@rule("WRITE", Kind.DATA)
async def names_have_a_form(bench: Bench, path: Path) -> None:
    """EINVAL for a leading dot, a trailing tilde, ``@``, control characters and other normal forms; too long a name."""
    for name in (".hidden", "editor~", "a@b", "new\nline", "e\u0301"):
        await refused(bench.make(join(path, name), b"x"), errno.EINVAL)
        await refused(bench.service.stat(join(path, name)), errno.ENOENT)
    await refused(bench.make(join(path, "n" * 256), b"x"), errno.ENAMETOOLONG)


@rule("WRITE", Kind.DATA)
async def rename_replaces_and_remove_removes(bench: Bench, path: Path) -> None:
    """A rename moves the bytes and replaces its target; what was removed is gone."""
    one, two = join(path, NAME), join(path, f"{NAME}-2")
    await bench.gone(one)
    await bench.gone(two)
    await bench.make(one, b"one")
    await bench.make(two, b"two")
    await bench.service.rename(one, two)
    assert await bench.read(two) == b"one"
    await refused(bench.service.stat(one), errno.ENOENT)
    await bench.service.remove(two)
    await refused(bench.service.remove(two), errno.ENOENT)
    assert not {st.name for st in await bench.entries(path)} & {NAME, f"{NAME}-2"}


@rule("WRITE", Kind.DATA, needs="noreplace")
async def rename_may_refuse_to_replace(bench: Bench, path: Path) -> None:
    """EEXIST where the caller asked for it."""
    one, two = join(path, NAME), join(path, f"{NAME}-2")
    for at in (one, two):
        await bench.gone(at)
        await bench.make(at, b"x")
    await refused(bench.service.rename(one, two, want=Want(exclusive=True)), errno.EEXIST)
    for at in (one, two):
        await bench.gone(at)


@rule("WRITE", Kind.DATA, needs="version")
async def versions_rise_and_match(bench: Bench, path: Path) -> None:
    """Each change raises the version; a change that names an old one is ESTALE and changes nothing."""
    at = join(path, NAME)
    await bench.gone(at)
    await bench.make(at, b"one")
    first = (await bench.service.stat(at)).qid.version
    await bench.put(at, b"two", want=Want(match=first))
    assert (await bench.service.stat(at)).qid.version > first
    await refused(bench.put(at, b"three", want=Want(match=first)), errno.ESTALE)
    assert await bench.read(at) == b"two"
    await bench.gone(at)


@rule("WRITE", Kind.DATA, needs="stale")
async def a_handle_outlives_its_file(bench: Bench, path: Path) -> None:
    """After a removal it still reads what it had, and its commit is ESTALE."""
    at = join(path, NAME)
    await bench.gone(at)
    await bench.make(at, b"kept")
    async with await bench.service.open(at, READ_WRITE) as handle:
        assert await handle.read(10, 0) == b"kept"
        await bench.service.remove(at)
        assert await handle.read(10, 0) == b"kept"
        await handle.write(b"late", 0)
        await refused(handle.flush(), errno.ESTALE)
        handle.discard()
    await refused(bench.service.stat(at), errno.ENOENT)


RULES = (
    reading_lists_the_verbs, an_unknown_verb_is_refused, bad_quoting_and_bytes_are_refused,
    a_bad_line_behind_good_ones_gives_a_short_count, an_impossible_document_is_refused, a_sample_can_be_written,
    a_document_has_a_limit, every_document_has_its_receipt, a_bad_document_behind_a_good_one_gives_a_short_count,
    bytes_come_back, offsets_count, values_have_a_limit, creating_is_exclusive_if_asked, names_have_a_form,
    rename_replaces_and_remove_removes, rename_may_refuse_to_replace, versions_rise_and_match,
    a_handle_outlives_its_file,
)  # fmt: skip
