"""`HostFiles` against the file system itself: random operations must give the same errno and leave the same tree."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path as FsPath

import trio
from boxfiles import files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentfs.service import FileService
from agentfs.types import ROOT, Mode, Path, Want

PATHS = st.sampled_from(["a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "a/x", "ü", ".hid", "n@1"])
OPS = st.one_of(
    st.tuples(st.just("make"), PATHS, st.booleans()),
    st.tuples(st.just("put"), PATHS, st.binary(max_size=40)),
    st.tuples(st.just("append"), PATHS, st.binary(max_size=40)),
    st.tuples(st.just("poke"), PATHS, st.integers(0, 60)),
    st.tuples(st.just("cut"), PATHS, st.integers(0, 60)),
    st.tuples(st.just("mkdir"), PATHS),
    st.tuples(st.just("remove"), PATHS),
    st.tuples(st.just("rename"), PATHS, PATHS, st.booleans()),
)


def plain(top: FsPath, op: tuple[object, ...]) -> None:
    """Apply *op* with system calls."""
    verb, path = op[0], top / str(op[1])
    match verb:
        case "make":
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | (os.O_EXCL if op[2] else 0)))
        case "mkdir":
            path.mkdir()
        case "remove":
            path.rmdir() if path.is_dir() else path.unlink()
        case "rename":
            new = top / str(op[2])
            if op[3] and path.exists() and new.exists():
                raise FileExistsError(errno.EEXIST, "exists")
            path.rename(new)
        case _:
            flags = {"put": os.O_TRUNC, "append": os.O_APPEND}.get(str(verb), 0)
            fd = os.open(path, os.O_WRONLY | flags)
            change(fd, op)
            os.close(fd)


def change(fd: int, op: tuple[object, ...]) -> None:
    if op[0] == "cut":
        os.ftruncate(fd, op[2])  # type: ignore[arg-type]
    elif op[0] == "poke":
        os.pwrite(fd, b"poke", op[2])  # type: ignore[arg-type]
    else:
        os.write(fd, op[2])  # type: ignore[arg-type]


async def served(service: FileService, op: tuple[object, ...]) -> None:
    """Apply *op* with the service."""
    verb, path = op[0], Path(str(op[1]))
    match verb:
        case "make":
            await (await service.create(path, Mode.WRITE, want=Want(exclusive=bool(op[2])))).aclose()
        case "mkdir":
            await service.mkdir(path)
        case "remove":
            await service.remove(path)
        case "rename":
            await service.rename(path, Path(str(op[2])), want=Want(exclusive=bool(op[3])))
        case _:
            mode = {"put": Mode.TRUNCATE, "append": Mode.APPEND}.get(str(verb), Mode.READ)
            async with await service.open(path, Mode.WRITE | mode) as handle:
                if verb == "cut":
                    await handle.truncate(op[2])  # type: ignore[arg-type]
                elif verb == "poke":
                    await handle.write(b"poke", op[2])  # type: ignore[arg-type]
                else:
                    await handle.write(op[2], 0)  # type: ignore[arg-type]


def below(top: FsPath) -> dict[str, bytes | None]:
    return {str(at.relative_to(top)): None if at.is_dir() else at.read_bytes() for at in top.rglob("*")}


async def shown(service: FileService, path: Path = ROOT) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    for entry in await service.list(path):
        here = Path(f"{path}/{entry.name}".lstrip("/"))
        assert await service.stat(here) == entry
        if entry.is_dir:
            found |= {here: None, **await shown(service, here)}
        else:
            async with await service.open(here, Mode.READ) as handle:
                found[here] = await handle.read(1000, 0)
            assert entry.size == len(found[here] or b"")
    return found


async def compare(ops: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        model, service = FsPath(one), files(FsPath(two))
        for op in ops:
            want = got = 0
            try:
                plain(model, op)
            except OSError as exc:
                want = exc.errno or 0
            try:
                await served(service, op)
            except OSError as exc:
                got = exc.errno or 0
            if op[0] == "make" and want == errno.EISDIR:
                want = errno.EEXIST  # the service's word for a directory in a file's place
            assert errno.errorcode.get(got) == errno.errorcode.get(want), op
            assert await shown(service) == below(model), op


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ops=st.lists(OPS, max_size=30))
def test_it_is_a_file_system(ops: list[tuple[object, ...]]) -> None:
    trio.run(compare, ops)
