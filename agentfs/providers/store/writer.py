"""The writer thread: takes units as they come, commits those that wait together, answers each through the loop.

The only code that writes to an open store. It knows no table.
"""

from __future__ import annotations

import errno
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.lowlevel

from agentfs.errors import error
from agentfs.ports import Clock, Committed, Delete, DropLogs, Unit
from agentfs.providers.store.apply import Tables
from agentfs.providers.store.faults import fault
from agentfs.providers.store.kept import Touched
from agentfs.providers.store.room import AMPLE, free_bytes, log_bytes, weight

GROUP: Final = 256


@dataclass(slots=True, eq=False)
class Job:
    """One unit handed over: either ``result`` or ``failure`` is set before ``done``."""

    unit: Unit
    touched: Touched
    done: anyio.Event = field(default_factory=anyio.Event)
    result: Committed | None = None
    failure: BaseException | None = None


def poster() -> Callable[..., Any]:
    """A function that runs a callable on this event loop, from any thread and without waiting for it.

    anyio's own `from_thread.run_sync` waits for the loop: the next group would start one wake-up late.
    """
    token = anyio.lowlevel.current_token()
    native: Any = getattr(token, "native_token", token)
    post: Callable[..., Any] = getattr(native, "run_sync_soon", None) or native.call_soon_threadsafe
    return post


class Writer:
    """One thread and its connection. `put` and `stop` never block; every job put before `stop` is answered."""

    def __init__(
        self,
        conn: sqlite3.Connection,
        clock: Clock,
        path: Path,
        reserve: int,
        answered: Callable[[Sequence[Job]], None],
    ) -> None:
        """Must be made on the loop's thread; *answered* runs there with each group of finished jobs."""
        self._conn, self._path, self._reserve = conn, path, reserve
        self._tables = Tables(conn, clock)
        self._is_locked = False
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._answered, self._post = answered, poster()
        self._thread = threading.Thread(target=self._run, name="agentfs-store", daemon=True)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Hand *job* over; ENOTCONN when a defect has ended the thread."""
        if not self._thread.is_alive():
            raise error(errno.ENOTCONN, str(self._path), "store writer has ended")
        self._jobs.put(job)

    def stop(self) -> None:
        """Finish what was put, then end the thread."""
        self._jobs.put(None)

    def join(self) -> None:
        """Wait for the thread. Blocks."""
        self._thread.join()

    def _run(self) -> None:
        jobs: list[Job] = []
        is_open = True
        try:
            while is_open:
                jobs, is_open = self._take()
                self._commit(jobs)
                self._answer(jobs)
        finally:
            self._close(jobs)

    def _take(self) -> tuple[list[Job], bool]:
        """Wait for a job, then take what else waits, at most `GROUP`; False when `stop` was among it."""
        jobs: list[Job] = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) == GROUP:
                return jobs, True
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return jobs, True
        return jobs, False

    def _commit(self, jobs: list[Job]) -> None:
        """All jobs in one transaction; when that fails as a whole, each in one of its own."""
        if len(jobs) > 1 and self._has_room(jobs) and self._try_together(jobs):
            return
        for job in jobs:
            if self._is_locked:  # by another process; each job would wait as long again for nothing
                job.failure = error(errno.EBUSY, str(self._path), "another process has locked the store")
            elif self._has_room([job]) or self._is_removal(job):
                self._alone(job)
        self._is_locked = False

    def _has_room(self, jobs: Sequence[Job]) -> bool:
        """False when *jobs* might leave less than the reserve on the disk.

        The log is folded while the file can still grow by its size: on a disk that is full to the last byte SQLite
        can do neither that nor a removal, which needs log space too.
        """
        if self._reserve == 0 or (free := free_bytes(self._path)) > AMPLE + self._reserve:
            return True
        need = self._reserve + sum(weight(job.unit) for job in jobs)
        if free < need + log_bytes(self._path) and self._fold():
            free = free_bytes(self._path)
        return free >= need

    def _is_removal(self, job: Job) -> bool:
        """True for a unit that may use the reserve because it removes something; any other is refused here."""
        if any(isinstance(change, Delete | DropLogs) for change in job.unit.changes):
            return True
        text = f"the last {self._reserve} bytes of the disk are kept for removals"
        job.failure = error(errno.ENOSPC, str(self._path), text)
        return False

    def _try_together(self, jobs: list[Job]) -> bool:
        try:
            self._conn.execute("BEGIN IMMEDIATE")
            for job in jobs:
                self._within(job)
            self._end()
        except Exception:  # noqa: BLE001 (each job is tried again alone, and that failure is its answer)
            self._undo()
            for job in jobs:
                job.result = job.failure = None
            return False
        return True

    def _within(self, job: Job) -> None:
        """One job as a savepoint: its own failure undoes it alone; raises when the transaction itself is gone."""
        self._conn.execute("SAVEPOINT unit")
        try:
            job.result = self._tables.apply(job.unit)
        except OSError as exc:
            job.failure = exc
            self._conn.execute("ROLLBACK TO unit")
            self._tables.forget()
        else:
            self._tables.keep()
        self._conn.execute("RELEASE unit")

    def _alone(self, job: Job) -> None:
        """One job in its own transaction; on a full disk once more if folding the log back gave room."""
        self._attempt(job)
        if isinstance(job.failure, OSError) and job.failure.errno == errno.ENOSPC and self._fold():
            self._attempt(job)

    def _attempt(self, job: Job) -> None:
        job.result = job.failure = None
        try:
            self._conn.execute("BEGIN IMMEDIATE")
            job.result = self._tables.apply(job.unit)
            self._tables.keep()
            self._end()
        except Exception as exc:  # noqa: BLE001 (the failure is the job's answer; the thread must live on)
            self._undo()
            self._is_locked = getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
            job.result, job.failure = None, fault(exc, self._path)
            if job.failure is not exc:
                job.failure.__cause__ = exc

    def _fold(self) -> bool:
        """Move the write-ahead log into the file and empty it; False when that cannot be done now."""
        try:
            busy, _, _ = self._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error:  # what is committed is durable in the log already
            return False
        return not busy

    def _end(self) -> None:
        self._tables.save()
        self._conn.execute("COMMIT")
        self._tables.saved()

    def _undo(self) -> None:
        """Back to the last COMMIT; a full disk or a failed write may have rolled back by itself."""
        self._tables.forget_all()
        try:
            if self._conn.in_transaction:
                self._conn.execute("ROLLBACK")
        except sqlite3.Error:  # still inside: the next BEGIN fails, its unit is refused and this is tried again
            return

    def _answer(self, jobs: Sequence[Job]) -> None:
        if jobs:
            try:
                self._post(self._answered, jobs)
            except RuntimeError:  # the loop has ended: nobody waits for the answer any more
                return

    def _close(self, jobs: list[Job]) -> None:
        """Answer whatever a defect of this thread left, fold the log back into the file, close it."""
        while not self._jobs.empty():
            job = self._jobs.get_nowait()
            jobs = jobs if job is None else [*jobs, job]
        left = [job for job in jobs if job.result is None and job.failure is None]
        for job in left:
            job.failure = error(errno.ENOTCONN, str(self._path), "store writer has ended")
        self._answer(left)
        self._fold()
        self._conn.close()
