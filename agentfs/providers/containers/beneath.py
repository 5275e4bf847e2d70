"""Descriptors of what lies beneath one directory, whatever is done to it at the same time: openat2(2), renameat2(2).

Nothing is read or written here. Paths are relative and clean; "" is the directory itself.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat as _stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path as FsPath
from typing import Final, TypeAlias

Root: TypeAlias = FsPath | Callable[[], FsPath]
"""A directory of this machine, or what tells it. Its own name and all above it are the runtime's alone."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_OPENAT2: Final = 437  # the same number on every architecture
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x01, 0x02, 0x04, 0x08
_INSIDE: Final = _NO_XDEV | _NO_MAGICLINKS | _BENEATH
_PLAIN: Final = _INSIDE | _NO_SYMLINKS
_TRIES: Final = 64
_NOREPLACE: Final = 1
_LOOK: Final = os.O_PATH | os.O_CLOEXEC


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _openat2(top: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """A descriptor of *path* below the directory *top*. EAGAIN while ``..`` of a link races with renames: tried on."""
    if "\0" in path:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    how, name = _How(flags | os.O_CLOEXEC, mode, resolve), os.fsencode(path or ".")
    for _ in range(_TRIES):
        fd = int(_libc.syscall(_OPENAT2, top, name, ctypes.byref(how), ctypes.sizeof(how)))
        code = ctypes.get_errno()
        if fd >= 0:
            return fd
        if code not in (errno.EAGAIN, errno.EINTR):
            raise OSError(code, os.strerror(code), path)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)


@contextmanager
def kept(fd: int) -> Iterator[int]:
    """*fd*, closed at the end of the body."""
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def rooted(root: Root) -> Iterator[int]:
    """A descriptor of *root* for the body. ENOENT, also where it is no directory (any more)."""
    place = root() if callable(root) else root
    try:
        fd = os.open(place, _LOOK | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (NotADirectoryError, FileNotFoundError) as exc:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT)) from exc
    with kept(fd):
        yield fd


def find(top: int, path: str) -> tuple[int, bool]:
    """A descriptor (O_PATH) of what *path* leads to, and whether it goes through a link to a directory.

    One such link at most: with links to directories above them every walk would be endless. ELOOP for a second one,
    EXDEV for a link that is absolute or leaves *top*, ENOENT, ENOTDIR.
    """
    try:
        return _openat2(top, path, _LOOK, _PLAIN), False
    except OSError as exc:
        if exc.errno != errno.ELOOP:
            raise
    head, rest = _at_first_link(top, path)
    target = _openat2(top, head, _LOOK, _INSIDE)
    if not rest:
        return target, True
    with kept(target):
        try:
            return _openat2(target, rest, _LOOK, _PLAIN), True
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                raise
        return _last_link(top, target, path, rest), True


def _at_first_link(top: int, path: str) -> tuple[str, str]:
    """*path* up to its first link, that included, and the rest."""
    parts = path.split("/")
    for n in range(1, len(parts)):
        head = "/".join(parts[:n])
        try:
            with kept(_openat2(top, head, _LOOK | os.O_NOFOLLOW, _PLAIN)) as fd:
                if not _stat.S_ISLNK(os.fstat(fd).st_mode):
                    continue
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                raise
        return head, "/".join(parts[n:])
    return path, ""


def _last_link(top: int, target: int, path: str, rest: str) -> int:
    """What *path* leads to, where only its last name may be a second link, and that to no directory. ELOOP."""
    above = rest.rpartition("/")[0]
    with kept(_openat2(target, above, _LOOK, _PLAIN)):
        fd = _openat2(top, path, _LOOK, _INSIDE)
    if _stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    return fd


@contextmanager
def found(top: int, path: str, *, is_dir: bool = False) -> Iterator[tuple[int, bool]]:
    """`find` for the body. ENOTDIR with *is_dir* for what is none."""
    fd, is_linked = find(top, path)
    with kept(fd):
        if is_dir and not _stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        yield fd, is_linked


def reopened(fd: int, flags: int) -> int:
    """The very file of the O_PATH descriptor *fd*, opened: what it is was looked at before anything is opened."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)


def made(top: int, name: str, flags: int) -> int:
    """A new file *name* in the directory *top*, opened. EEXIST, for a link too."""
    return _openat2(top, name, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _PLAIN, 0o600)


def entered(top: int, name: str) -> int:
    """The directory *name* in *top*, which is no link, opened. ENOTDIR, ELOOP, ENOENT."""
    return _openat2(top, name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, _PLAIN)


def moved(old_top: int, old: str, new_top: int, new: str, *, is_exclusive: bool) -> None:
    """Rename a name of one directory to a name of another, links as they are. EEXIST with *is_exclusive*."""
    flags = _NOREPLACE if is_exclusive else 0
    if _libc.renameat2(old_top, os.fsencode(old), new_top, os.fsencode(new), flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), old)
