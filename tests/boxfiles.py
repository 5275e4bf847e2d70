"""A small tree with grafts for tests, over real directories: ``s/files`` of this process or of a mount's server."""

from __future__ import annotations

import os
from pathlib import Path as FsPath

from agentfs.providers.containers.files import HostFiles
from agentfs.providers.containers.workdir import Owner
from agentfs.service import FileService
from agentfs.tree import At, Dir, File, Graft, Tree
from agentfs.types import Mode, Path

ROOT_VARIABLE = "TEST_FILES"
BOXED = "boxfiles:from_environment"
OWNER = Owner(65532, 65532) if os.geteuid() == 0 else Owner(os.geteuid(), os.getegid())


def files(top: FsPath, *, file_bytes: int | None = None) -> HostFiles:
    """The files of *top*."""
    return HostFiles(top, OWNER, file_bytes=file_bytes)


def tree(**grafts: FileService) -> Tree:
    """``s/NAME`` for each of *grafts*, beside a file of the tree's own."""

    async def read(at: At) -> bytes:
        return b"running\n"

    def node(name: str, service: FileService) -> Graft:
        async def give(at: At) -> FileService:
            return service

        return Graft(name=name, service=give)

    status = File(name="status", read=read)
    return Tree(Dir(name="s", entries=(status, *(node(name, service) for name, service in grafts.items()))))


def from_environment() -> Tree:
    """``s/files`` over the directory that the environment names, ``s/other`` over one beside it."""
    top = FsPath(os.environ[ROOT_VARIABLE])
    return tree(files=files(top), other=files(top.parent / "other"))


async def put(service: FileService, path: str, data: bytes) -> None:
    """A file made or replaced."""
    async with await service.create(Path(path), Mode.WRITE | Mode.TRUNCATE) as handle:
        assert await handle.write(data, 0) == len(data)


async def get(service: FileService, path: str) -> bytes:
    """A whole small file."""
    async with await service.open(Path(path), Mode.READ) as handle:
        return await handle.read(1 << 20, 0)


async def errno_of(call: object) -> int:
    """The errno that awaiting *call* raises, 0 for none."""
    try:
        await call  # type: ignore[misc]
    except OSError as exc:
        return exc.errno or -1
    return 0
