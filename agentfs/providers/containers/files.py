"""`HostFiles`: one directory of this machine as files, while code that nobody trusts changes it.

Nothing outside the directory is ever reached; how that is held is in `beneath`. What an open file does is in `opened`.
"""

from __future__ import annotations

import errno
import os
import stat as _stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import anyio.to_thread

from agentfs.errors import BY_ERRNO, error
from agentfs.providers.containers.beneath import Root, entered, found, kept, made, moved, reopened, rooted
from agentfs.providers.containers.names import Names
from agentfs.providers.containers.opened import HostHandle
from agentfs.providers.containers.room import BLOCK, Room
from agentfs.providers.containers.workdir import Owner
from agentfs.service import FileHandle, FileService
from agentfs.types import NO_WANT, ROOT, Kind, Mode, Path, Principal, Qid, Stat, Want, join, split

FILE_MODE: Final = 0o644
DIR_MODE: Final = 0o755
_LATEST_NS: Final = 253_402_300_799 * 1_000_000_000  # the end of the year 9999
_TOLD: Final = {
    errno.EXDEV: (errno.EACCES, "a link that leaves the workdir"),
    errno.ELOOP: (errno.ELOOP, "links that go round, or more than one to a directory"),
    errno.ETXTBSY: (errno.EBUSY, "it is being run"),
    errno.ENXIO: (errno.EACCES, "no file"),
    errno.ENFILE: (errno.EMFILE, ""),
    errno.EMLINK: (errno.ENOSPC, "too many directories here"),
    errno.EOVERFLOW: (errno.EFBIG, ""),
}


@contextmanager
def _told(path: Path, new: Path | None = None) -> Iterator[None]:
    """The body, its errors as the table has them, naming *path* (or, when it is there already, *new*)."""
    try:
        yield
    except OSError as exc:
        code, detail = _TOLD.get(exc.errno or errno.EIO, (exc.errno, ""))
        if code not in BY_ERRNO:
            raise
        where = new if new is not None and code in (errno.EEXIST, errno.ENOTEMPTY) else path
        text = exc.strerror or ""
        said = text.partition(": ")[2] if text.startswith(BY_ERRNO[code].text) else ""
        raise error(code, where, detail or said) from None


