"""The commands of ``agentctl``, each a few file operations on the HTTP face.

No command holds state; what the files mean is the runtime's.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat as _stat
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import msgspec
import typer

from agentctl import boxes, chat, messages, models, rights
from agentctl.command import Ca, Cert, Form, Key, Options, Session, Signer, State, Token, Url, add, group
from agentctl.output import PIPE_CLOSED, exit_code, failure, interrupted, legend, printable, silence
from agentctl.wire import Entry, tidy
from agentfs.errors import error
from agentfs.types import agent_id

CHUNK = 256 << 10
DELETE_S = 15.0
LOGS = ("trace", "trajectory", "ticks", "outbox")
# Both usage errors and aborts are click's own, and where click lives depends on typer's version.
_USAGE: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="agentctl",
    epilog=legend(),
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The agent's id.")]
File = Annotated[str, typer.Argument(metavar="PATH", help="A path on the runtime, e.g. agents/demo/status.")]
Since = Annotated[str | None, typer.Option("--since", metavar="CURSOR", help="Begin after this cursor; 0: all held.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=0, help="End after this many records; 0: never.")]
Data = Annotated[str | None, typer.Argument(metavar="DATA|-", help="Default or -: standard input, exactly.")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # here: no other command waits for it

        typer.echo(f"agentctl {version('agentfs')}")
        raise typer.Exit


@app.callback()
def top(
    ctx: typer.Context,
    state: State = None,
    url: Url = None,
    token: Token = None,
    output: Form = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    signer: Signer = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Operate agents: every command is file operations on a running runtime.

    The runtime is found by --url and --token, then AGENTFS_SOCKET or AGENTFS_URL and AGENTFS_TOKEN, then in the state
    directory (--state, AGENTFS_STATE, else ~/.local/state/agentfs). For an https URL there are --ca, --cert and --key,
    or AGENTFS_CA, AGENTFS_CERT and AGENTFS_KEY; a certificate needs no token beside it. write has a --key of its own:
    there the private key is given before the command's name.

    With --as the agent of that runtime signs each request to another one, at --url (with --ca for https).
    """
    ctx.obj = Options(state, url, token, output, ca, cert, key, signer)


def list_(
    session: Session,
    long: Annotated[bool, typer.Option("--long", "-l", help="State and queue too: one request an agent.")] = False,
) -> None:
    """List the agents."""
    names = (entry.name for entry in session.client.ls("agents") if entry.is_dir)
    if long:
        columns = ("id", "state", "queue_depth", "tick_count", "last_tick_at", "next_wake")
        session.out.rows(_statuses(session, names), columns)
    else:
        session.out.rows(({"name": name} for name in names), ("name",), header=False)


def _statuses(session: Session, names: Iterator[str]) -> Iterator[dict[str, object]]:
    for name in names:
        try:
            yield _object(session.client.read(f"agents/{name}/status"), f"agents/{name}/status")
        except FileNotFoundError:
            continue  # removed since it was listed


def create(
    session: Session,
    name: Name,
    program: Annotated[str | None, typer.Option("--program", metavar="JSON", help="The program as JSON.")] = None,
    execute: Annotated[str | None, typer.Option("--exec", metavar="CMD", help="Run this command each tick.")] = None,
    inline: Annotated[str | None, typer.Option("--inline", metavar="REF", help="A trusted module:Class.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="Have a model answer so.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="MODEL or PROVIDER/MODEL, for --prompt.")] = None,
    config: Annotated[
        list[str] | None,
        typer.Option("--config", "-c", metavar="K=V", help="A field of config; dots nest, V may be JSON. Repeatable."),
    ] = None,
) -> None:
    """Create an agent, dormant; without a program it gets the runtime's default one."""
    ways = messages.Ways(program, execute, inline, prompt, model)
    document = messages.agent(agent_id(name), ways, config or [])
    session.out.value(_object(session.client.call("agents", document), "agents"))


def delete(
    session: Session,
    name: Name,
    force: Annotated[bool, typer.Option("--force", "-f", help="Terminate it first if it still exists.")] = False,
) -> None:
    """Remove a terminated agent and all its files."""
    path, wait, end = f"agents/{agent_id(name)}", 0.0, time.monotonic() + DELETE_S
    while True:
        try:
            session.client.remove(path)
            return session.out.done()
        except OSError as exc:
            if not force or exc.errno not in (errno.ENOTEMPTY, errno.EBUSY) or time.monotonic() > end:
                raise
        if not wait:
            session.client.call(f"{path}/ctl", b"terminate\n")
        wait = min(wait * 2, 1.0) or 0.02
        time.sleep(wait)  # a running tick ends first


