"""What a model may do with an agent's namespace: list, read, write, call, watch and run, each with a bounded result.

It checks what a model wrote; what is allowed is the namespace's business.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, TypeAlias

import anyio
import msgspec

from agentfs.engine.settings import TOOLS
from agentfs.errors import error, only
from agentfs.ports import Clock
from agentfs.providers.programs.errand import RUN_MS, Errand
from agentfs.service import FileHandle, FileService
from agentfs.types import Kind, Mode, Path, Record, clean

RESULT_MAX: Final = 16 << 10  # bytes of one result
WATCH_MAX_MS: Final = 30_000
REPEATABLE: Final = frozenset({"list", "read", "watch", "run"})
"""Those that change nothing, and the one whose key finds what was run before."""


class _Arguments(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    path: str = ""


class _Read(_Arguments, kw_only=True):
    offset: int = 0
    limit: int = RESULT_MAX


class _Text(_Arguments, kw_only=True):
    text: str


class _Watch(_Arguments, kw_only=True):
    timeout_ms: int = 5_000


class _Run(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    path: ClassVar[str] = "containers/new"
    command: str
    stdin: str = ""
    timeout_ms: int = RUN_MS


_Given: TypeAlias = _Arguments | _Run
_SHAPES: Final[Mapping[str, type[_Given]]] = {
    "list": _Arguments, "read": _Read, "write": _Text, "call": _Text, "watch": _Watch, "run": _Run,
}  # fmt: skip


class Tools:
    """The tools over *files*; no result is over *most* bytes."""

    def __init__(self, files: FileService, clock: Clock, most: int = RESULT_MAX) -> None:
        self._files, self._clock, self._most = files, clock, min(most, RESULT_MAX)

    async def use(self, name: str, arguments: str, key: str) -> str:
        """What the tool *name* gives for *arguments*, a JSON object. EINVAL for those; what the file says.

        *key* is this use's own, and in a retry the same.
        """
        given, path = parsed(name, arguments)
        match given:
            case _Read():
                return await self._read(path, given.offset, given.limit)
            case _Text():
                return await (self._write(path, given.text) if name == "write" else self._call(path, given.text))
            case _Watch():
                return await self._watch(path, given.timeout_ms)
            case _Run():
                return await Errand(given.command, given.stdin, given.timeout_ms, key).run(self._files, self._most)
        return await self._list(path)

    async def _list(self, path: Path) -> str:
        lines, after, size = list[str](), "", 0
        while page := await self._files.list(path, after):
            for st in page:
                line = f"{st.name}/" if st.is_dir else f"{st.name} ({st.kind.value})"
                size += len(line.encode()) + 1
                if size > self._most:
                    return "\n".join([*lines, "[cut: there is more]"])
                lines.append(line)
            after = page[-1].name
        return "\n".join(lines) or "[empty]"

    async def _read(self, path: Path, offset: int, limit: int) -> str:
        if "@" in path:
            raise error(errno.EINVAL, path, "path: a follow stream is for watch")
        most = min(limit, self._most)
        async with await self._files.open(path, Mode.READ) as handle:
            data = await _taken(handle, most + 1, offset)
        text = data[:most].decode(errors="replace")
        return f"{text}\n[cut: read on with offset={offset + most}]" if len(data) > most else text

    async def _write(self, path: Path, text: str) -> str:
        try:
            kind = (await self._files.stat(path)).kind
        except FileNotFoundError:
            handle = await self._files.create(path, Mode.WRITE)
        else:
            if kind is Kind.CALL:
                raise error(errno.EINVAL, path, "path: this file is for call")
            text += "\n" if kind is Kind.CTL and not text.endswith("\n") else ""
            is_whole = kind in (Kind.FILE, Kind.DATA)
            handle = await self._files.open(path, Mode.WRITE | Mode.TRUNCATE if is_whole else Mode.WRITE)
        async with handle:
            size = await _filled(handle, text)
        return f"[wrote {size} bytes]"

    async def _call(self, path: Path, text: str) -> str:
        async with await self._files.open(path, Mode.READ | Mode.WRITE) as handle:
            await _filled(handle, text, is_flushed=False)
            data = await _taken(handle, self._most + 1, 0)
            await handle.flush(final=True)
        text = data[: self._most].decode(errors="replace")
        return f"{text}\n[cut]" if len(data) > self._most else text

    async def _watch(self, path: Path, timeout_ms: int) -> str:
        if not 0 < timeout_ms <= WATCH_MAX_MS:
            raise error(errno.EINVAL, path, f"timeout_ms: want 1..{WATCH_MAX_MS}")
        async with await self._files.open(Path(f"{path}@follow"), Mode.READ) as handle:
            record = await self._next(handle, timeout_ms)
        if record is None:
            return f"[nothing within {timeout_ms} ms]"
        text = record.line[: self._most].decode(errors="replace")
        return f"{text}\n[cut]" if len(record.line) > self._most else text

    async def _next(self, handle: FileHandle, timeout_ms: int) -> Record | None:
        found: Record | None = None
        try:
            async with anyio.create_task_group() as group:

                async def expire() -> None:
                    await self._clock.sleep_until(self._clock.now_ns() + timeout_ms * 1_000_000)
                    group.cancel_scope.cancel()

                group.start_soon(expire)
                found = await handle.next()
                group.cancel_scope.cancel()
        except BaseExceptionGroup as exc:
            raise only(exc) from exc
        return found


def parsed(name: str, arguments: str) -> tuple[_Given, Path]:
    """What a model wrote for the tool *name*, and the path in it. EINVAL naming the field."""
    if name not in _SHAPES:
        raise error(errno.EINVAL, detail=f"no tool {name[:40]!r}")
    try:
        given = msgspec.json.decode(arguments or "{}", type=_SHAPES[name])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise error(errno.EINVAL, detail=f"arguments: {exc}") from None
    path = clean(given.path.removeprefix("/").removesuffix("/"))
    if isinstance(given, _Read) and (given.offset < 0 or not given.limit > 0):
        raise error(errno.EINVAL, path, "offset, limit: want 0 or more, 1 or more")
    return given, path


async def _taken(handle: FileHandle, size: int, offset: int) -> bytes:
    """Up to *size* bytes from *offset* on, fewer only at the end."""
    held = b""
    while len(held) < size and (piece := await handle.read(size - len(held), offset + len(held))):
        held += piece
    return held


async def _filled(handle: FileHandle, text: str, *, is_flushed: bool = True) -> int:
    """Write all of *text*; of what fails half-way nothing more is committed. EILSEQ, what the file says."""
    try:
        data, done = text.encode(), 0
        while done < len(data):
            done += await handle.write(data[done:], done)
        if is_flushed:
            await handle.flush(final=True)
    except UnicodeEncodeError as exc:
        handle.discard()
        raise error(errno.EILSEQ, detail=exc.reason) from None
    except OSError:
        handle.discard()
        raise
    return len(data)


_PATH: Final = {"type": "string", "description": "a path below your root, as kv/notes"}
_ABOUT: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "list": ("List a directory; the path is empty for the root.", {}),
    "read": ("Read a file, at most 16 KiB at a time.", {"offset": {"type": "integer"}, "limit": {"type": "integer"}}),
    "write": (
        "Replace the content of a file, create one, put a message into a queue or a verb into a ctl.",
        {"text": {"type": "string"}},
    ),
    "call": ("Write a request to a file of kind call and read its answer.", {"text": {"type": "string"}}),
    "watch": ("Wait for the next record of a stream.", {"timeout_ms": {"type": "integer"}}),
    "run": (
        "Run a line of shell in a sandbox: its exit code, stdout and stderr. It begins in an empty directory, and no "
        "other run sees what it leaves there; where $AGENTFS_ROOT is set, that is your tree of files.",
        {"command": {"type": "string"}, "stdin": {"type": "string"}, "timeout_ms": {"type": "integer"}},
    ),
}
_NEEDED: Final = ("path", "text", "command")


def described(names: Sequence[str]) -> list[dict[str, Any]]:
    """The tools called *names*, as a chat request names them."""
    return [_function(name, *_ABOUT[name]) for name in TOOLS if name in names]


def _function(name: str, about: str, more: Mapping[str, Any]) -> dict[str, Any]:
    fields = more if name == "run" else {"path": _PATH, **more}
    needed = [field for field in fields if field in _NEEDED]
    parameters = {"type": "object", "properties": fields, "required": needed}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}
