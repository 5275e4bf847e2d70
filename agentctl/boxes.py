"""The commands about sandboxes: run a program in one, and look at, use and stop those that are there.

What comes out of a program goes out as it is; its exit code is the command's.
"""

from __future__ import annotations

import base64
import errno
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from agentctl.chat import Name
from agentctl.command import Session
from agentctl.output import parse
from agentfs.errors import error
from agentfs.types import agent_id

CHUNK = 1 << 20
Words = Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="The program and its words.")]
Id = Annotated[str, typer.Argument(metavar="SESSION")]
Image = Annotated[str, typer.Option("--image", metavar="NAME", help="Default: the provider's own.")]
Env = Annotated[list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="Also secret:NAME.")]
Limit = Annotated[list[str] | None, typer.Option("--limit", metavar="NAME=N", help="As max_memory_mb=256; repeatable.")]


def run(
    session: Session, name: Name, command: Words, image: Image = "", provider: str = "", env: Env = None,
    limit: Limit = None,
    network: Annotated[bool, typer.Option("--network", help="With the network, where the policy allows it.")] = False,
    stdin: Annotated[bool, typer.Option("--stdin", "-i", help="Give it what comes on standard input.")] = False,
) -> None:  # fmt: skip
    """Run a program in a sandbox of an agent's, show what comes out, and end with its exit code.

    The sandbox is gone when it has ended; what it made is under containers/sessions/SESSION/files for a day.
    """
    home = f"agents/{agent_id(name)}"
    limits: dict[str, object] = {"allow_network": True} if network else {}
    limits |= {field: _number(field, value) for field, value in _pairs("--limit", limit).items()}
    request: dict[str, Any] = {"image": image, "provider": provider, "limits": limits}
    request |= {"env": _pairs("--env", env)}
    request |= {"commands": [command], "stdin": _given(stdin)}
    made = _called(session, f"{home}/containers/new", request)
    code = _follow(session, f"{home}/{made['output_path']}")
    _end(session, f"{home}/{made['result_path']}", code)


def containers(session: Session) -> None:
    """Sandboxes of an agent's: list, follow, use and stop them. To begin one: agentctl run."""
    raise error(errno.EINVAL, "", f"containers: want one of {' '.join(COMMANDS)}")


def ls(session: Session, name: Name) -> None:
    """List an agent's sessions, in the order of their ids."""
    columns = ("session_id", "status", "provider_id", "exit_code", "cost_usd", "at", "error")
    session.out.rows(_statuses(session, f"agents/{agent_id(name)}/containers/sessions"), columns)


def logs(session: Session, name: Name, id: Id, command: Annotated[str, typer.Argument(metavar="[EXEC]")] = "") -> None:
    """Show what came out of a session's commands, or of one exec, to its end."""
    top = f"agents/{agent_id(name)}/containers/sessions/{id}"
    _follow(session, f"{top}/exec/{command}/output" if command else f"{top}/output")


def execute(
    session: Session, name: Name, id: Id, command: Words, env: Env = None,
    stdin: Annotated[bool, typer.Option("--stdin", "-i", help="Give it what comes on standard input.")] = False,
) -> None:  # fmt: skip
    """Run a program in a session that is there, show what comes out, and end with its exit code."""
    top = f"agents/{agent_id(name)}/containers/sessions/{id}/exec"
    request = {"command": command, "stdin": _given(stdin), "env": _pairs("--env", env)}
    where = f"{top}/{_called(session, f'{top}/new', request)['exec_id']}"
    _end(session, f"{where}/result", _follow(session, f"{where}/output"))


