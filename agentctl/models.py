"""The commands about models: one job run and shown, what was spent, which jobs there are, and prices.

An agent's account pays, so each names the agent; what may be asked is the runtime's to say.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import msgspec
import typer

from agentctl.chat import Name, plain
from agentctl.command import Session
from agentctl.output import parse
from agentfs.errors import error
from agentfs.types import agent_id

PRICES = "runtime/compute/prices"


def compute(session: Session) -> None:
    """Show what models cost, in micro-USD for 1000 tokens and for a request."""
    session.out.value(msgspec.json.decode(session.client.read(PRICES)))


def run(
    session: Session,
    name: Name,
    text: Annotated[str | None, typer.Argument(metavar="TEXT|-", help="Default or -: standard input.")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="MODEL or PROVIDER/MODEL; default: any.")] = "",
    is_stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it comes.")] = False,
    most: Annotated[int | None, typer.Option("--max-cost", metavar="USD", help="At most so many micro-USD.")] = None,
    key: Annotated[str, typer.Option("--idempotency-key", metavar="KEY", help="The same key is the same job.")] = "",
) -> None:
    """Ask a model, on the account of an agent; prints the answer, or with --output json the whole response."""
    home = f"agents/{agent_id(name)}"
    said = [{"role": "user", "content": text if text is not None and text != "-" else _stdin()}]
    request: dict[str, Any] = {"model": model, "input": {"messages": said}, "stream": is_stream}
    request |= {"max_cost_usd": most} if most is not None else {}
    request |= {"idempotency_key": key} if key else {}
    made = msgspec.json.decode(session.client.call(f"{home}/compute/new", _encoded(request)), type=dict[str, Any])
    is_shown = is_stream and not session.out.is_json
    for _, line in session.client.watch(f"{home}/{made['stream_path']}", "0"):
        chunk = parse(line)
        words = chunk.get("delta") if isinstance(chunk, dict) else None
        if is_shown and isinstance(words, str):
            session.out.raw(plain(words).encode())
    result = msgspec.json.decode(session.client.read(f"{home}/{made['result_path']}"), type=dict[str, Any])
    if session.out.is_json:
        session.out.value(result)
    else:
        session.out.raw(("" if is_shown else plain(_words(result["output"]))).encode() + b"\n")


def usage(session: Session, name: Name) -> None:
    """Show what an agent reserved and spent on models, and what is left, in micro-USD."""
    found = msgspec.json.decode(session.client.read(f"agents/{agent_id(name)}/compute/usage"), type=dict[str, Any])
    if session.out.is_json:
        session.out.value(found)
        return
    columns = ("account", "period", "limit_usd", "reserved_usd", "spent_usd", "remaining_usd")
    session.out.rows(({"account": account, **sums} for account, sums in found.items()), columns)


def jobs(session: Session, name: Name) -> None:
    """List an agent's jobs, in the order of their ids."""
    columns = ("job_id", "status", "provider_id", "model", "cost_usd", "at", "error")
    session.out.rows(_statuses(session, f"agents/{agent_id(name)}/compute/jobs"), columns)


def _statuses(session: Session, top: str) -> Iterator[dict[str, Any]]:
    for entry in session.client.ls(top):
        try:
            yield msgspec.json.decode(session.client.read(f"{top}/{entry.name}/status"), type=dict[str, Any])
        except FileNotFoundError:
            continue  # its time was over since it was listed


def _words(output: Any) -> str:
    content = output.get("content", output.get("text")) if isinstance(output, dict) else None
    return content if isinstance(content, str) else msgspec.json.encode(output).decode()


def _encoded(request: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(request)
    except UnicodeEncodeError as exc:
        raise error(errno.EILSEQ, "", "the text") from exc


def _stdin() -> str:
    if sys.stdin is None:
        raise error(errno.EBADF, "standard input")
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as exc:
        raise error(errno.EILSEQ, "standard input", str(exc.reason)) from exc


COMMANDS: dict[str, Callable[..., None]] = {"run": run, "usage": usage, "jobs": jobs}
