"""The tier READ of the file suite: names, listings, stats and reads agree, and nothing of it has an effect.

No rule here writes a byte.
"""

from __future__ import annotations

import errno
from typing import Any

from agentfs.types import Kind, Mode, Path, check_name, join, split
from conformance.bench import FRESH, LEAVES, READ_WRITE, Bench, read_all, refused, rule

ABSENT = "conformance-absent"


@rule("READ", Kind.DIR)
async def listing_agrees_with_stat(bench: Bench, path: Path) -> None:
    """Each entry says what a stat of its path says; names are sorted, single, and could have been created."""
    entries = await bench.entries(path)
    names = [st.name for st in entries]
    assert names == sorted(set(names)), f"names {names}"
    wrong = []
    for listed in entries:
        check_name(listed.name)
        found = await bench.service.stat(join(path, listed.name))
        same = (found.name, found.mode, found.kind) == (listed.name, listed.mode, listed.kind)
        if not same or found.is_dir != (found.kind is Kind.DIR) or found.qid.path != listed.qid.path:
            wrong.append(f"{listed} is {found}")
    assert not wrong, "; ".join(wrong)


@rule("READ", Kind.DIR)
async def paging_loses_nothing(bench: Bench, path: Path) -> None:
    """Pages of any length hold every name once; a page may begin behind a name that is not there."""
    whole = [st.name for st in await bench.service.list(path)]
    for limit in {1, 2, 3, len(whole) or 1, len(whole) + 1}:
        paged = [st.name for st in await bench.entries(path, limit)]
        assert paged == whole, f"pages of {limit}: {paged} instead of {whole}"
    for name in whole[:10]:
        for after in (name, name[:-1], f"{name}!"):
            found = [st.name for st in await bench.service.list(path, after)]
            assert found == [n for n in whole if n > after], f"behind {after!r}: {found}"
    assert not await bench.service.list(path, "", 0)


@rule("READ", Kind.DIR)
async def a_directory_is_no_file(bench: Bench, path: Path) -> None:
    """Opening a directory is EISDIR."""
    await refused(bench.service.open(path, Mode.READ), errno.EISDIR)


@rule("READ", Kind.DIR)
async def absent_names_are_absent(bench: Bench, path: Path) -> None:
    """ENOENT for a name that is not there, for what is below it, and for twins of no stream."""
    absent = join(path, ABSENT)
    for name in (absent, join(absent, "below"), Path(f"{absent}@follow"), Path(f"{absent}.1"), Path(f"{absent}@0")):
        await refused(bench.service.stat(name), errno.ENOENT)
        await refused(bench.service.open(name, Mode.READ), errno.ENOENT)
        await refused(bench.service.list(name), errno.ENOENT)
        await refused(bench.service.remove(name), errno.ENOENT)
    await refused(bench.service.rename(absent, Path(f"{absent}2")), errno.ENOENT)


@rule("READ", *LEAVES)
async def a_file_is_no_directory(bench: Bench, path: Path) -> None:
    """ENOTDIR for its listing and for names below it."""
    await refused(bench.service.list(path), errno.ENOTDIR)
    below = join(path, "below")
    for call in (bench.service.stat, bench.service.list, bench.service.remove):
        await refused(call(below), errno.ENOTDIR)
    await refused(bench.service.open(below, Mode.READ), errno.ENOTDIR)
    await refused(_make(bench, below), errno.ENOTDIR)


async def _make(bench: Bench, path: Path) -> None:
    await bench.make(path, b"x")