def cp(
    session: Session, name: Name, source: Annotated[str, typer.Argument(metavar="SOURCE")],
    target: Annotated[str, typer.Argument(metavar="TARGET")],
) -> None:  # fmt: skip
    """Copy a file into or out of a session: one of the two is SESSION:PATH."""
    top = f"agents/{agent_id(name)}/containers/sessions"
    there, back = _inside(source), _inside(target)
    if (there is None) == (back is None):
        raise error(errno.EINVAL, "", "cp: one of the two must be SESSION:PATH")
    if back is not None:
        place = f"{back[1]}{Path(source).name}" if not back[1] or back[1].endswith("/") else back[1]
        with Path(source).open("rb") as file:
            session.client.write(f"{top}/{back[0]}/files/{place}", iter(lambda: file.read(CHUNK), b""))
    elif there is not None:
        to = Path(target) / Path(there[1]).name if Path(target).is_dir() else Path(target)
        with session.client.open(f"{top}/{there[0]}/files/{there[1]}") as body:
            if body.kind == "dir":
                raise error(errno.EISDIR, there[1])
            with to.open("wb") as file:
                for chunk in body.chunks:
                    file.write(chunk)


def stop(session: Session, name: Name, id: Id) -> None:
    """End a session; of one that has ended, remove its files."""
    session.client.call(f"agents/{agent_id(name)}/containers/sessions/{id}/ctl", b"stop\n")
    session.out.done()


def _called(session: Session, path: str, request: dict[str, Any]) -> dict[str, Any]:
    try:
        document = msgspec.json.encode(request)
    except UnicodeEncodeError as exc:
        raise error(errno.EILSEQ, "", "the command") from exc
    return msgspec.json.decode(session.client.call(path, document), type=dict[str, Any])


def _given(is_wanted: bool) -> str:
    """Standard input, as text, where it *is_wanted*."""
    if not is_wanted:
        return ""
    if sys.stdin is None:
        raise error(errno.EBADF, "standard input")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as exc:
        raise error(errno.EILSEQ, "standard input", str(exc.reason)) from exc


def _inside(place: str) -> tuple[str, str] | None:
    """SESSION:PATH as its two halves; None for a file of this machine."""
    name, colon, path = place.partition(":")
    return (name, path.removeprefix("/")) if colon and name and "/" not in name else None


def _follow(session: Session, path: str) -> int | None:
    """Show an output to its end; the exit code it tells."""
    for _, line in session.client.watch(path, "0"):
        record = parse(line)
        if not isinstance(record, dict):
            continue
        if record.get("done"):
            code = record.get("exit_code")
            return code if isinstance(code, int) else None
        data = record.get("data", "")
        raw = base64.b64decode(record["base64"]) if "base64" in record else str(data).encode()
        if session.out.is_json:
            continue
        if record.get("stream") == "stderr":
            sys.stderr.buffer.write(raw)
            sys.stderr.buffer.flush()
        else:
            session.out.raw(raw)
    return None


def _end(session: Session, path: str, code: int | None) -> None:
    """End as the program did; with --output json its result is shown. What cut it off is an error."""
    result = msgspec.json.decode(session.client.read(path), type=dict[str, Any])
    if session.out.is_json:
        session.out.value(result)
    if result.get("errno"):
        raise error(getattr(errno, result["errno"], errno.EREMOTEIO), "", result["error"] or "it was cut off")
    if code:
        raise typer.Exit(code)


def _statuses(session: Session, top: str) -> Iterator[dict[str, Any]]:
    for entry in session.client.ls(top):
        try:
            yield msgspec.json.decode(session.client.read(f"{top}/{entry.name}/status"), type=dict[str, Any])
        except FileNotFoundError:
            continue  # its time was over since it was listed


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    found = {}
    for pair in given or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise error(errno.EINVAL, "", f"{option} {pair}: want NAME=VALUE")
        found[name] = value
    return found


def _number(field: str, text: str) -> float:
    try:
        return float(text) if "." in text else int(text)
    except ValueError as exc:
        raise error(errno.EINVAL, "", f"--limit {field}: want a number") from exc


COMMANDS: dict[str, Callable[..., None]] = {"ls": ls, "logs": logs, "exec": execute, "cp": cp, "stop": stop}