def status(session: Session, name: Name) -> None:
    """Show an agent's status."""
    path = f"agents/{agent_id(name)}/status"
    session.out.value(_object(session.client.read(path), path))


def send(
    session: Session,
    name: Name,
    text: Annotated[str | None, typer.Argument(metavar="TEXT|-", help="Default or -: standard input.")] = None,
    is_json: Annotated[bool, typer.Option("--json", help="TEXT is JSON: the payload is its value.")] = False,
    ident: Annotated[str | None, typer.Option("--id", metavar="ID", help="Sending an id again has no effect.")] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait for the reply and print it.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds to wait for the reply.")] = 60.0,
) -> None:
    """Send a message; prints the receipt, or with --wait the reply's payload."""
    raw = text if text is not None and text != "-" else _stdin_text()
    message = messages.message(raw, ident, is_json=is_json)
    home = f"agents/{agent_id(name)}"
    if not wait:
        session.out.content(session.client.call(f"{home}/inbox", message.body))
        return
    receipt, reply = messages.ask(session.client, home, message, time.monotonic() + timeout)
    if session.out.is_json:
        session.out.value({"receipt": receipt, "reply": reply})
    else:
        payload = reply.get("payload")
        shown = payload.encode() if isinstance(payload, str) else msgspec.json.encode(payload)
        session.out.raw(shown + b"\n")


def tick(session: Session, name: Name) -> None:
    """Queue a tick; does not wait for it."""
    session.out.done(session.client.call(f"agents/{agent_id(name)}/tick", b""))


def ctl(
    session: Session,
    name: Name,
    verb: Annotated[str | None, typer.Argument(help="Default: list the verbs and the last error.")] = None,
    args: Annotated[list[str] | None, typer.Argument(metavar="ARGS", help="The verb's arguments.")] = None,
) -> None:
    """Write a verb to an agent's ctl: tick, hibernate, wake, pause, resume, stop, recover, terminate ..."""
    path = f"agents/{agent_id(name)}/ctl"
    if verb is None:
        session.out.content(session.client.read(path))
        return
    words = [verb, *(args or [])]
    if any("\n" in word for word in words):
        raise error(errno.EINVAL, path, "a verb and its arguments are one line")
    session.out.done(session.client.call(path, _bytes(shlex.join(words)) + b"\n"))


def logs(
    session: Session,
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for new records until Ctrl-C.")] = False,
    log: Annotated[str, typer.Option("--log", help="One of: " + " ".join(LOGS) + ".")] = LOGS[0],
    since: Since = None,
    limit: Limit = 0,
) -> None:
    """Print an agent's log; --since begins at a cursor and implies --follow."""
    if log not in LOGS:
        raise typer.BadParameter(f"{log!r} is none of {' '.join(LOGS)}", param_hint="--log")
    path = f"agents/{agent_id(name)}/" + (log if log == "outbox" else f"logs/{log}")
    if follow or since is not None:
        _follow(session, path, since, limit)
        return
    with session.client.open(path) as body:
        session.out.records(body.chunks, limit)


def watch(session: Session, path: File, since: Since = None, limit: Limit = 0) -> None:
    """Print the records of a stream as they come, resuming a lost connection, until it ends or Ctrl-C."""
    _follow(session, path, since, limit)


def _follow(session: Session, path: str, since: str | None, limit: int) -> None:
    def lost(exc: OSError) -> None:
        session.note(f"reconnecting: {printable(exc.strerror or str(exc))}")

    for count, (cursor, line) in enumerate(session.client.watch(path, since, lost=lost), 1):
        session.out.record(cursor, line)
        if count == limit:
            return


def read(session: Session, path: File) -> None:
    """Print a file exactly."""
    with session.client.open(path) as body:
        if body.kind == "dir":
            raise error(errno.EISDIR, tidy(path), "list it with ls")
        if session.out.is_json:
            session.out.content(b"".join(body.chunks))
        else:
            for chunk in body.chunks:
                session.out.raw(chunk)


def write(
    session: Session,
    path: File,
    data: Data = None,
    append: Annotated[bool, typer.Option("--append", help="Append, enqueue or call; prints the answer.")] = False,
    key: Annotated[str | None, typer.Option("--key", help="Idempotency key of an --append.")] = None,
    match: Annotated[int | None, typer.Option("--match", help="Only if the file has this version.")] = None,
    exclusive: Annotated[bool, typer.Option("--exclusive", help="Only if the file does not exist.")] = False,
) -> None:
    """Replace a file's content, or with --append add to it."""
    if (append and (exclusive or match is not None)) or (key is not None and not append):
        raise typer.BadParameter("--match and --exclusive are for replacing, --key is for --append")
    size = _stdin_size() if data is None or data == "-" else None
    content = _stdin() if data is None or data == "-" else _bytes(data)
    if append:
        session.out.done(session.client.call(path, content, size=size, key=key))
        return
    version = session.client.write(path, content, size=size, match=match, exclusive=exclusive)
    if session.out.is_json:
        session.out.value({"path": tidy(path), "version": version})


