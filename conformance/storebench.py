"""Where one check of a store happens, and the few rows and calls that all checks share.

It asserts nothing but that a refusal is the right one.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence

from agentfs.ports import Change, Store, Unit
from agentfs.rows import EnvelopeRow, KvRow, ReceiptRow, Row


class Bench:
    """A fresh place for one check: ``store`` is open in it, `reopen` closes it and opens the same one again."""

    store: Store

    def __init__(self, opened: Callable[[], Awaitable[Store]], *, is_durable: bool) -> None:
        """*opened* opens the store of this place, the same one each time."""
        self._opened, self.is_durable = opened, is_durable

    async def start(self) -> Store:
        """Open the store for the first time."""
        self.store = await self._opened()
        return self.store

    async def reopen(self) -> Store:
        """Close and open again where something survives that."""
        if self.is_durable:
            await self.store.aclose()
            self.store = await self._opened()
        return self.store


def letter(name: str, agent: str = "a", seq: int = 0, body: str = "{}") -> EnvelopeRow:
    """A pending envelope."""
    return EnvelopeRow(agent=agent, id=name, seq=seq, source="s", accepted_at_ns=1, body=body)


def value(key: str, agent: str = "a", data: bytes = b"v") -> KvRow:
    """A kv row."""
    return KvRow(agent=agent, key=key, value=data, size=len(data), changed_at_ns=1)


async def commit(store: Store, *changes: Change) -> Sequence[Row]:
    """One unit; the rows stored."""
    return (await store.commit(Unit(changes))).rows


async def refused(store: Store, code: int, *changes: Change) -> None:
    """One unit that must fail with *code*."""
    try:
        await store.commit(Unit(changes))
    except OSError as exc:
        assert exc.errno == code, f"want {errno.errorcode[code]}, got {exc!r}"
    else:
        raise AssertionError(f"want {errno.errorcode[code]}, but the unit was committed: {changes}")


async def names(store: Store, table: type[EnvelopeRow] | type[ReceiptRow], *prefix: str) -> str:
    """The ids below *prefix*, joined, in acceptance order."""
    return "".join([row.id for row in await store.scan(table, *prefix, by="seq")])
