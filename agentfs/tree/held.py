"""`HeldHandle`: a call whose every use an approver must allow: its read waits for that, and only a read asks.

Who is asked, and for how long, is not known here.
"""

from __future__ import annotations

import errno

from agentfs.errors import error
from agentfs.tree.documents import Answer, CallHandle
from agentfs.tree.handles import Opening
from agentfs.tree.nodes import Call
from agentfs.types import Confirm, Mode, Use


class HeldHandle(CallHandle):
    """`Call` on a mount with ``confirm``: writes take the request, the first read or poll asks, reads wait.

    Nothing is asked, and nothing done, for who closes without reading. A read that was interrupted may come again for
    the same request; the close withdraws it. A poll completes nothing that is cut off: its read says so. One request at
    a time: another before the answer is EBUSY.
    """

    def __init__(self, node: Call, confirm: Confirm, opening: Opening) -> None:
        super().__init__(node, opening)
        self._confirm, self._doc = confirm, b""
        self._use: Use | None = None

    def is_ready(self) -> bool:
        if self._closed or self._answer is not None:
            return True
        return self._use.is_settled if self._use is not None else self._intake.is_cut_off or not self._intake.buffer

    async def wait_ready(self) -> None:
        use = None if self.is_ready() else self._wanted()
        if use is not None:
            await use.settled()

    def _take(self, data: bytes) -> tuple[int, bool]:
        if self._use is not None and data.strip():
            if not self._use.is_over:
                raise error(errno.EBUSY, self._at.path, "one request at a time: read the answer to the one before")
            self._use = None
        return super()._take(data)

    async def _apply(self, doc: bytes, is_json: bool) -> None:
        self._is_behind_json = is_json
        self._hold(doc)

    def _hold(self, doc: bytes) -> None:
        self._doc, self._use = doc, self._confirm.use(self._at.path, doc)

    def _wanted(self) -> Use | None:
        """The use that a read waits for: bytes that are no JSON are complete once somebody reads."""
        if self._use is None and self._answer is None and self._intake.buffer:
            self._hold(self._intake.finish())
        return self._use

    async def read(self, size: int, offset: int) -> bytes:
        self._check(Mode.READ)
        try:
            if (use := self._wanted()) is not None:
                await use.settled()  # not under the lock: a write or a flush beside it must not wait
        except OSError as exc:
            self._errors.add(self._at.path, exc)
            raise
        return await super().read(size, offset)

    async def _read(self, size: int, offset: int) -> bytes:
        if self._use is not None:
            self._answer, self._use = Answer(await self._run(self._use)), None
        return self._answer.read(size, offset) if self._answer else (self._snapshot or b"")[offset : offset + size]

    async def _run(self, use: Use) -> bytes:
        """The answer that *use* allows, once: cut off half-way, the same request must be asked for anew."""
        try:
            async with self._paying(self._doc):
                await use.spend()
                return await self._node.answer(self._at, self._doc)
        except Exception:
            raise
        except BaseException:
            if use.is_over:
                self._hold(self._doc)
            raise

    async def aclose(self) -> None:
        use, self._use = self._use, None
        self._close()
        if use is not None:
            await use.withdraw()
