"""The SQLite store against a hostile world: kills, full disks, damage, tampering, rivals, older and newer files."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import anyio
import pytest
import sqlite_utils
import trio

from agentfs.ports import Append, Delete, DropLogs, Expect, Insert, Put, Unit
from agentfs.providers.store.schema import PLAN, Plan, table_sql
from agentfs.providers.store.shape import shape_of
from agentfs.providers.store.sqlite import WAITING, SqliteStore
from agentfs.rows import TABLES, AccountRow, AgentRow, EnvelopeRow, KvRow
from conformance.storebench import commit, letter, value
from conformance.storemodel import Model, differences


class Clock:
    """Never moves."""

    def now_ns(self) -> int:
        return 7

    def monotonic_ns(self) -> int:
        return 7

    async def sleep_until(self, at_ns: int) -> None:
        raise AssertionError


async def reopened(path: Path, **more: object) -> SqliteStore:
    return await SqliteStore.open(path, Clock(), **more)  # type: ignore[arg-type]


async def size_of_empty(folder: Path) -> int:
    store = await reopened(folder / "empty.db")
    used, _ = await store.usage()
    await store.aclose()
    return used


async def refusal(path: Path, **more: object) -> OSError:
    with pytest.raises(OSError) as caught:
        await reopened(path, **more)
    return caught.value


async def test_full_store_refuses_and_recovers(tmp_path: Path) -> None:
    model, full, log = Model(), 0, Append("a", "l", b"{}", chain=True)
    store = await reopened(tmp_path / "store.db", max_bytes=await size_of_empty(tmp_path) + 450_000)
    for at in range(60):
        unit = Unit((Insert(letter(f"{at}")), log, Put(value(f"{at}", data=bytes(20_000))), log))
        try:
            await store.commit(unit)
        except OSError as exc:
            assert exc.errno == errno.ENOSPC
            full += 1
        else:
            model.commit(unit)
    assert 0 < full < 40
    room = Unit((Delete(KvRow, ("a", "0")),))
    await store.commit(room)
    model.commit(room)
    big = [Unit((Put(value(f"big{at}", data=bytes(200_000))), Put(value(f"also{at}")))) for at in range(8)]
    kept: list[Unit] = []

    async def one(unit: Unit) -> None:
        try:
            await store.commit(unit)
            kept.append(unit)
        except OSError as exc:
            assert exc.errno == errno.ENOSPC

    async with trio.open_nursery() as nursery:
        for unit in [*big, *(Unit((Insert(letter(f"small{at}")),)) for at in range(8))]:
            nursery.start_soon(one, unit)
    assert len([unit for unit in kept if len(unit.changes) == 1]) == 8, "small units fell with the big ones"
    assert len(kept) == 8
    for unit in kept:
        stored = await store.get(EnvelopeRow, "a", unit.changes[0].row.id)  # type: ignore[union-attr]
        assert stored is not None
        model.commit(Unit((Insert(stored),)))
    assert not (found := await differences(store, model)), found
    await commit(store, Delete(KvRow, ("a",)))
    await commit(store, Put(value("fits", data=bytes(200_000))))
    assert not await store.check()
    await store.aclose()


async def test_the_last_of_the_disk_is_kept_for_removals(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = await reopened(path)
    await commit(store, Insert(letter("x")), Insert(letter("y")), Append("b", "l", b"{}"))
    await store.aclose()
    store = await reopened(path, reserve=1 << 60)
    for change in (Insert(letter("z")), Put(value("k")), Append("a", "l", b"{}")):
        with pytest.raises(OSError, match="kept for removals") as caught:
            await commit(store, change)
        assert caught.value.errno == errno.ENOSPC
    await commit(store, Delete(EnvelopeRow, ("a", "x")), Append("a", "l", b"{}"))
    await commit(store, DropLogs("b"))
    assert [row.id for row in await store.scan(EnvelopeRow)] == ["y"]
    await store.aclose()


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_files_are_private_and_close_folds_the_log(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = await reopened(path)
    await commit(store, Put(value("k")))
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in files(tmp_path)}
    assert modes == dict.fromkeys(["store.db", "store.db-wal", "store.db-shm", "store.db.lock"], 0o600)
    await store.aclose()
    assert {file.name for file in files(tmp_path)} == {"store.db", "store.db.lock"}
    path.chmod(0o644)
    await (await reopened(path)).aclose()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def damage_head(path: Path) -> None:
    path.write_bytes(b"garbage" + path.read_bytes()[7:])


def damage_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 4] = random.Random(1).randbytes(4096)
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    os.truncate(path, 4096 * 5)


def drop_table(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("DROP TABLE inbox")
        conn.commit()


def no_database(path: Path) -> None:
    path.write_text("dear diary\n")


def foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE inbox (agent TEXT)")
        conn.commit()


@pytest.mark.parametrize("harm", [damage_head, damage_page, cut_short, drop_table, no_database, foreign])
async def test_what_is_no_sound_store_is_refused_untouched(harm: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = await reopened(path)
    await commit(store, *(Insert(letter(f"{at}", body="x" * 500)) for at in range(50)))
    await store.aclose()
    harm(path)
    before = path.read_bytes()
    exc = await refusal(path)
    assert exc.errno == errno.EINVAL
    assert "store" in str(exc.strerror)
    assert exc.filename == str(path)
    assert path.read_bytes() == before
    assert (await refusal(path)).errno == errno.EINVAL, "the refused store stayed locked"


async def test_absent_folders_and_directories_are_named(tmp_path: Path) -> None:
    assert (await refusal(tmp_path / "absent" / "store.db")).errno == errno.ENOENT
    (tmp_path / "folder").mkdir()
    assert (await refusal(tmp_path / "folder")).errno == errno.EISDIR


async def test_a_tool_that_locks_the_file_stalls_no_queue(tmp_path: Path) -> None:
    """All units waiting behind a foreign lock are refused after one wait, not one wait each."""
    path = tmp_path / "store.db"
    store = await reopened(path)
    failed: list[int | None] = []

    async def one(at: int) -> None:
        try:
            await commit(store, Insert(letter(f"{at}")))
        except OSError as exc:
            failed.append(exc.errno)

    with closing(sqlite3.connect(path)) as tool, trio.fail_after(40):
        tool.execute("BEGIN IMMEDIATE")
        async with trio.open_nursery() as nursery:
            for at in range(50):
                nursery.start_soon(one, at)
        assert await store.count(EnvelopeRow) == 0
    assert failed == [errno.EBUSY] * 50
    await commit(store, Insert(letter("after")))
    await store.aclose()


async def test_close_under_overload_answers_everyone(tmp_path: Path) -> None:
    path, done = tmp_path / "store.db", dict[str, int | None]()
    store = await reopened(path)

    async def one(name: str) -> None:
        try:
            await commit(store, Insert(letter(name)))
            done[name] = 0
        except OSError as exc:
            done[name] = exc.errno

    async with trio.open_nursery() as nursery:
        for at in range(WAITING * 2):
            nursery.start_soon(one, f"{at}")
        await trio.lowlevel.checkpoint()
        await store.aclose()
    assert set(done.values()) == {0, errno.ENOTCONN}
    store = await reopened(path)
    assert {row.id for row in await store.scan(EnvelopeRow)} == {name for name, code in done.items() if code == 0}
    await store.aclose()


def add_colour(db: sqlite_utils.Database) -> None:
    db.table("kv").add_column("colour", str, not_null_default="red")
    db.table("inbox").transform(rename={"body": "text"})
    db.table("inbox").transform(rename={"text": "body"})


def fail(db: sqlite_utils.Database) -> None:
    add_colour(db)
    db.table("kv").delete_where()
    raise ValueError("step is wrong")


async def test_migration_copies_first_and_newer_is_refused(tmp_path: Path) -> None:
    path, backup = tmp_path / "store.db", tmp_path / "store.db.v2.bak"
    store = await reopened(path)
    await commit(store, Insert(letter("x")), Put(value("k")), Append("a", "l", b"{}"))
    await store.aclose()
    with pytest.raises(ValueError, match="step is wrong"):
        await reopened(path, plan=Plan((*PLAN.steps, fail)))
    store = await reopened(path)
    assert await store.scan(KvRow) == [value("k")]
    await store.aclose()
    store = await reopened(path, plan=Plan((*PLAN.steps, add_colour)))
    assert [row.id for row in await store.scan(EnvelopeRow, "a", by="seq")] == ["x"]
    await commit(store, Put(value("l")))
    assert not await store.check()
    await store.aclose()
    exc = await refusal(path)
    assert exc.errno == errno.EINVAL
    assert "schema version 3, this agentfs knows 2" in str(exc)
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    store = await reopened(backup)
    assert (await store.scan(KvRow), await store.check()) == ([value("k")], [])
    await store.aclose()


async def test_a_store_of_version_1_moves_forward(tmp_path: Path) -> None:
    """What the first release wrote (see ``data/``) is read by this one, and what is new in it can be written."""
    path, dump = tmp_path / "store.db", (Path(__file__).parent / "data" / "store-v1.sql").read_text()
    with closing(sqlite3.connect(path)) as old:
        old.executescript(dump)
    store = await reopened(path)
    (agent,) = await store.scan(AgentRow)
    assert (agent.id, agent.is_paused, agent.ns, agent.ns_at_ns) == ("old", True, "", 0)
    assert [(row.id, row.purses) for row in await store.scan(EnvelopeRow, "old", by="seq")] == [("m2", "")]
    account = AccountRow(agent="old", account="effects", period="2026-01-01", spent_usd=1, changed_at_ns=1)
    await commit(store, Put(account))
    assert await store.scan(AccountRow) == [account] and not await store.check()
    await store.aclose()


TAMPERING = {
    "UPDATE records SET line = replace(line, 'n\":3', 'n\":4') WHERE seq = 3": "does not name the hash",
    "DELETE FROM records WHERE seq = 2": "record 2 is missing",
    "DELETE FROM records WHERE seq = 6": "head says next 7",
    "UPDATE logs SET tail_hash = 'x'": "head's hash",
    'UPDATE records SET "end" = "end" + 1 WHERE seq = 4': "record 4 ends at",
    "UPDATE records SET log = 99 WHERE seq = 6": "belong to no log",
    "UPDATE logs SET generation = 7, \"first\" = 2": "record 2 is missing|record 1|head",
    "UPDATE meta SET value = 1": "sequence number",
    "DELETE FROM meta": "next sequence number is missing",
    "UPDATE agents SET is_paused = 7": "Expected `bool`",
}  # fmt: skip


@pytest.mark.parametrize("statement", TAMPERING)
async def test_check_sees_tampering(statement: str, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = await reopened(path)
    await commit(store, *(Append("a", "trajectory", b'{"n":%d}' % at, chain=True) for at in range(1, 7)))
    await commit(store, Insert(letter("x")), Insert(AgentRow(id="a", created_at_ns=0, config="", config_at_ns=0)))
    assert not await store.check()
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute(statement).rowcount > 0
        conn.commit()
    found = "; ".join(await store.check())
    assert any(part in found for part in TAMPERING[statement].split("|")), found
    await store.aclose()


async def test_a_defect_in_one_unit_spares_the_others(tmp_path: Path) -> None:
    """What the gate cannot foresee (here a value whose comparison fails) ends its own unit, never the thread."""

    class Bomb:
        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError

        __hash__ = None  # type: ignore[assignment]

    store = await reopened(tmp_path / "store.db")
    await commit(store, Put(value("k")))
    failed: list[int | None] = []

    async def one(at: int) -> None:
        bomb = [Expect(KvRow, ("a", "k"), "value", Bomb())] if at % 5 == 0 else []
        try:
            await commit(store, Insert(letter(f"{at}")), *bomb)
        except OSError as exc:
            failed.append(exc.errno)

    async with trio.open_nursery() as nursery:
        for at in range(40):
            nursery.start_soon(one, at)
    assert failed == [errno.EIO] * 8
    assert await store.count(EnvelopeRow, "a") == 32
    await store.aclose()


def test_it_runs_on_asyncio_too(tmp_path: Path) -> None:
    async def main() -> str:
        store = await reopened(tmp_path / "store.db")
        async with anyio.create_task_group() as group:
            for at in range(50):
                group.start_soon(commit, store, Insert(letter(f"{at:02}")), Append("a", "l", b"{}", True))
        lines = await store.lines("a", "l", 1)
        await store.aclose()
        return hashlib.sha256(lines[-2].line).hexdigest() if len(lines) == 50 else ""

    assert anyio.run(main, backend="asyncio")


def test_a_new_table_is_what_sqlite_utils_makes() -> None:
    """A migration's step has that library, and what it makes and what a new file has must not differ."""
    db = sqlite_utils.Database(memory=True)
    for shape in map(shape_of, TABLES):
        columns, needed = dict(zip(shape.names, shape.kinds, strict=True)), set(shape.names) - shape.optional
        wanted = db.create_table_sql(shape.name, columns, pk=shape.key, not_null=needed, strict=True)
        assert table_sql(shape.name, columns, shape.key, needed) == wanted.rstrip().removesuffix(";"), shape.name