@rule("READ", *LEAVES)
async def partial_reads_agree(bench: Bench, path: Path) -> None:
    """Reads of one handle in pieces of any size, in any order, are parts of one whole; behind the end is nothing."""
    if not (await bench.service.stat(path)).mode & 0o400:
        await refused(bench.service.open(path, Mode.READ), errno.EACCES)
        return
    async with await bench.service.open(path, Mode.READ) as handle:
        whole = await read_all(handle)
        st = await bench.service.stat(path)
        for size in (1, 7, 4096, len(whole) + 1):
            for offset in {0, 1, len(whole) // 2, max(len(whole) - 3, 0), len(whole)}:
                part = await handle.read(size, offset)
                if st.kind is Kind.CALL or (st.kind is Kind.STREAM and offset + size > len(whole)):
                    part = part[: max(len(whole) - offset, 0)]
                assert part == whole[offset : offset + size], f"read({size}, {offset}) of {len(whole)}: {part!r:.60}"
        if st.kind is not Kind.STREAM:
            assert await handle.read(10, len(whole) + 10) == b""
            assert handle.size in (None, 0, len(whole)), f"handle size {handle.size}, content {len(whole)}"
    if st.kind is Kind.DATA:
        assert st.size == len(whole), f"size {st.size}, content {len(whole)}"


@rule("READ", *LEAVES)
async def modes_hold(bench: Bench, path: Path) -> None:
    """What the bits do not show is EACCES or EROFS, whatever the bytes."""
    st = await bench.service.stat(path)
    if not st.mode & 0o200:
        codes = (errno.EACCES, errno.EROFS, errno.EOPNOTSUPP) if "open" not in bench.expresses else (
            errno.EACCES, errno.EROFS,
        )  # fmt: skip
        await refused(_attempt(bench, path), *codes)


async def _attempt(bench: Bench, path: Path) -> None:
    async with await bench.service.open(path, Mode.WRITE) as handle:
        await handle.write(b"x\n", 0)
    raise OSError(errno.EOPNOTSUPP, "a handle that cannot write")  # a face without an open has nothing to refuse


@rule("READ", *LEAVES, needs="handle")
async def a_closed_handle_is_closed(bench: Bench, path: Path) -> None:
    """EBADF for reads after the close, which may come twice; a handle does no more than it was opened for."""
    st = await bench.service.stat(path)
    if st.mode & 0o400:
        handle = await bench.service.open(path, Mode.READ)
        await refused(handle.write(b"x\n", 0), errno.EBADF, errno.EACCES)
        await handle.aclose()
        await handle.aclose()
        await refused(handle.read(10, 0), errno.EBADF)
    if st.mode & 0o200:
        handle = await bench.service.open(path, Mode.WRITE)
        await refused(handle.read(10, 0), errno.EBADF, errno.EACCES)
        await handle.aclose()
        await refused(handle.write(b"x\n", 0), errno.EBADF)


@rule("READ", needs="qid")
async def numbers_are_identities(bench: Bench, path: Path) -> None:
    """No two files share an identity number, and each keeps its own."""
    seen: dict[int, Path] = {}
    for at, st in bench.found:
        again = await bench.service.stat(at)
        assert again.qid.path == st.qid.path, f"{at}: {st.qid} became {again.qid}"
        assert st.qid.path not in seen, f"{at} has the number of {seen[st.qid.path]}"
        seen[st.qid.path] = at


@rule("READ", needs="open")
async def opening_has_no_effect(bench: Bench, path: Path) -> None:
    """Opening and closing every file in every mode its bits allow changes no listing, no stat and no content."""
    still = [await _picture(bench), await _picture(bench)]
    for at, st in bench.found:
        if st.is_dir:
            continue
        modes = [Mode.READ] * bool(st.mode & 0o400) + [Mode.WRITE, Mode.WRITE | Mode.APPEND] * bool(st.mode & 0o200)
        modes += [READ_WRITE] * (st.mode & 0o600 == 0o600)
        modes += [FRESH] * bool(st.mode & 0o200 and st.kind is not Kind.DATA)
        for mode in modes:
            await (await bench.service.open(at, mode)).aclose()
    after = await _picture(bench)
    live = {at for at in still[0] if still[0].get(at) != still[1].get(at)}
    changed = [f"{at}: {still[1].get(at)} -> {after.get(at)}" for at in {*still[1], *after} if at not in live]
    changed = [text for text in changed if not _is_same(text)]
    assert not changed, "; ".join(changed)


def _is_same(text: str) -> bool:
    before, _, after = text.partition(": ")[2].partition(" -> ")
    return before == after


async def _picture(bench: Bench) -> dict[Path, Any]:
    seen = Bench(bench.service, bench.expresses)
    await seen.walk()
    picture: dict[Path, Any] = {}
    for at, st in seen.found:
        content = b"" if st.is_dir or not st.mode & 0o400 else await seen.read(at)
        picture[at] = (st, content)
    return picture


@rule("READ", *LEAVES)
async def names_are_fixed(bench: Bench, path: Path) -> None:
    """Where a directory shows no write bit, nothing can be made, and nothing that is there removed or renamed."""
    top, name = split(path)
    if (await bench.service.stat(top)).mode & 0o200:
        return
    codes = (errno.EACCES, errno.EROFS, errno.EPERM, errno.EBUSY)
    await refused(bench.service.remove(path), *codes)
    await refused(bench.service.rename(path, join(top, f"{name}2")), *codes)
    await refused(bench.service.mkdir(join(top, ABSENT)), *codes)
    await refused(_make(bench, join(top, ABSENT)), *codes)


RULES = (
    listing_agrees_with_stat, paging_loses_nothing, a_directory_is_no_file, absent_names_are_absent,
    a_file_is_no_directory, partial_reads_agree, modes_hold, a_closed_handle_is_closed, numbers_are_identities,
    opening_has_no_effect, names_are_fixed,
)  # fmt: skip
