"""The durable store: one SQLite file, one writer thread, reads inline on a connection of their own.

The port's rules are in `agentfs.ports`; the file's shape is `schema`'s, the writing `writer`'s, fsck `fsck`'s.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from agentfs.errors import error
from agentfs.ports import Clock, Committed, Line, LogHead, Unit
from agentfs.providers.store import sql
from agentfs.providers.store.faults import fault, translated
from agentfs.providers.store.fsck import faults_of
from agentfs.providers.store.kept import Kept, facet_of, touched
from agentfs.providers.store.lock import Claim
from agentfs.providers.store.room import free_bytes, log_bytes
from agentfs.providers.store.schema import PLAN, Plan, connect, prepare
from agentfs.providers.store.shape import check_key, check_scan, check_text, check_total, check_unit, shape_of
from agentfs.providers.store.writer import Job, Writer
from agentfs.rows import Row
from agentfs.types import Facet

R = TypeVar("R", bound=Row)
WAITING: Final = 1024
"""Units handed over and not yet answered; a further `commit` waits for a place."""
RESERVE: Final = 1 << 20


def _locate(path: str | os.PathLike[str]) -> Path:
    return Path(path).resolve()


def _number(row: Sequence[Any]) -> int:
    return int(row[0])


class SqliteStore:
    """A `Store` in one file. Belongs to the event loop that opened it; every method may run concurrently there."""

    def __init__(self, path: Path, claim: Claim, writing: sqlite3.Connection, clock: Clock, reserve: int) -> None:
        """For `open` alone."""
        self._path, self._claim = path, claim
        self._reading: sqlite3.Connection | None = connect(path)
        self._reading.execute("PRAGMA query_only = ON")
        self._slots = anyio.Semaphore(WAITING, fast_acquire=True)
        self._is_closing = False
        self._closed = anyio.Event()
        self._kept = Kept()
        self._writer = Writer(writing, clock, path, reserve, self._answered)

    @classmethod
    async def open(
        cls,
        path: str | os.PathLike[str],
        clock: Clock,
        *,
        plan: Plan = PLAN,
        max_bytes: int = 0,
        reserve: int = RESERVE,
    ) -> SqliteStore:
        """The store at *path*, made (mode 0600) when it is not there, migrated after a copy when it is older.

        *max_bytes* bounds the file (0: the disk does); beyond it commits fail with ENOSPC. While less than *reserve*
        bytes of the disk are free so do all units that remove nothing: a full store can still be emptied.
        EBUSY: another runtime has it open. EINVAL: no store, damaged, or newer than this program; nothing was
        written then. ENOENT, EACCES: as the operating system says.
        """
        where = _locate(path)
        claim, writing = await anyio.to_thread.run_sync(cls._claim_and_prepare, where, plan, max_bytes)
        try:
            return cls(where, claim, writing, clock, reserve)
        except BaseException:
            writing.close()
            claim.release()
            raise

    @staticmethod
    def _claim_and_prepare(path: Path, plan: Plan, max_bytes: int) -> tuple[Claim, sqlite3.Connection]:
        with translated(path):
            claim = Claim(path)
            try:
                return claim, prepare(path, plan, max_bytes)
            except BaseException:
                claim.release()
                raise

    async def commit(self, unit: Unit) -> Committed:
        """See `Store.commit`. Waits for a place when `WAITING` units are under way."""
        check_unit(unit)
        await anyio.lowlevel.checkpoint_if_cancelled()
        await self._slots.acquire()
        if self._is_closing:
            self._slots.release()
            raise self._gone()
        job = Job(unit, touched(unit))
        self._writer.put(job)
        self._kept.begin(job.touched)
        await job.done.wait()
        if job.failure is not None:
            raise job.failure
        assert job.result is not None
        return job.result

    def _answered(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._slots.release()
            self._kept.end(job.touched)
            job.done.set()

    async def get(self, table: type[R], *key: str) -> R | None:
        """See `Store.get`."""
        question = (table, key)
        found = self._kept.get(question)
        if found is None:
            shape = shape_of(table)
            check_key(shape, key, full=True)
            found = self._ask(question, facet_of(shape, key), partial(sql.decode, table), sql.pick(shape), key)
        return found[0] if found else None

    async def scan(
        self, table: type[R], *prefix: str, by: str = "", after: object = None, limit: int = -1, newest: bool = False
    ) -> Sequence[R]:
        """See `Store.scan`."""
        question = (table, prefix, by, limit, newest)
        found = self._kept.get(question) if after is None else None
        if found is None:
            shape = shape_of(table)
            check_scan(shape, prefix, by, after)
            facet = facet_of(shape, prefix) if after is None else None
            statement = sql.scan(shape, len(prefix), by, after is not None, newest)
            args = (*prefix, limit) if after is None else (*prefix, after, limit)
            found = self._ask(question, facet, partial(sql.decode, table), statement, args)
        return list(found)

    async def count(self, table: type[Row], *prefix: str) -> int:
        """See `Store.count`."""
        question = ("count", table, prefix)
        found = self._kept.get(question)
        if found is None:
            shape = shape_of(table)
            check_key(shape, prefix)
            found = self._ask(question, facet_of(shape, prefix), _number, sql.count(shape, len(prefix)), prefix)
        return int(found[0])

    async def total(self, table: type[Row], column: str, *prefix: str) -> int:
        """See `Store.total`."""
        question = ("total", table, column, prefix)
        found = self._kept.get(question)
        if found is None:
            shape = shape_of(table)
            check_total(shape, prefix, column)
            statement = sql.total(shape, column, len(prefix))
            found = self._ask(question, facet_of(shape, prefix), _number, statement, prefix)
        return int(found[0])

    async def agents(self, table: type[Row]) -> Sequence[str]:
        """See `Store.agents`; of a table without that column, its ids."""
        return [row[0] for row in self._rows(sql.firsts(shape_of(table)), ())]

    async def log(self, agent: str, log: str) -> Sequence[LogHead]:
        """See `Store.log`."""
        return [LogHead(*row[:7]) for row in self._heads(agent, log)]

    async def lines(
        self, agent: str, log: str, generation: int, *, seq: int = 0, offset: int = 0, limit: int = 256
    ) -> Sequence[Line]:
        """See `Store.lines`."""
        for row in self._heads(agent, log):
            if row[1] == generation:
                first, following, number = row[2], row[3], row[7]
                start = max(seq, self._behind(number, first, following, offset))
                lines = self._rows(sql.LINES, (number, start, limit))
                return [Line(at, end, line.encode()) for at, end, line in lines]
        return []

    def _heads(self, agent: str, log: str) -> Sequence[Any]:
        """The rows of `sql.HEADS`. EINVAL, EILSEQ."""
        facet = (agent, log)
        found = self._kept.get(facet)
        if found is None:
            check_text(agent, "log agent")
            check_text(log, "log name")
            found = self._ask(facet, facet, tuple, sql.HEADS, facet)
        return found

    def _behind(self, number: int, low: int, high: int, offset: int) -> int:
        """The first sequence number whose record ends behind *offset*: numbers are contiguous, ends only rise."""
        if offset <= 0:
            return low
        while low < high:
            middle = (low + high) // 2
            end = self._rows(sql.END, (number, middle))
            if end and end[0][0] > offset:
                high = middle
            else:
                low = middle + 1
        return low

    async def usage(self) -> tuple[int, int]:
        """Bytes of the file and its write-ahead log, and bytes free to this user on its disk."""
        pages, size = self._rows("PRAGMA page_count", ())[0][0], self._rows("PRAGMA page_size", ())[0][0]
        return pages * size + log_bytes(self._path), free_bytes(self._path)

    async def check(self) -> Sequence[str]:
        """See `Store.check`. Runs on one snapshot in a thread; commits go on meanwhile."""
        self._open()
        return await anyio.to_thread.run_sync(faults_of, self._path)

    async def aclose(self) -> None:
        """See `Store.aclose`. Not cut short by cancellation."""
        with anyio.CancelScope(shield=True):
            if self._is_closing:
                await self._closed.wait()
                return
            self._is_closing = True
            self._writer.stop()
            await anyio.to_thread.run_sync(self._writer.join)
            reading, self._reading = self._open(), None
            self._kept.clear()
            reading.close()
            self._claim.release()
            self._closed.set()

    def _gone(self) -> OSError:
        return error(errno.ENOTCONN, detail="store is closed")

    def _open(self) -> sqlite3.Connection:
        if self._reading is None:
            raise self._gone()
        return self._reading

    def _ask(
        self, question: Hashable, facet: Facet | None, decode: Callable[[Any], Any], statement: str, args: Sequence[Any]
    ) -> tuple[Any, ...]:
        """What *statement* gives now, each row decoded; kept for *question* as long as *facet* does not change."""
        rows = self._rows(statement, args)
        answer = tuple([decode(row) for row in rows])
        if facet is not None:
            self._kept.keep(question, facet, rows, answer)
        return answer

    def _rows(self, statement: str, args: Sequence[Any]) -> list[Any]:
        conn = self._open()
        try:
            return conn.execute(statement, args).fetchall()
        except (sqlite3.Error, OverflowError) as exc:
            raise fault(exc, self._path) from exc
