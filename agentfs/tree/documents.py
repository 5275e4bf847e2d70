"""Handles that cut what is written into units and apply each: `DocumentHandle QueueHandle CallHandle CtlHandle`.

A unit is applied inside the write that completes it, so its error is that write's errno; offsets of writes are ignored.
"""

from __future__ import annotations

import errno
import shlex
from abc import abstractmethod

from agentfs.errors import error
from agentfs.tree.handles import Opening, TreeHandle
from agentfs.tree.intake import Intake
from agentfs.tree.nodes import Call, Ctl, File, Queue, Sink
from agentfs.types import Mode


class Answer:
    """Bytes to be read behind a request: the first read fixes where they begin, a lower one moves it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._origin: int | None = None

    def read(self, size: int, offset: int) -> bytes:
        """Up to *size* bytes at the file offset *offset*."""
        self._origin = offset if self._origin is None else min(self._origin, offset)
        begin = offset - self._origin
        return self.data[begin : begin + size]


class UnitHandle(TreeHandle):
    """Feeds an `Intake` and hands complete units to `_apply`; a bad unit behind good ones gives a short count."""

    def __init__(self, snapshot: bytes | None, opening: Opening, *, accepts_json: bool = True) -> None:
        super().__init__(opening)
        self._snapshot, self._intake = snapshot, Intake(opening.limits.document_bytes, accepts_json=accepts_json)
        self._broken: OSError | None = None  # a unit was cut off: where the next one begins nobody can tell

    @property
    def size(self) -> int | None:
        return None if self._snapshot is None else len(self._snapshot)

    @abstractmethod
    async def _apply(self, doc: bytes, is_json: bool) -> None:
        """Commit one unit."""

    async def _read(self, size: int, offset: int) -> bytes:
        return (self._snapshot or b"")[offset : offset + size]

    async def _write(self, data: bytes, offset: int) -> int:
        done = 0
        while done < len(data):
            try:
                used, is_complete = self._take(data[done:])
                if is_complete:
                    await self._apply(self._intake.finish(), True)
            except OSError:
                if done:
                    self._intake.reset()
                    return done
                raise
            done += used
        return done

    def _take(self, data: bytes) -> tuple[int, bool]:
        if self._broken is not None:
            raise error(self._broken.errno or errno.EINVAL, self._at.path, "the document before was cut off")
        is_within = bool(self._intake.buffer)
        try:
            return self._intake.take(data)
        except OSError as exc:
            self._intake.reset()
            self._broken = exc if is_within or exc.errno == errno.EFBIG else None
            raise

    async def truncate(self, size: int) -> None:
        if size:
            raise error(errno.EINVAL, self._at.path, "length: this file can only be cut to 0")
        self._intake.reset()
        self._broken = None

    async def _flush(self, final: bool) -> None:
        buffer = self._intake.buffer
        if not buffer.strip():
            return
        if final or (not self._intake.is_json and buffer.endswith(b"\n")):
            is_json = bool(self._intake.is_json)
            await self._apply(self._intake.finish(), is_json)


class DocumentHandle(UnitHandle):
    """`File`: all that is written on one handle is one document."""

    def __init__(self, node: File, snapshot: bytes | None, opening: Opening) -> None:
        super().__init__(snapshot, opening, accepts_json=not node.is_text)
        self._node, self._text, self._is_done = node, b"", False

    @property
    def content(self) -> bytes | None:
        return self._snapshot if self._mode is Mode.READ else None

    async def _write(self, data: bytes, offset: int) -> int:
        if self._is_done:
            if data.strip():
                raise error(errno.EINVAL, self._at.path, "one document per open: bytes behind its end")
            return len(data)
        return await super()._write(data, offset)

    async def _apply(self, doc: bytes, is_json: bool) -> None:
        if self._is_done:
            raise error(errno.EINVAL, self._at.path, "one document per open: bytes behind its end")
        doc = doc if is_json else self._text + doc
        if len(doc) > self._limits.document_bytes:
            raise error(errno.EFBIG, self._at.path, f"document over {self._limits.document_bytes} bytes")
        if self._node.write is not None:
            async with self._paying(doc):
                await self._node.write(self._at, doc)
        self._is_done, self._text = is_json, doc


class QueueHandle(UnitHandle):
    """`Queue`: every unit is one document of its own; after a write, reads give the receipts.

    What is pending is rendered by the first read: most who open a queue only write.
    """

    def __init__(self, node: Queue, sink: Sink | None, opening: Opening) -> None:
        super().__init__(None, opening)
        self._node, self._sink = node, sink
        self._receipts: Answer | None = None

    async def _write(self, data: bytes, offset: int) -> int:
        if data:  # from the first byte on reads give receipts: who may only write sees nothing else
            self._receipts = self._receipts or Answer(b"")
        return await super()._write(data, offset)

    async def _read(self, size: int, offset: int) -> bytes:
        if self._receipts is not None:
            return self._receipts.read(size, offset)
        if self._snapshot is None:
            self._snapshot = await self._node.read(self._at)
        return await super()._read(size, offset)

    async def _apply(self, doc: bytes, is_json: bool) -> None:
        if self._sink is None:
            raise error(errno.EBADF, self._at.path)
        async with self._paying(doc):
            receipt = await self._sink.put(doc, is_json=is_json)
        self._receipts = self._receipts or Answer(b"")
        self._receipts.data += receipt

    def _close(self) -> None:  # also when the closing is cancelled: the place must not be lost
        super()._close()
        if self._sink is not None:
            self._sink.close()
            self._sink = None


class CallHandle(UnitHandle):
    """`Call`: a request, then its answer; JSON runs in the write that completes it, other bytes at the first read."""

    def __init__(self, node: Call, opening: Opening) -> None:
        super().__init__(node.usage.encode(), opening)
        self._node, self._is_behind_json = node, False
        self._answer: Answer | None = None

    async def _write(self, data: bytes, offset: int) -> int:
        if data.strip() or not self._is_behind_json:
            self._answer = None
        return await super()._write(data, offset)

    def _take(self, data: bytes) -> tuple[int, bool]:
        lead = len(data) - len(data.lstrip()) if self._is_behind_json else 0  # a document's line may end behind it
        if lead == len(data):
            return lead, False
        self._is_behind_json = False
        used, is_complete = super()._take(data[lead:])
        return lead + used, is_complete

    async def _read(self, size: int, offset: int) -> bytes:
        if self._answer is None and self._intake.buffer:
            is_json = bool(self._intake.is_json)
            await self._apply(self._intake.finish(), is_json)
        return self._answer.read(size, offset) if self._answer else await super()._read(size, offset)

    async def _apply(self, doc: bytes, is_json: bool) -> None:
        self._is_behind_json = is_json
        async with self._paying(doc):
            self._answer = Answer(await self._node.answer(self._at, doc))

    async def _flush(self, final: bool) -> None:
        if final:  # a request of raw bytes may hold newlines: only a read or the end completes it
            await super()._flush(final)


class CtlHandle(TreeHandle):
    """`Ctl`: runs each complete line; a rest without newline runs at the end."""

    def __init__(self, node: Ctl, opening: Opening) -> None:
        super().__init__(opening)
        self._node, self._buffer, self._is_cut_off = node, b"", False
        lines = [f"{verb} {words}".rstrip() for verb, (_, _, words) in node.arity.items()]
        lines += [f"last error: {opening.errors.last}"] if opening.errors.last else []
        self._snapshot = "".join(f"{line}\n" for line in lines).encode()

    @property
    def size(self) -> int:
        return len(self._snapshot)

    async def _read(self, size: int, offset: int) -> bytes:
        return self._snapshot[offset : offset + size]

    async def _write(self, data: bytes, offset: int) -> int:
        if self._is_cut_off:
            raise error(errno.EFBIG, self._at.path, "the line before was cut off")
        done = 0
        while (end := data.find(b"\n", done)) >= 0:
            line, self._buffer = self._buffer + data[done:end], b""
            try:
                await self._run(line)
            except OSError:
                if done:
                    return done
                raise
            done = end + 1
        try:
            self._fit(self._buffer + data[done:])
        except OSError:
            if done:
                return done
            self._buffer, self._is_cut_off = b"", True  # half a line is no verb, nor is its rest
            raise
        self._buffer += data[done:]
        return len(data)

    async def truncate(self, size: int) -> None:
        if size:
            raise error(errno.EINVAL, self._at.path, "length: this file can only be cut to 0")
        self._buffer, self._is_cut_off = b"", False

    async def _flush(self, final: bool) -> None:
        if final and self._buffer:
            line, self._buffer = self._buffer, b""
            await self._run(line)

    def _fit(self, line: bytes) -> None:
        if len(line) > self._limits.ctl_line_bytes:
            raise error(errno.EFBIG, self._at.path, f"line over {self._limits.ctl_line_bytes} bytes")

    def _words(self, line: bytes) -> list[str]:
        self._fit(line)
        try:
            return shlex.split(line.decode(), comments=True)
        except UnicodeDecodeError as exc:
            raise error(errno.EILSEQ, self._at.path, f"byte {exc.start}") from exc
        except ValueError as exc:
            raise error(errno.EINVAL, self._at.path, f"quoting: {exc}") from exc

    async def _run(self, line: bytes) -> None:
        if not (words := self._words(line)):
            return
        verb, *args = words
        if verb not in self._node.verbs:
            known = " ".join(self._node.verbs)
            raise error(errno.EINVAL, self._at.path, f"unknown verb {verb[:40]!r}: want one of {known}")
        few, many, usage = self._node.arity[verb]
        if not few <= len(args) <= many:
            raise error(errno.EINVAL, self._at.path, f"{verb}: want {usage or 'no arguments'}, got {len(args)}")
        if verb in self._node.operator_verbs and not self._at.principal.is_operator:
            raise error(errno.EPERM, self._at.path, f"{verb} is for the operator")
        async with self._paying(line):
            await self._node.verbs[verb](self._at, *args)
