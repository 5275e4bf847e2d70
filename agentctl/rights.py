"""The commands about rights: capability tokens, approvals and identities, each a few file operations.

What a token allows and who may approve is the runtime's to say.
"""

from __future__ import annotations

import errno
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import msgspec
import typer

from agentctl.command import Session
from agentctl.discover import find_token
from agentfs.capability import is_id, parse_allow
from agentfs.capability import narrow as narrowed
from agentfs.errors import error
from agentfs.types import Caveat, agent_id

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="PATH:OP[+OP]", help="OP: read, write, manage. Repeatable; default: everything."),
]
Ttl = Annotated[str | None, typer.Option("--ttl", metavar="TIME", help="Until it expires: 90s, 30m, 1h, 7d.")]
Budget = Annotated[int | None, typer.Option("--budget", metavar="USD", help="Spends at most so many micro-USD.")]
Depth = Annotated[int | None, typer.Option("--depth", help="How often it may be handed on; 0: not at all.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The agent's id.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="As listed.")]


def token(session: Session) -> None:
    """Print the token in use, for curl and other clients; with --output json also the URL."""
    if session.out.is_json:
        session.out.value({"url": session.target.url, "token": session.target.token, "origin": session.target.origin})
    else:
        session.out.raw(find_token(session.flags).encode() + b"\n")


def issue(
    session: Session,
    allow: Allow = None,
    ttl: Ttl = None,
    budget: Budget = None,
    depth: Depth = None,
    agent: Annotated[str | None, typer.Option("--agent", help="With this agent's rights, not the operator's.")] = None,
) -> None:
    """Make a token with some of the rights of the one in use; prints it, this once."""
    wish = {"allow": allow, "ttl_s": _seconds(ttl), "budget_usd": budget, "depth": depth}
    answer = session.client.call(f"{_desk(session, agent)}/new", msgspec.json.encode(wish))
    made = msgspec.json.decode(answer, type=dict[str, Any])
    if session.out.is_json:
        session.out.value(made)
    else:
        session.out.raw(f"{made['token']}\n".encode())


def narrow(session: Session, allow: Allow = None, ttl: Ttl = None, budget: Budget = None, depth: Depth = None) -> None:
    """Narrow the token in use without asking the runtime; prints the result. It ends with the token it is made from."""
    seconds = _seconds(ttl)
    expires = None if seconds is None else time.time_ns() + seconds * 1_000_000_000
    allowed = parse_allow(allow) if allow is not None else None
    made, link = narrowed(find_token(session.flags), Caveat("", allowed, expires, budget, depth))
    if session.out.is_json:
        session.out.value({"id": link, "token": made})
    else:
        session.out.raw(f"{made}\n".encode())


def list_tokens(
    session: Session, agent: Annotated[str | None, typer.Option("--agent", help="Those of this agent.")] = None
) -> None:
    """List the tokens that were made, with what they allow and what was spent; never the tokens themselves."""
    columns = ("id", "allow", "expires_at", "budget_usd", "spent_usd", "depth", "revoked_at")
    session.out.rows(_documents(session, _desk(session, agent), ""), columns)


def revoke(
    session: Session,
    ident: Id,
    agent: Annotated[str | None, typer.Option("--agent", help="One of this agent's.")] = None,
) -> None:
    """End a token, every one made from it, and the files they hold open."""
    if not is_id(ident):
        raise error(errno.EINVAL, ident, "id: want the 24 digits of a token's id, not the token")
    session.out.done(session.client.call(f"{_desk(session, agent)}/ctl", f"revoke {ident}\n".encode()))


def _desk(session: Session, agent: str | None) -> str:
    """Where tokens are made: the agent's own directory, the operator's, or that of whoever's token is in use."""
    if agent is not None:
        return f"views/{agent_id(agent)}/tokens"
    try:
        session.client.stat("runtime/tokens")
    except FileNotFoundError:
        return "tokens"
    return "runtime/tokens"


def approvals(session: Session) -> None:
    """List what waits for approval, of every agent."""
    list_approvals(session)


def list_approvals(
    session: Session,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One agent's; default: of every agent.")] = None,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Those that are decided or expired too.")] = False,
) -> None:
    """List what waits for approval."""
    names = [agent_id(name)] if name else [entry.name for entry in session.client.ls("agents") if entry.is_dir]
    found = (
        {"agent": agent, **row}
        for agent in names
        for row in _documents(session, f"agents/{agent}/approvals", "/status")
        if everything or row["state"] == "pending"
    )
    session.out.rows(found, ("agent", "id", "kind", "state", "cost_usd", "path", "source", "at"))


def allow(session: Session, name: Name, ident: Id) -> None:
    """Let it through, once: a use that waits goes on now, a write that was refused when it is tried again."""
    session.out.done(session.client.call(f"agents/{agent_id(name)}/approvals/{_plain(ident)}/ctl", b"allow\n"))


def deny(session: Session, name: Name, ident: Id) -> None:
    """Refuse it: a use that waits fails now, a write that was refused is so until the request expires."""
    session.out.done(session.client.call(f"agents/{agent_id(name)}/approvals/{_plain(ident)}/ctl", b"deny\n"))


def identity(session: Session, name: Name) -> None:
    """Show an agent's public key, in hex and as npub, and the keys it had before."""
    top = f"agents/{agent_id(name)}/identity"
    found = {part: session.client.read(f"{top}/{part}").decode().strip() for part in ("pubkey", "npub")}
    lines = session.client.read(f"{top}/history").splitlines()
    session.out.value({"agent": name, **found, "history": [msgspec.json.decode(line) for line in lines]})


def rotate(session: Session, name: Name) -> None:
    """Have an agent take a new key; the old one signs the record of it and verifies for a while."""
    session.out.done(session.client.call(f"agents/{agent_id(name)}/identity/ctl", b"rotate\n"))


def recover(session: Session) -> None:
    """Make the seed of all keys again from its words on standard input: `agentfs keys recover`, on this machine."""
    state = [f"--state={session.options.state}"] if session.options.state else []
    done = subprocess.run([sys.executable, "-m", "agentfs.cli", "keys", "recover", *state], check=False)
    raise typer.Exit(done.returncode)


def identities(session: Session) -> None:
    """List the public keys of all agents."""
    names = [entry.name for entry in session.client.ls("agents") if entry.is_dir]
    rows = ({"agent": n, "npub": session.client.read(f"agents/{n}/identity/npub").decode().strip()} for n in names)
    session.out.rows(rows, ("agent", "npub"))


def _documents(session: Session, top: str, file: str) -> Iterator[dict[str, Any]]:
    """The JSON documents of a directory: of its files, or *file* of each directory in it."""
    for entry in session.client.ls(top):
        if entry.is_dir == bool(file) and entry.kind in ("file", "dir"):
            yield msgspec.json.decode(session.client.read(f"{top}/{entry.name}{file}"), type=dict[str, Any])


def _plain(ident: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{32}", ident):
        raise error(errno.EINVAL, ident, "id: want the 32 digits of a request")
    return ident


def _seconds(text: str | None) -> int | None:
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if found is None:
        raise error(errno.EINVAL, text, "ttl: want a number and s, m, h or d, e.g. 30m")
    return int(found[1]) * _UNITS[found[2] or "s"]


TOKEN_COMMANDS: dict[str, Callable[..., None]] = {
    "issue": issue,
    "narrow": narrow,
    "list": list_tokens,
    "revoke": revoke,
}
APPROVAL_COMMANDS: dict[str, Callable[..., None]] = {"list": list_approvals, "allow": allow, "deny": deny}
IDENTITY_COMMANDS: dict[str, Callable[..., None]] = {"show": identity, "rotate": rotate, "recover": recover}
