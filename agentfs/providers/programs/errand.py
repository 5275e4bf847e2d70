"""The tool ``run``: a line of shell in a sandbox of its own, by the agent's ``containers/``; what came of it as text.

It has no rights of its own: what may run, how long and for how much is the mount's and the policy's business.
"""

from __future__ import annotations

import base64
import errno
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from agentfs.errors import error
from agentfs.service import FileService
from agentfs.types import Mode, Path

RUN_MS: Final = 30_000
"""How long a command may take that names no time."""
KEEP_S: Final = 900
"""How long its session is kept, for a retry of the step: in a day a model may begin more than an agent can hold."""
_ANSWER_MAX: Final = 1 << 16


async def has_sandboxes(files: FileService) -> bool:
    """Whether ``containers/`` is mounted in *files*, with any provider."""
    try:
        return bool(await files.list(Path("containers/providers")))
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.EACCES):
            return False
        raise


@dataclass(frozen=True, slots=True)
class Errand:
    """One command; the same *key* again finds the session of the first time, and runs nothing."""

    line: str
    stdin: str
    timeout_ms: int
    key: str

    async def run(self, files: FileService, most: int) -> str:
        """Its exit code, stdout and stderr, about *most* bytes of them. What ``containers/new`` says; EILSEQ."""
        request = {
            "commands": [self.line], "stdin": self.stdin, "timeout_ms": self.timeout_ms, "idempotency_key": self.key,
            "keep_secs": KEEP_S,
        }  # fmt: skip
        try:
            doc = msgspec.json.encode(request)
        except UnicodeEncodeError as exc:
            raise error(errno.EILSEQ, detail=exc.reason) from None
        async with await files.open(Path("containers/new"), Mode.READ | Mode.WRITE) as handle:
            await handle.write(doc, 0)
            made = msgspec.json.decode(await handle.read(_ANSWER_MAX, 0))
        return await _followed(files, Path(f"{made['output_path']}@0"), most)


async def _followed(files: FileService, path: Path, most: int) -> str:
    """What is in the output *path*, to its end: the beginning of stdout and the end of stderr."""
    out, err, last = bytearray(), bytearray(), dict[str, Any]()
    async with await files.open(path, Mode.READ) as stream:
        while (record := await stream.next()) is not None:
            last = msgspec.json.decode(record.line)
            if last.get("stream") == "stderr":
                err = (err + _data(last))[-most - 1 :]
            else:
                out = (out + _data(last))[: most + 1]
    return _told(last, bytes(out), bytes(err), most)


def _data(record: dict[str, Any]) -> bytes:
    if "base64" in record:
        return base64.b64decode(record["base64"])
    return str(record.get("data", "")).encode()


def _told(last: dict[str, Any], out: bytes, err: bytes, most: int) -> str:
    """One text: *last* is the record that tells how it ended."""
    code, why = last.get("exit_code"), last.get("error")
    head = str(last.get("status")) if code is None else f"exit {code}"
    ends = [f"[{head}: {why}]" if why else f"[{head}]"]
    room = max(most // 4, most - len(out))  # of stderr: its end tells what went wrong
    if out:
        left = most - min(len(err), room)
        ends.append(out[:left].decode(errors="replace") + ("\n[cut]" if len(out) > left else ""))
    if err:
        ends += ["[stderr]", ("[cut]\n" if len(err) > room else "") + err[-room:].decode(errors="replace")]
    return "\n".join(end.removesuffix("\n") for end in ends)
