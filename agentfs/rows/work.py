"""The rows of long work outside: jobs, sandboxes and what runs in them, and the operator's documents about them."""

from __future__ import annotations

from agentfs.rows.row import Row


class JobRow(Row, frozen=True, kw_only=True):
    """One request to a model (``request``: JSON, without its caller's key); its journal entry has the same id.

    ``state`` is pending, running, streaming, complete, failed or cancelled; ``output`` JSON, "" before the end;
    ``error`` an errno's name and ``reason`` the words. ``usage`` is JSON, "" when the provider reported none.
    ``has_key``: its caller brought a key, which is stored nowhere.
    """

    TABLE = "jobs"
    KEY = ("agent", "id")
    agent: str
    id: str
    request: str
    state: str
    source: str
    at_ns: int
    reserved_usd: int
    has_key: bool = False
    provider: str = ""
    model: str = ""
    output: str = ""
    finish_reason: str = ""
    usage: str = ""
    error: str = ""
    reason: str = ""
    cost_usd: int = 0
    started_ns: int | None = None
    first_ns: int | None = None
    done_ns: int | None = None
    expires_ns: int | None = None
    version: int = 1


class SandboxRow(Row, frozen=True, kw_only=True):
    """One session in a sandbox (``request``: JSON); its journal entry has the same id.

    ``state`` is provisioning, cloning, running, complete, failed or expired. ``results`` and ``artifacts`` are JSON
    lists, ``used`` a JSON object, "" before they are known; ``until_ns``: when its time is over;
    ``error`` an errno's name and ``reason`` the words. ``has_files``: its workdir is still there.
    """

    TABLE = "sandboxes"
    KEY = ("agent", "id")
    agent: str
    id: str
    request: str
    state: str
    provider: str
    source: str
    at_ns: int
    reserved_usd: int
    usd_per_hour: int = 0
    has_files: bool = True
    exit_code: int | None = None
    results: str = ""
    artifacts: str = ""
    used: str = ""
    error: str = ""
    reason: str = ""
    cost_usd: int = 0
    started_ns: int | None = None
    until_ns: int | None = None
    done_ns: int | None = None
    expires_ns: int | None = None
    version: int = 1


class ExecRow(Row, frozen=True, kw_only=True):
    """One command that was run in a session (``request``: JSON): running, complete, failed or cancelled.

    ``result``: JSON, "" before the end; ``error`` an errno's name and ``reason`` the words.
    """

    TABLE = "execs"
    KEY = ("agent", "session", "id")
    agent: str
    session: str
    id: str
    request: str
    state: str
    at_ns: int
    result: str = ""
    error: str = ""
    reason: str = ""
    done_ns: int | None = None
    version: int = 1


class DocumentRow(Row, frozen=True, kw_only=True):
    """A document that the operator keeps for a service: of *agent*, or for "" of the whole runtime."""

    TABLE = "documents"
    KEY = ("agent", "name")
    agent: str
    name: str
    text: str
    changed_at_ns: int
