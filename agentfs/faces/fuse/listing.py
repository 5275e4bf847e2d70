"""An open directory: pages of a `FileService.list` addressed by position. It renders nothing, keeps no whole list."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Final

from agentfs.service import FileService
from agentfs.types import Path, Stat

PAGE: Final = 1000


class Listing:
    """Positions in a directory for one opendir.

    The kernel re-reads a few entries behind its position, so the last two pages are kept; a seek further back lists
    again from the start of that page. Position 0 always begins anew. One caller at a time (the kernel holds a lock).
    """

    def __init__(self, service: FileService, path: Path, turn: Callable[[], int] = lambda: 0) -> None:
        """*turn* numbers the moments between changes, of which `at` tells that a page is of."""
        self._service, self.path, self._turn = service, path, turn
        self._begin()

    def _begin(self) -> None:
        self._pages: list[tuple[int, Sequence[Stat], int]] = []
        self._firsts, self._afters = [0], [""]

    async def at(self, index: int) -> tuple[Sequence[Stat], int]:
        """Entries from position *index* to the end of its page, and its turn; empty at the end of the directory."""
        if index == 0:
            self._begin()
        for first, page, turn in self._pages:
            if first <= index < first + len(page):
                return page[index - first :], turn
        slot = bisect.bisect_right(self._firsts, index) - 1
        first, after = self._firsts[slot], self._afters[slot]
        turn = self._turn()
        while page := await self._service.list(self.path, after, PAGE):
            if page[-1].name <= after:
                raise RuntimeError(f"list of {self.path!r} after {after!r} gave {page[-1].name!r}")
            self._pages = [*self._pages[-1:], (first, page, turn)]
            begin, first, after = first, first + len(page), page[-1].name
            if first > self._firsts[-1]:  # from here on the next page is by its name: others come and go before it
                self._firsts.append(first)
                self._afters.append(after)
            if index < first:
                return page[index - begin :], turn
            turn = self._turn()
        return (), turn