class HostFiles(FileService):
    """The files below *root*, as any POSIX file system has them. Who may write is decided by who mounts them.

    Links are followed where they stay below the root, and shown as what they lead to; a directory behind a link is
    shown sticky, so that a walk that removes what it finds spares it, and has no further link to a directory. Links
    that are absolute, leave, dangle or go round, FIFOs, sockets and devices are shown as empty files with no permission
    at all: opening one is EACCES (a dangling link: ENOENT, one that goes round: ELOOP), removing one removes its
    name. Names may be any but those that are not UTF-8, which are left out. A root that is gone: ENOENT for everything.
    """

    def __init__(
        self, root: Root, owner: Owner, *, file_bytes: int | None = None, names: Names | None = None,
        room: Room | None = None,
    ) -> None:  # fmt: skip
        """What is made is *owner*'s when this process is root's. *file_bytes*: EFBIG for a file that grows past it.

        *names* may be shared by many: it bounds what is kept for the listings of all. *room*: ENOSPC for what it has
        no room for; shared by all that write there.
        """
        self._root, self._owner, self._file_bytes, self._room = root, owner, file_bytes, room
        self._names = names or Names()

    def attach(self, principal: Principal) -> HostFiles:
        return self

    async def stat(self, path: Path) -> Stat:
        with _told(path), rooted(self._root) as root:
            above, name = _parted(path)
            if not name:
                return _shown("", os.fstat(root), is_linked=False)
            with found(root, above, is_dir=True) as (top, is_linked):
                return _entry(root, top, path, is_linked=is_linked)

    async def list(self, path: Path, after: str = "", limit: int = 1000) -> Sequence[Stat]:
        with _told(path):
            return await anyio.to_thread.run_sync(self._page, path, after, limit)

    def _page(self, path: Path, after: str, limit: int) -> Sequence[Stat]:
        entries: list[Stat] = []
        with (
            rooted(self._root) as root,
            found(root, path, is_dir=True) as (top, is_linked),
            kept(entered(top, ".")) as fd,
        ):
            while len(entries) < limit and (names := self._names.page(fd, after, limit - len(entries))):
                after = names[-1]
                entries += _entries(root, top, path, names, is_linked=is_linked)
        return entries

    async def open(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        with _told(path), rooted(self._root) as root, found(root, path) as (fd, _):
            about = os.fstat(fd)
            if _stat.S_ISDIR(about.st_mode):
                raise error(errno.EISDIR, path)
            if not _stat.S_ISREG(about.st_mode):
                raise error(errno.EACCES, path, "neither a file nor a directory")
            _match(about, path, want)
            return HostHandle(reopened(fd, _flags(mode)), path, mode, self._file_bytes, self._room)

    async def create(self, path: Path, mode: Mode, *, want: Want = NO_WANT) -> FileHandle:
        if path == ROOT:
            raise error(errno.EEXIST, path)
        try:
            with _told(path), self._parent(path) as (top, name):
                await self._take(top, name, 0)
                fd = made(top, name, _flags(mode))
        except FileExistsError:
            if want.exclusive or (await self.stat(path)).is_dir:
                raise
            return await self.open(path, mode, want=want)
        handle = HostHandle(fd, path, mode & ~Mode.TRUNCATE, self._file_bytes, self._room)
        try:
            with _told(path):
                self._give(fd, FILE_MODE)
        except BaseException:
            await handle.aclose()
            raise
        return handle

    async def mkdir(self, path: Path, *, want: Want = NO_WANT) -> None:
        if path == ROOT:
            raise error(errno.EEXIST, path)
        with _told(path), self._parent(path) as (top, name):
            await self._take(top, name, BLOCK)
            os.mkdir(name, 0o700, dir_fd=top)
            with kept(entered(top, name)) as fd:
                self._give(fd, DIR_MODE)

    async def remove(self, path: Path, *, want: Want = NO_WANT) -> None:
        with _told(path), self._parent(path) as (top, name):
            _match(os.stat(name, dir_fd=top, follow_symlinks=False), path, want)
            try:
                os.unlink(name, dir_fd=top)
            except IsADirectoryError:
                os.rmdir(name, dir_fd=top)
        self._freed()

    async def rename(self, old: Path, new: Path, *, want: Want = NO_WANT) -> None:
        with _told(old, new), self._parent(old) as (old_top, old_name), self._parent(new) as (new_top, new_name):
            _match(os.stat(old_name, dir_fd=old_top, follow_symlinks=False), old, want)
            moved(old_top, old_name, new_top, new_name, is_exclusive=want.exclusive)
        self._freed()

    @contextmanager
    def _parent(self, path: Path) -> Iterator[tuple[int, str]]:
        """The directory that holds the name of *path*, and that name. EBUSY for the root."""
        above, name = _parted(path)
        if not name:
            raise error(errno.EBUSY, path, "the root cannot be made, removed or renamed")
        with rooted(self._root) as root, found(root, above, is_dir=True) as (top, _):
            yield top, name

    async def _take(self, top: int, name: str, size: int) -> None:
        """Room for *name* in the directory *top*, if it is new, of *size* bytes. ENOSPC."""
        if self._room is None:
            return
        try:
            os.stat(name, dir_fd=top, follow_symlinks=False)
        except FileNotFoundError:
            await self._room.take(size, 1)

    def _freed(self) -> None:
        if self._room is not None:
            self._room.change()

    def _give(self, fd: int, mode: int) -> None:
        """Make what was just made its owner's."""
        if os.geteuid() == 0:
            os.fchown(fd, self._owner.uid, self._owner.gid)
        os.fchmod(fd, mode)


def _parted(path: Path) -> tuple[Path, str]:
    """Parent and name of *path*. EINVAL for a name that is no child's: the calls that take it know no bounds."""
    above, name = split(path)
    if name in (".", "..") or "\0" in name or (above and not name):
        raise error(errno.EINVAL, path, f"path segment {name!r}")
    return above, name


def _flags(mode: Mode) -> int:
    access = os.O_WRONLY if Mode.READ not in mode else os.O_RDWR
    return (access if Mode.WRITE in mode else os.O_RDONLY) | (os.O_APPEND if Mode.APPEND in mode else 0)


def _match(about: os.stat_result, path: Path, want: Want) -> None:
    if want.match is not None and want.match != about.st_ctime_ns:
        raise error(errno.ESTALE, path)


def _entries(root: int, top: int, path: Path, names: Sequence[str], *, is_linked: bool) -> Iterator[Stat]:
    for name in names:
        try:
            yield _entry(root, top, join(path, name), is_linked=is_linked)
        except FileNotFoundError:  # removed since it was listed
            continue


def _entry(root: int, top: int, path: Path, *, is_linked: bool) -> Stat:
    """The entry of *path* in the directory *top*, which lies behind a link with *is_linked*. ENOENT."""
    name = split(path)[1]
    about = os.stat(name, dir_fd=top, follow_symlinks=False)
    if not _stat.S_ISLNK(about.st_mode):
        return _shown(name, about, is_linked=is_linked)
    try:
        with found(root, path) as (fd, _):
            return _shown(name, os.fstat(fd), is_linked=True)
    except OSError:
        return _shown(name, about, is_linked=True)


def _shown(name: str, about: os.stat_result, *, is_linked: bool) -> Stat:
    bits, qid = about.st_mode & 0o777, Qid(about.st_ino, about.st_ctime_ns)
    mtime_ns = min(max(about.st_mtime_ns, 0), _LATEST_NS)
    if _stat.S_ISDIR(about.st_mode):
        sticky = _stat.S_ISVTX if is_linked else 0
        return Stat(name, _stat.S_IFDIR | bits | sticky, 0, mtime_ns, qid, Kind.DIR)
    if _stat.S_ISREG(about.st_mode):
        return Stat(name, _stat.S_IFREG | bits, about.st_size, mtime_ns, qid, Kind.DATA)
    return Stat(name, _stat.S_IFREG, 0, mtime_ns, qid, Kind.DATA)
