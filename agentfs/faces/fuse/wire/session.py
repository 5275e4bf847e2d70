"""Serving one mount: who takes the next message, who answers it, and what a signal of the caller does.

One task leads: it takes messages and answers them itself, without a switch of tasks, as long as no answer has to wait.
The first that has to wait makes another task the leader, and goes on by itself. Of the opcodes it knows INIT only.
"""

from __future__ import annotations

import errno
import logging
import types
from collections.abc import Collection, Generator
from time import monotonic
from typing import Any, Final, cast

import trio

from agentfs.errors import error, row_of
from agentfs.faces.fuse.core import Core
from agentfs.faces.fuse.wire import protocol as p
from agentfs.faces.fuse.wire.backing import STACK_DEPTH, Backings
from agentfs.faces.fuse.wire.device import MAX_WRITE, Device, GoneError, Message
from agentfs.faces.fuse.wire.operations import SILENT, TABLE, UNKNOWN, Answer, Call, Operations
from agentfs.faces.fuse.wire.protocol import Init, Notify, Op

log = logging.getLogger(__name__)

_TURN_S: Final = 0.002  # then others have theirs: one message may be a thousand names
_SPARE: Final = 16
_PAGE: Final = 4096
_PUT_AWAY_S: Final = 0.02
_BACKGROUND: Final = 0xFFFF  # reads that wait there (aio) must not hold up the releases, which go there too
_WANTED: Final = (
    Init.ASYNC_READ | Init.ATOMIC_O_TRUNC | Init.BIG_WRITES | Init.AUTO_INVAL_DATA | Init.DO_READDIRPLUS
    | Init.READDIRPLUS_AUTO | Init.ASYNC_DIO | Init.PARALLEL_DIROPS | Init.ABORT_ERROR | Init.MAX_PAGES | Init.INIT_EXT
    | Init.PASSTHROUGH
)  # fmt: skip


@types.coroutine
def _go_on(coro: Call, trap: object) -> Generator[Any, Any, Answer]:
    """Let *coro*, which was driven by hand up to *trap*, run to its end as a part of this task."""
    thrown: BaseException | None = None
    sent: object = None
    while True:
        try:
            sent, thrown = (yield trap), None
        except BaseException as exc:  # noqa: BLE001 - it is handed on
            thrown = exc
        try:
            trap = coro.send(sent) if thrown is None else coro.throw(thrown)
        except StopIteration as done:
            return cast("Answer", done.value)


class _Worker:
    """A task that may lead. ``scope`` is what a signal of the caller it works for cancels."""

    __slots__ = ("is_stopped", "scope")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.is_stopped = False


