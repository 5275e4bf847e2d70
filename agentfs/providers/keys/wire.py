"""What a runtime and the keeper in a process of its own say to each other: frames, and whose they are.

A frame is four bytes of length, big-endian, and that many of msgpack. It opens no socket and holds no key.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from agentfs.errors import error

LARGEST: Final = 16 << 20  # bytes of a frame, its length not counted
PIECE: Final = 64 << 10  # bytes taken from the socket at once
_LENGTH: Final = struct.Struct(">I")
_SENDER: Final = struct.Struct("=iII")  # struct ucred: process, user, group
NOTES: Final = socket.CMSG_SPACE(_SENDER.size)  # room for the sender's credentials


class Source(msgspec.Struct, frozen=True, array_like=True):
    """The first frame: where the seed is, and what opens it.

    *kind* as the option ``keys``; *phrase* is the descriptor a passphrase can be read from, -1 without one. Unless
    *may_make*, what is missing is ENOENT and is not made.
    """

    kind: Literal["sealed", "memory", "keyring"]
    file: str = ""
    key_file: str = ""
    phrase: int = -1
    may_make: bool = True

    @property
    def is_lasting(self) -> bool:
        """Whether it can be opened a second time: a passphrase is not kept, nor are keys in memory."""
        return self.kind == "keyring" or (self.kind == "sealed" and self.phrase < 0)


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """A request: a method of `agentfs.ports.Signer` by its name, and what it takes.

    *number*, *pubkey* and *imported* are the key; *data* is what is bytes and *text* what is text of the rest.
    """

    op: Literal["pubkey", "sign", "encrypt", "decrypt", "seal", "unseal"]
    number: int = 0
    pubkey: bytes = b""
    imported: bytes = b""
    data: bytes = b""
    text: str = ""


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """The answer to one request, in the order of the requests: an error unless *errno* is 0, else bytes or text."""

    errno: int = 0
    path: str = ""
    detail: str = ""
    data: bytes = b""
    text: str = ""

    def given(self) -> Answer:
        """This answer; the `OSError` it stands for is raised."""
        if self.errno:
            raise OSError(self.errno, self.detail, self.path or None)
        return self


def framed(doc: Source | Ask | Answer) -> bytes:
    """*doc* as a frame. EFBIG over `LARGEST`, EINVAL for text that is not UTF-8."""
    try:
        packed = msgspec.msgpack.encode(doc)
    except UnicodeEncodeError as exc:
        raise error(errno.EINVAL, detail="text: not UTF-8") from exc
    if len(packed) > LARGEST:
        raise error(errno.EFBIG, detail=f"keeper: at most {LARGEST} bytes at once")
    return _LENGTH.pack(len(packed)) + packed


class Frames:
    """Puts the pieces that come out of a socket together again."""

    def __init__(self) -> None:
        self._held = bytearray()

    def take(self, piece: bytes) -> list[bytes]:
        """The frames, without their lengths, that are whole with *piece*. EFBIG for a length over `LARGEST`."""
        self._held += piece
        found, at = [], 0
        while len(self._held) - at >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._held, at)
            if size > LARGEST:
                raise error(errno.EFBIG, detail="keeper: a frame over its bound")
            end = at + _LENGTH.size + size
            if len(self._held) < end:
                break
            found.append(bytes(self._held[at + _LENGTH.size : end]))
            at = end
        del self._held[:at]
        return found


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection that has no name, so that nobody else can connect; each tells who sent what."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return ends


def maker(link: socket.socket) -> tuple[int, int]:
    """The process and user that made the connection *link* is one end of, as the kernel says."""
    held = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _SENDER.size)
    pid, user, _ = _SENDER.unpack(held)
    return pid, user


def is_from(pid: int, notes: Iterable[tuple[int, int, bytes]]) -> bool:
    """Whether the kernel says in *notes*, which came with a piece, that process *pid* of this user sent it."""
    held = [data for level, kind, data in notes if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)]
    return len(held) == 1 and _SENDER.unpack(held[0])[:2] == (pid, os.getuid())
