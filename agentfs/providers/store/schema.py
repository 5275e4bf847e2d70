"""The shape of the file: what is created, what is recognised, and how older files move forward.

It knows nothing of units; the hot path is `writer` and `sqlite`.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from agentfs.errors import error
from agentfs.providers.store.faults import translated
from agentfs.providers.store.shape import Shape, shape_of
from agentfs.rows import (
    TABLES,
    AccountRow,
    ApprovalRow,
    ConversationRow,
    DocumentRow,
    EffectRow,
    ExecRow,
    GrantRow,
    HoldRow,
    IdentityRow,
    JobRow,
    KeyRow,
    PeerRow,
    RegistryRow,
    SandboxRow,
    SecretRow,
    TokenRow,
)  # fmt: skip

if TYPE_CHECKING:
    from sqlite_utils import Database

APPLICATION_ID: Final = 0x61676673  # "agfs"
_MAGIC: Final = b"SQLite format 3\0"
_LOGS: Final = {
    "id": int, "agent": str, "log": str, "generation": int, "epoch": str, "first": int, "next": int, "size": int,
    "changed_at_ns": int, "tail_hash": str, "is_chained": int,
}  # fmt: skip
_RECORDS: Final = {"log": int, "seq": int, "end": int, "line": str}
_META: Final = {"name": str, "value": int}
_SQL: Final[Mapping[type, str]] = {int: "INTEGER", bool: "INTEGER", str: "TEXT", bytes: "BLOB"}

Step: TypeAlias = "Callable[[Database], None]"


@dataclass(frozen=True, slots=True)
class Plan:
    """How old files become new ones: step *i* takes version *i+1* to *i+2*, inside one transaction for all.

    A new file is made from the row structs at once, so a step is written only when a struct changes.
    """

    steps: tuple[Step, ...] = ()

    @property
    def version(self) -> int:
        """The schema version this plan ends at: the file's ``user_version``."""
        return 1 + len(self.steps)


_NEW_TABLES: Final = (
    AccountRow, HoldRow, EffectRow, ApprovalRow, TokenRow, KeyRow, IdentityRow, SecretRow, GrantRow, PeerRow, JobRow,
    DocumentRow, ConversationRow, SandboxRow, ExecRow, RegistryRow,
)  # fmt: skip
_NEW_COLUMNS: Final = (
    ("agents", "ns", "TEXT", "''"), ("agents", "ns_at_ns", "INTEGER", "0"), ("inbox", "purses", "TEXT", "''"),
    ("deadletter", "purses", "TEXT", "''"), ("deliveries", "purses", "TEXT", "''"), ("alarms", "purses", "TEXT", "''"),
)  # fmt: skip


def _money_and_access(db: Database) -> None:
    """Version 1 to 2: money, journal, approvals, tokens, keys, secrets, grants; mount tables of the operator's own."""
    for table in _NEW_TABLES:
        _create_table(db.conn, shape_of(table))
    for name, column, kind, default in _NEW_COLUMNS:
        db.execute(f'ALTER TABLE "{name}" ADD COLUMN "{column}" {kind} NOT NULL DEFAULT {default}')


PLAN: Final = Plan((_money_and_access,))


def connect(path: Path, *, same_thread: bool = True, read_only: bool = False) -> sqlite3.Connection:
    """A connection without implicit transactions; it waits at most 1 s for a foreign tool's lock."""
    uri = f"{path.as_uri()}?mode={'ro' if read_only else 'rw'}"
    return sqlite3.connect(
        uri, uri=True, isolation_level=None, check_same_thread=same_thread, cached_statements=512, timeout=1
    )


def prepare(path: Path, plan: Plan, max_bytes: int = 0) -> sqlite3.Connection:
    """The writer's connection to the store at *path*, created or migrated as needed. Blocks.

    EINVAL, with nothing written, for a file that is no store, is damaged or is newer than *plan*.
    """
    _make(path)
    with translated(path):
        version = _inspect(path, plan)
        path.chmod(0o600)
        conn = connect(path, same_thread=False)
        try:
            conn.execute("PRAGMA journal_mode = WAL")
            conn.execute("PRAGMA synchronous = FULL")
            conn.execute("PRAGMA secure_delete = FAST")  # ON writes every freed page: no removal from a full disk
            conn.execute(f"PRAGMA journal_size_limit = {16 << 20}")
            if version == 0:
                _create(conn, plan)
            elif version < plan.version:
                _save(conn, path.with_name(f"{path.name}.v{version}.bak"))
                _migrate(conn, plan, version)
            _compare(conn, path)
            if max_bytes:
                (page,) = conn.execute("PRAGMA page_size").fetchone()
                conn.execute(f"PRAGMA max_page_count = {max(1, max_bytes // page)}")
        except BaseException:
            conn.close()
            raise
    return conn


