"""`cp`: files and directories into and out of the workdir of a session, in pieces, however large.

Links and modes stay behind; what a name leads to is the runtime's to refuse.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer

from agentctl.chat import Name
from agentctl.client import Client
from agentctl.command import Session
from agentctl.output import printable
from agentctl.wire import Entry
from agentfs.errors import error
from agentfs.types import agent_id

PIECE: Final = 4 << 20  # under what a runtime takes as the body of one request
_CLOSED: Final = "0000"  # the mode of what cannot be read: links that lead out, pipes, devices
_LINKED: Final = "1"  # how the mode of a directory behind a link begins
Side: TypeAlias = Annotated[str, typer.Argument(metavar="SOURCE")]
OtherSide: TypeAlias = Annotated[str, typer.Argument(metavar="TARGET")]


def cp(
    session: Session, name: Name, source: Side, target: OtherSide,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Directories too, with all below.")] = False,
) -> None:  # fmt: skip
    """Copy a file or directory into or out of a session: one of the two is SESSION:PATH, below its workdir.

    What is neither file nor directory, and links to directories, are left out, told, and an error (EACCES) at the end.
    """
    there, back = _inside(source), _inside(target)
    if (there is None) == (back is None):
        raise error(errno.EINVAL, "", "cp: one of the two must be SESSION:PATH")
    id, path = there or back or ("", "")
    with known(session, f"agents/{agent_id(name)}/containers/sessions/{id}") as top:
        left = (
            _upload(session.client, Path(source), f"{top}/files", path, is_deep=recursive)
            if back else _download(session.client, f"{top}/files", path, Path(target), is_deep=recursive)
        )  # fmt: skip
        _finish(session, source, left)


@contextlib.contextmanager
def known(session: Session, top: str) -> Iterator[str]:
    """*top*, the directory of a session; where that is what is absent, ENOENT says so."""
    try:
        yield top
    except FileNotFoundError:
        if not _exists(session.client, top):
            raise error(errno.ENOENT, top, "no such session") from None
        raise


def _exists(client: Client, path: str) -> bool:
    try:
        client.stat(path)
    except FileNotFoundError:
        return False
    return True


def _finish(session: Session, source: str, left: Iterator[str]) -> None:
    count = 0
    for path in left:
        session.note(f"left out: {printable(path)}")
        count += 1
    if count:
        raise error(errno.EACCES, source, f"{count} left out: neither file nor directory, or closed")
    session.out.done()


def _inside(place: str) -> tuple[str, str] | None:
    """SESSION:PATH as its two halves; None for a file of this machine."""
    name, colon, path = place.partition(":")
    return (name, path.removeprefix("/")) if colon and name and "/" not in name else None


def _upload(client: Client, source: Path, root: str, path: str, *, is_deep: bool) -> Iterator[str]:
    """Copy; what is left out on the way."""
    place = f"{root}/{path}".rstrip("/")
    if not path or path.endswith("/") or _is_dir(client, place):
        place = f"{place}/{source.resolve().name}"
    if not source.is_dir():
        _put(client, source, place)
        return
    _see(source, is_deep=is_deep)
    for folder, names, files in os.walk(source):
        names.sort()
        here = place if Path(folder) == source else f"{place}/{Path(folder).relative_to(source).as_posix()}"
        with contextlib.suppress(FileExistsError):
            client.mkdir(here)
        for file in sorted([*files, *(name for name in names if Path(folder, name).is_symlink())]):
            if Path(folder, file).is_file():
                _put(client, Path(folder, file), f"{here}/{file}")
            else:
                yield str(Path(folder, file))


def _is_dir(client: Client, path: str) -> bool:
    try:
        return client.stat(path).is_dir
    except FileNotFoundError:
        return False


def _put(client: Client, source: Path, path: str) -> None:
    with source.open("rb") as file:
        client.write(path, file.read(PIECE))
        while piece := file.read(PIECE):
            client.call(path, piece)  # appends


def _download(client: Client, root: str, path: str, target: Path, *, is_deep: bool) -> Iterator[str]:
    """Copy; what is left out on the way."""
    place = f"{root}/{path}".rstrip("/")
    name = place.rpartition("/")[2] if path.strip("/") else root.split("/")[-2]
    to = target / name if target.is_dir() else target
    entry = client.stat(place)
    if not entry.is_dir:
        _get(client, place, to)
        return
    _see(place, is_deep=is_deep)
    to.mkdir(exist_ok=True)
    linked = "/"  # as no name begins
    for entry in client.ls(place, recursive=True):
        if entry.name.startswith(linked):
            continue
        is_linked = entry.is_dir and entry.mode.startswith(_LINKED)
        linked = f"{entry.name}/" if is_linked else linked
        if is_linked or entry.mode == _CLOSED or not _is_plain(entry):
            yield f"{place}/{entry.name}"
        elif entry.is_dir:
            (to / entry.name).mkdir(exist_ok=True)
        else:
            _get(client, f"{place}/{entry.name}", to / entry.name)


def _is_plain(entry: Entry) -> bool:
    """Whether its name, which code in the sandbox chose, stays below the target."""
    return not {"", ".", ".."} & set(entry.name.split("/")) and "\0" not in entry.name


def _get(client: Client, path: str, to: Path) -> None:
    with client.open(path) as body:
        if body.kind == "dir":
            raise error(errno.EISDIR, path)
        with to.open("wb") as file:
            for chunk in body.chunks:
                file.write(chunk)


def _see(path: str | Path, *, is_deep: bool) -> None:
    if not is_deep:
        raise error(errno.EISDIR, str(path), "copy it with -r")
