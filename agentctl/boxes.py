"""The commands about sandboxes: run a program in one, and look at, use and stop those that are there.

What comes out of a program goes out as it is; its exit code is the command's.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import msgspec
import typer

from agentctl.boxfiles import cp, known
from agentctl.chat import Name
from agentctl.command import Session
from agentctl.output import STDOUT, exit_code, parse, printable
from agentfs.errors import error
from agentfs.types import agent_id

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

    128 + N: signal N ended the program. A failure of agentctl's own has its usual code, and tells itself by a line on
    standard error that begins with "agentctl: ". Ctrl-C, SIGTERM and SIGHUP stop the session (130, 143, 129).
    What the program made is under containers/sessions/SESSION/files for a day.
    """
    home = f"agents/{agent_id(name)}"
    limits: dict[str, object] = {"allow_network": True} if network else {}
    limits |= {field: _number(field, value) for field, value in _pairs("--limit", limit).items()}
    request: dict[str, Any] = {"image": image, "provider": provider, "limits": limits}
    request |= {"env": _pairs("--env", env)}
    request |= {"commands": [command], "stdin": _given(stdin)}
    made = _called(session, f"{home}/containers/new", request)
    with _attended(session, f"{home}/containers/sessions/{made['session_id']}", b"stop\n"):
        is_whole = _follow(session, f"{home}/{made['output_path']}")
    _end(session, f"{home}/{made['result_path']}", is_whole=is_whole)


def containers(session: Session) -> None:
    """Sandboxes of an agent's: list, follow, use and stop them. To begin one: agentctl run."""
    raise error(errno.EINVAL, "", f"containers: want one of {' '.join(COMMANDS)}")


def ls(session: Session, name: Name) -> None:
    """List an agent's sessions, in the order of their ids."""
    columns = ("session_id", "status", "provider_id", "exit_code", "cost_usd", "at", "error")
    session.out.rows(_statuses(session, f"agents/{agent_id(name)}/containers/sessions"), columns)


def logs(session: Session, name: Name, id: Id, command: Annotated[str, typer.Argument(metavar="[EXEC]")] = "") -> None:
    """Show what came out of a session's commands, or of one exec, to its end."""
    with known(session, f"agents/{agent_id(name)}/containers/sessions/{id}") as top:
        if not _follow(session, f"{top}/exec/{command}/output" if command else f"{top}/output"):
            session.note("the beginning, or more, is no longer held")


def execute(
    session: Session, name: Name, id: Id, command: Words, env: Env = None,
    stdin: Annotated[bool, typer.Option("--stdin", "-i", help="Give it what comes on standard input.")] = False,
) -> None:  # fmt: skip
    """Run a program in a session that is there, show what comes out, and end with its exit code."""
    request = {"command": command, "stdin": _given(stdin), "env": _pairs("--env", env)}
    with known(session, f"agents/{agent_id(name)}/containers/sessions/{id}") as top:
        where = f"{top}/exec/{_called(session, f'{top}/exec/new', request)['exec_id']}"
    with _attended(session, where, b"cancel\n"):
        is_whole = _follow(session, f"{where}/output")
    _end(session, f"{where}/result", is_whole=is_whole)


def stop(session: Session, name: Name, id: Id) -> None:
    """End a session; of one that has ended, remove its files."""
    with known(session, f"agents/{agent_id(name)}/containers/sessions/{id}") as top:
        session.client.call(f"{top}/ctl", b"stop\n")
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


@contextlib.contextmanager
def _attended(session: Session, place: str, verb: bytes) -> Iterator[None]:
    """What ends this command, or an output that takes no more, ends what runs at *place* too.

    Without the runtime it may go on.
    """
    try:
        with _ended_by(signal.SIGTERM, signal.SIGHUP):
            yield
    except (KeyboardInterrupt, OSError) as exc:
        is_own = not isinstance(exc, OSError) or isinstance(exc, BrokenPipeError) or exc.filename == STDOUT
        if is_own:
            with contextlib.suppress(OSError):
                session.client.call(f"{place}/ctl", verb)
        else:
            session.note(f"it may go on: {place}")
        raise


@contextlib.contextmanager
def _ended_by(*numbers: signal.Signals) -> Iterator[None]:
    """Each of the signals *numbers* is as Ctrl-C, but for those that are ignored (nohup)."""

    def end(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():  # only that one is told of signals
        yield
        return
    heard = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in heard:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)


def _follow(session: Session, path: str) -> bool:
    """Show an output to its end; whether all of it came."""

    def lost(exc: OSError) -> None:
        session.note(f"reconnecting: {printable(exc.strerror or str(exc))}")

    seq, is_whole = 0, True
    for _, line in session.client.watch(path, "0", lost=lost):
        record = parse(line)
        if not isinstance(record, dict) or "stream" not in record:
            continue  # a gap: the next number says so
        is_whole, seq = is_whole and record.get("seq") == seq + 1, record.get("seq", seq)
        if record.get("done"):
            break
        _show(session, record)
    return is_whole


def _show(session: Session, record: dict[str, Any]) -> None:
    data = base64.b64decode(record["base64"]) if "base64" in record else str(record.get("data", "")).encode()
    if session.out.is_json:
        return
    if record["stream"] == "stdout":
        session.out.raw(data)
    elif sys.stderr is not None:
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()


def _end(session: Session, path: str, *, is_whole: bool) -> None:
    """End as the program did; with --output json its result is shown. What it did not end by itself is an error."""
    result = msgspec.json.decode(session.client.read(path), type=dict[str, Any])
    if session.out.is_json:
        session.out.value(result)
    code, name, reason = result["exit_code"], result["errno"], result["error"] or "it was stopped"
    if name and code:
        session.note(f"{name}: {printable(reason)}")
    elif name or code is None:
        raise OSError(getattr(errno, name or "ECANCELED", errno.EREMOTEIO), reason)
    if not is_whole and not session.out.is_json:
        session.note("some of the output was lost: it came faster than it was taken")
        code = code or exit_code(error(errno.EIO))
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