def ls(
    session: Session,
    path: Annotated[str, typer.Argument(metavar="PATH", help="Default: the root.")] = "",
    long: Annotated[bool, typer.Option("-l", "--long", help="Kind, mode, size, time and version too.")] = False,
    recursive: Annotated[bool, typer.Option("-R", "--recursive", help="Everything below, depth first.")] = False,
) -> None:
    """List a directory, or show one file's entry."""
    columns = ("kind", "mode", "size", "mtime", "version", "name") if long else ("name",)
    session.out.rows(_entries(session, path, recursive), columns, header=long)


def _entries(session: Session, path: str, recursive: bool) -> Iterator[dict[str, object]]:
    try:
        for entry in session.client.ls(path, recursive=recursive):
            yield msgspec.structs.asdict(entry)
    except NotADirectoryError:
        one: Entry = session.client.stat(path)
        yield msgspec.structs.asdict(one)


def runtime(session: Session) -> None:
    """Show the runtime's status."""
    session.out.value(_object(session.client.read("runtime/status"), "runtime/status"))


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_, "create": create, "delete": delete, "status": status, "send": send, "chat": chat.chat,
    "run": boxes.run, "tick": tick, "ctl": ctl,
    "logs": logs, "read": read, "write": write, "ls": ls, "watch": watch, "runtime": runtime,
}  # fmt: skip
for _name, _run in COMMANDS.items():
    # Behind ctl's NAME everything belongs to the verb, options too.
    add(app, _name, _run, context_settings={"allow_interspersed_args": _name != "ctl"})
GROUPS: dict[str, tuple[Callable[..., None], dict[str, Callable[..., None]]]] = {
    "token": (rights.token, rights.TOKEN_COMMANDS),
    "approvals": (rights.approvals, rights.APPROVAL_COMMANDS),
    "identity": (rights.identities, rights.IDENTITY_COMMANDS),
    "compute": (models.compute, models.COMMANDS),
    "containers": (boxes.containers, boxes.COMMANDS),
}
for _name, (_run, _commands) in GROUPS.items():
    _below = group(app, _name, _run)
    for _name_below, _run_below in _commands.items():
        add(_below, _name_below, _run_below)


def _object(raw: bytes, path: str) -> dict[str, object]:
    try:
        return msgspec.json.decode(raw, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise error(errno.EIO, path, f"want one JSON object: {exc}") from exc


def _bytes(word: str) -> bytes:
    return word.encode(errors="surrogateescape")


def _stdin() -> Iterator[bytes]:
    if sys.stdin is None:
        raise error(errno.EBADF, "standard input")  # taken as empty it would empty a file
    while chunk := sys.stdin.buffer.read(CHUNK):
        yield chunk


def _stdin_size() -> int | None:
    """The length of what is left of a regular file, so that one over the limit is refused before it is sent."""
    if sys.stdin is None:
        return None
    try:
        status, at = os.fstat(sys.stdin.fileno()), os.lseek(sys.stdin.fileno(), 0, os.SEEK_CUR)
    except OSError:
        return None
    return status.st_size - at if _stat.S_ISREG(status.st_mode) and status.st_size > at else None


def _stdin_text() -> str:
    try:
        return b"".join(_stdin()).decode().removesuffix("\n")
    except UnicodeDecodeError as exc:
        raise error(errno.EILSEQ, "standard input", str(exc.reason)) from exc


def run(args: list[str] | None = None) -> int:
    """Run one command line (default: the process's); the exit code."""
    # Arguments are UTF-8 whatever the locale says; other bytes stay what they are.
    words = [os.fsencode(word).decode(errors="surrogateescape") for word in sys.argv[1:]] if args is None else args
    try:
        code = app(args=words, prog_name="agentctl", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except _USAGE as exc:
        text = exc.format_message() if hasattr(exc, "format_message") else str(exc)
        typer.echo(f"agentctl: usage: {printable(text)} (see agentctl --help)", err=True)
        return 2
    except KeyboardInterrupt as exc:
        return interrupted(exc)
    except BrokenPipeError:
        silence()
        return PIPE_CLOSED
    except OSError as exc:
        silence()
        typer.echo(failure(exc, None), err=True)
        return exit_code(exc)


def main() -> None:
    """The ``agentctl`` command."""
    for name in ("trio", "anyio", "h2"):
        # None: not to be found. httpx takes these along where they are; one thread over HTTP/1.1 needs none of them.
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    sys.exit(run())
