"""``python -m agentfs.providers.keys.process``: the keeper in a process of its own, over the socket on standard input.

It serves the one process that started it and ends with it; it writes no file but those that hold the keys, and no log.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, Final

import msgspec

from agentfs.errors import error
from agentfs.ports import Key
from agentfs.providers.keys.keeper import Keeper
from agentfs.providers.keys.opening import opened
from agentfs.providers.keys.wire import NOTES, PIECE, Answer, Ask, Frames, Source, framed, is_from, maker

AT_ONCE: Final = 16
"""So many answers are sent together at most: the one who asked can go on meanwhile."""
STRANGER: Final = 77  # exit code: this was not started by a runtime
_SET_PDEATHSIG, _SET_DUMPABLE = 1, 4  # <linux/prctl.h>


def harden() -> None:
    """Let nobody look in, a dump included, and nobody but the runtime, by ending, end this process kindly."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    control = ctypes.CDLL(None, use_errno=True).prctl
    for option, value in ((_SET_DUMPABLE, 0), (_SET_PDEATHSIG, signal.SIGKILL)):
        if control(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a runtime that is asked to end still signs while it drains
    sys.excepthook = _named


def _named(kind: type[BaseException], _exc: BaseException, _trace: TracebackType | None) -> None:
    """Say of an error only what it is called: its text could be of a key."""
    os.write(2, f"agentfs keeper: {kind.__name__}\n".encode())


def frames(link: socket.socket, pid: int) -> Iterator[list[bytes]]:
    """What process *pid* sends, some frames at a time, until it ends, or something else is on the line."""
    held = Frames()
    while True:
        piece, notes, *_ = link.recvmsg(PIECE, NOTES)
        if not piece or not is_from(pid, notes):
            return
        if found := held.take(piece):
            yield found


def answer(keeper: Keeper, frame: bytes) -> Answer:
    """The answer to one request; every failure is one."""
    try:
        ask = msgspec.msgpack.decode(frame, type=Ask)
        found = _now(_call(keeper, ask))
    except OSError as exc:
        return failure(exc)
    except Exception as exc:  # noqa: BLE001  # this process goes on, and the text could tell a secret
        return failure(error(errno.EIO, detail=f"keeper: {type(exc).__name__}"))
    return _told(found)


def _told(found: bytes | str) -> Answer:
    return Answer(text=found) if isinstance(found, str) else Answer(data=found)


def failure(exc: OSError) -> Answer:
    """*exc* as an answer."""
    return Answer(exc.errno or errno.EIO, str(exc.filename or ""), exc.strerror or "")


def _call(keeper: Keeper, ask: Ask) -> Coroutine[Any, Any, bytes | str]:
    key = Key(ask.number, ask.pubkey, ask.imported)
    match ask.op:
        case "pubkey":
            return keeper.pubkey(key)
        case "sign":
            return keeper.sign(key, ask.data)
        case "encrypt":
            return keeper.encrypt(key, ask.data, ask.text)
        case "decrypt":
            return keeper.decrypt(key, ask.data, ask.text)
        case "seal":
            return keeper.seal(ask.text, ask.data)
        case "unseal":
            return keeper.unseal(ask.text, ask.data)


def _now(called: Coroutine[Any, Any, bytes | str]) -> bytes | str:
    """The result of a coroutine that never waits: this process has no event loop."""
    try:
        called.send(None)
    except StopIteration as done:
        found: bytes | str = done.value
        return found
    raise error(errno.EIO, detail="keeper: it waits")


def serve(link: socket.socket, pid: int) -> int:
    """Open what the first frame names, then answer the others, until the connection ends; an exit code."""
    coming = frames(link, pid)
    first = next(coming, None)
    if first is None:
        return STRANGER
    try:
        keeper = opened(msgspec.msgpack.decode(first[0], type=Source))
    except OSError as exc:
        link.sendall(framed(failure(exc)))
        return 1
    link.sendall(framed(_told(_now(keeper.pubkey(Key(0))))))  # tells one seed from another
    for some in coming:
        for at in range(0, len(some), AT_ONCE):
            link.sendall(b"".join(framed(answer(keeper, frame)) for frame in some[at : at + AT_ONCE]))
    return 0


def main() -> int:
    """Serve the parent process, when it is the one that made the connection."""
    harden()
    with socket.socket(fileno=0) as link:
        pid, user = maker(link)
        if (pid, user) != (os.getppid(), os.getuid()):
            return STRANGER
        try:
            return serve(link, pid)
        except (ConnectionError, msgspec.DecodeError):
            return 1


if __name__ == "__main__":
    sys.exit(main())
