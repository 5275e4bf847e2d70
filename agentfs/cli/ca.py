"""``agentfs ca``: the state directory's own certificate authority: make it, issue with it, revoke, list.

What a certificate says is `agentfs.authority`'s; the files are `agentfs.cli.desk`'s; nothing here serves or connects.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentfs.cli import show
from agentfs.cli.options import ConfigFile, Given, Output, State
from agentfs.cli.show import say
from agentfs.state import StateDir

if TYPE_CHECKING:
    from agentfs.cli.desk import Desk

app = typer.Typer(help="The state directory's own certificate authority.", no_args_is_help=True, add_completion=False)
Name = Annotated[str, typer.Argument(metavar="NAME", help="What its files are called: NAME.pem and NAME.key.")]


def _desk(state: str | None, config: Path | None) -> Desk:
    from agentfs.cli.desk import Desk  # here: every other command works without what certificates need

    return Desk(StateDir(Given(config, state=state).load().config.state))


@app.command()
def init(state: State = None, config: ConfigFile = None) -> None:
    """Make the authority: ca.pem, ca.key and an empty crl.pem in STATE/ca; again is no harm."""
    desk = _desk(state, config)
    is_new = desk.init()
    say(f"{desk.top}: certificate authority, {'made now' if is_new else 'kept'}")


@app.command()
def issue(
    name: Name,
    agent: Annotated[str | None, typer.Option("--agent", metavar="ID", help="For a client that is this agent.")] = None,
    operator: Annotated[bool, typer.Option("--operator", help="For a client that is the operator.")] = False,
    server: Annotated[
        list[str] | None, typer.Option("--server", metavar="HOST", help="For a server reached as this; repeat.")
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="How long it is valid.")] = 365,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to write; default: STATE/ca.")] = None,
    state: State = None,
    config: ConfigFile = None,
) -> None:
    """Issue a certificate for exactly one of --agent, --operator, --server: NAME.pem and NAME.key."""
    cert, key = _desk(state, config).issue(name, agent, operator, server or [], days, out)
    say(f"{cert}: certificate")
    say(f"{key}: private key")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME|SERIAL", help="As listed; a name: all issued under it.")],
    state: State = None,
    config: ConfigFile = None,
) -> None:
    """Add a certificate to crl.pem: a running runtime refuses it from now on; again is no harm."""
    for serial, is_new in _desk(state, config).revoke(name):
        say(f"{serial}: {'revoked' if is_new else 'was revoked already'}")


@app.command("list")
def list_(state: State = None, config: ConfigFile = None, output: Output = None) -> None:
    """List what was issued, by name; of one name the newest last."""
    show.rows(_desk(state, config).rows(), output)