class Session:
    """The mount at the other end of *device*, whose tree is *core*'s: first `greet`, then `run`."""

    def __init__(self, core: Core, device: Device) -> None:
        self._device = device
        self._backings = Backings(device.fd)
        self._operations = Operations(core, self._backings, self._wake, self._interrupt)
        self._waiting: dict[int, _Worker] = {}
        self._idle = trio.lowlevel.ParkingLot()
        core.keeping.recall = self._recall

    async def run(self) -> None:
        """Serve until the mount is gone."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._work)

    async def _work(self) -> None:
        while True:
            worker = _Worker()
            with worker.scope:
                try:
                    await self._lead(worker)
                except GoneError:
                    self._nursery.cancel_scope.cancel()
            if len(self._idle) >= _SPARE:
                return
            await self._idle.park()

    def _step_aside(self) -> None:
        if self._idle:
            self._idle.unpark()
        else:
            self._nursery.start_soon(self._work)

    async def _lead(self, worker: _Worker) -> None:
        """Take and answer messages up to the first that has to wait, and then that one only."""
        ends = monotonic() + _TURN_S
        while True:
            message = self._take()
            if message is None:
                await self._device.wait()
                ends = monotonic() + _TURN_S
            elif (begun := self._begin(message)) is not None:
                self._step_aside()
                await self._finish(message, worker, *begun)
                return
            elif monotonic() > ends:
                await trio.lowlevel.checkpoint()
                ends = monotonic() + _TURN_S

    def _take(self) -> Message | None:
        while True:
            try:
                return self._device.take() or self._device.take_soon()
            except OSError as exc:
                log.error("dropped: %s", exc)

    def _begin(self, message: Message) -> tuple[Call, object] | None:
        """Answer *message*; or, where that has to wait, what it was driven up to by hand, and what that waits for."""
        opcode, unique, node, tid, body = message
        row = TABLE.get(opcode, UNKNOWN)
        if row.refusal or len(body) < row.least:
            self._say(message, row.refusal or errno.EINVAL)
            return None
        try:
            answer = row.handler(self._operations, node, tid, body)
            if not isinstance(answer, bytes):
                try:
                    return answer, answer.send(None)
                except StopIteration as done:  # of the coroutine only: one that a bug lets out of a call is a failure
                    answer = done.value
        except Exception as exc:  # noqa: BLE001 - its errno is the answer
            self._refuse(message, exc)
            return None
        if answer is not None:
            self._device.answer(unique, answer)
        return None

    async def _finish(self, message: Message, worker: _Worker, call: Call, trap: object) -> None:
        """Answer *message* once *call*, which waits for *trap*, is done."""
        opcode, unique, *_ = message
        if TABLE[opcode].can_stop:
            self._waiting[unique] = worker
        try:
            answer = await _go_on(call, trap)
            if answer is not None:
                self._device.answer(unique, answer)
        except Exception as exc:  # noqa: BLE001 - its errno is the answer
            self._refuse(message, exc)
        except BaseException as exc:
            if not worker.is_stopped or isinstance(exc, KeyboardInterrupt | SystemExit):
                raise
            self._device.refuse(unique, errno.EINTR)  # its cancellation, or a group with it, ends here
        finally:
            self._waiting.pop(unique, None)

    def _refuse(self, message: Message, exc: Exception) -> None:
        code = row_of(exc).errno
        if code == errno.EIO:
            log.error("opcode %d failed", message[0], exc_info=exc)
        self._say(message, code)

    def _say(self, message: Message, code: int) -> None:
        opcode, unique, *_ = message
        if opcode not in SILENT:
            self._device.refuse(unique, code)

    def _wake(self, key: int) -> None:
        self._device.notify(Notify.POLL, p.NOTIFY_POLL.pack(key))

    def _recall(self, nodes: Collection[int], names: bool) -> None:
        """Have the kernel ask anew for the attributes of *nodes* and for all *names*. Neither waits for a lock.

        A node that it does not know may be one that it was told of just now and has not put away yet: then it must
        not trust the name either, and is told once more in case it put both away later still.
        """
        if missed := self._tell(nodes, names):
            if not names:
                self._tell((), names=True)
            self._nursery.start_soon(self._tell_later, missed)

    def _tell(self, nodes: Collection[int], names: bool) -> list[int]:
        if names and self._operations.keeps_names:
            self._device.notify(Notify.INC_EPOCH, b"")
        notice, pack = self._device.notify, p.NOTIFY_INVAL_INODE.pack
        return [node for node in nodes if not notice(Notify.INVAL_INODE, pack(node, -1, 0))]

    async def _tell_later(self, nodes: Collection[int]) -> None:
        await trio.sleep(_PUT_AWAY_S)
        self._tell(nodes, names=True)

    def _interrupt(self, unique: int) -> None:
        worker = self._waiting.get(unique)
        if worker is not None:
            worker.is_stopped = True
            worker.scope.cancel()

    async def greet(self) -> None:
        """Answer INIT, which comes before everything else. EOPNOTSUPP for a kernel whose protocol we do not speak."""
        while True:
            message = self._take()
            if message is None:
                await self._device.wait()
                continue
            opcode, unique, _, _, body = message
            if opcode != Op.INIT or len(body) < p.INIT_IN.size:
                self._refuse(message, error(errno.EIO, detail=f"opcode {opcode} before INIT"))
            elif self._negotiate(unique, body):
                return

    def _negotiate(self, unique: int, body: memoryview) -> bool:
        major, minor, readahead, flags = p.INIT_IN.unpack_from(body)
        if (major, minor) < (p.KERNEL_VERSION, p.OLDEST_MINOR_VERSION):
            self._device.refuse(unique, errno.EPROTO)
            raise error(errno.EOPNOTSUPP, detail=f"the kernel speaks FUSE {major}.{minor}")
        if major == p.KERNEL_VERSION and flags & Init.INIT_EXT and len(body) >= p.INIT_IN.size + 4:
            flags |= p.INIT_IN_EXT.unpack_from(body, p.INIT_IN.size)[0] << 32
        agreed = flags & _WANTED
        answer = p.INIT_OUT.pack(
            p.KERNEL_VERSION, p.KERNEL_MINOR_VERSION, readahead, agreed & 0xFFFFFFFF, _BACKGROUND, _BACKGROUND * 3 // 4,
            MAX_WRITE, 1, MAX_WRITE // _PAGE, 0, agreed >> 32, STACK_DEPTH if agreed & Init.PASSTHROUGH else 0, 0,
        )  # fmt: skip
        self._device.answer(unique, answer)
        self._backings.is_possible = bool(agreed & Init.PASSTHROUGH)
        self._operations.keeps_names = (major, minor) >= (p.KERNEL_VERSION, p.EPOCH_MINOR_VERSION)
        return int(major) == p.KERNEL_VERSION  # a newer one asks again