def _make(path: Path) -> None:
    """Create *path*, empty, for its owner alone; an existing file keeps its bytes."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _inspect(path: Path, plan: Plan) -> int:
    """The version of the file, 0 for an empty one, found without writing to it."""
    with path.open("rb") as file:
        head = file.read(len(_MAGIC))
    if not head:
        return 0
    if head != _MAGIC:
        raise error(errno.EINVAL, str(path), "not an agentfs store: it is no SQLite file, or its head is damaged")
    with closing(connect(path, read_only=True)) as conn:
        version = _recognise(conn, path)
        if version > plan.version:
            raise error(
                errno.EINVAL,
                str(path),
                f"store has schema version {version}, this agentfs knows {plan.version}: use a newer agentfs",
            )
        faults = [str(row[0]) for row in conn.execute("PRAGMA quick_check(3)")] if version else ["ok"]
    if faults != ["ok"]:
        raise error(errno.EINVAL, str(path), f"store is damaged, nothing was written: {'; '.join(faults)[:300]}")
    return version


def _recognise(conn: sqlite3.Connection, path: Path) -> int:
    (application,) = conn.execute("PRAGMA application_id").fetchone()
    (version,) = conn.execute("PRAGMA user_version").fetchone()
    (tables,) = conn.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application == APPLICATION_ID and version > 0:
        return int(version)
    if tables or application or version:
        raise error(errno.EINVAL, str(path), f"not an agentfs store: application_id {application}, {tables} tables")
    return 0  # an empty database: the first start was cut short before its one transaction


def _create(conn: sqlite3.Connection, plan: Plan) -> None:
    conn.execute("BEGIN IMMEDIATE")
    for table in TABLES:
        _create_table(conn, shape_of(table))
    conn.execute(table_sql("logs", _LOGS, ("id",), set(_LOGS) - {"id"}))
    conn.execute(_index_sql("logs", "logs_by_name", ("agent", "log", "generation"), is_unique=True))
    conn.execute(table_sql("records", _RECORDS, ("log", "seq"), set(_RECORDS)) + ", WITHOUT ROWID")
    conn.execute(table_sql("meta", _META, ("name",), {"value"}))
    conn.execute("INSERT INTO meta VALUES ('seq', 1)")
    conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    conn.execute(f"PRAGMA user_version = {plan.version}")
    conn.execute("COMMIT")


def _create_table(conn: sqlite3.Connection, shape: Shape) -> None:
    columns = dict(zip(shape.names, shape.kinds, strict=True))
    conn.execute(table_sql(shape.name, columns, shape.key, set(shape.names) - shape.optional))
    for column in shape.index:
        name = f"{shape.name}_by_{column}"
        conn.execute(_index_sql(shape.name, name, ("agent", column), is_unique=column == "seq"))


def table_sql(name: str, columns: Mapping[str, type], key: Sequence[str], needed: Collection[str]) -> str:
    """The statement that makes a strict table, as sqlite-utils would write it: its import is no part of a start."""
    lines = []
    for column, kind in columns.items():
        words = (f'"{column}" {_SQL[kind]}', "PRIMARY KEY" * (list(key) == [column]), "NOT NULL" * (column in needed))
        lines.append("   " + " ".join(word for word in words if word))
    if len(key) > 1:
        lines.append(f"   PRIMARY KEY ({_quoted(key)})")
    return f'CREATE TABLE "{name}" (\n' + ",\n".join(lines) + "\n) STRICT"


def _index_sql(table: str, name: str, columns: Sequence[str], *, is_unique: bool) -> str:
    return f'CREATE {"UNIQUE " * is_unique}INDEX "{name}" ON "{table}" ({_quoted(columns)})'


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _save(conn: sqlite3.Connection, target: Path) -> None:
    """A whole, private, durable copy at *target*, which appears only when it is complete."""
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    _make(part)
    with closing(connect(part)) as copy:
        conn.backup(copy)
    part.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _migrate(conn: sqlite3.Connection, plan: Plan, version: int) -> None:
    from sqlite_utils import Database  # here: a store that is as it should be does not wait for it

    db = Database(conn, execute_plugins=False)
    conn.execute("BEGIN IMMEDIATE")
    try:
        for step in plan.steps[version - 1 :]:
            step(db)
        conn.execute(f"PRAGMA user_version = {plan.version}")
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


def _compare(conn: sqlite3.Connection, path: Path) -> None:
    """EINVAL when a table lacks a column that the row structs have: a damaged file or a forgotten step."""
    wanted = {shape_of(table).name: set(shape_of(table).names) for table in TABLES}
    wanted |= {"logs": set(_LOGS), "records": set(_RECORDS), "meta": set(_META)}
    for name, columns in wanted.items():
        there = {str(row[1]) for row in conn.execute(f'PRAGMA table_info("{name}")')}
        if columns - there:
            missing = ", ".join(sorted(columns - there))
            raise error(errno.EINVAL, str(path), f"store is damaged: table {name} lacks {missing}")
