"""What every command shares: the connection and output options, the session, and failures as one line and a code.

It declares commands to typer and holds none.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import TracebackType
from typing import Annotated, Any, Self

import typer

from agentctl.client import Client
from agentctl.discover import Flags, Target, discover, elsewhere
from agentctl.output import PIPE_CLOSED, Format, Output, exit_code, failure, interrupted, silence
from agentctl.signing import Signing

PANEL = "Connection and output"
State = Annotated[
    str | None,
    typer.Option("--state", metavar="DIR", help="State directory of the runtime.", rich_help_panel=PANEL),
]
Url = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="Where the runtime listens.", rich_help_panel=PANEL)
]
Token = Annotated[str | None, typer.Option("--token", metavar="TOKEN", help="Bearer token.", rich_help_panel=PANEL)]
Ca = Annotated[
    str | None, typer.Option("--ca", metavar="FILE", help="PEM authority to believe.", rich_help_panel=PANEL)
]
Cert = Annotated[
    str | None, typer.Option("--cert", metavar="FILE", help="PEM certificate to show.", rich_help_panel=PANEL)
]
Key = Annotated[str | None, typer.Option("--key", metavar="FILE", help="Its private key.", rich_help_panel=PANEL)]
Form = Annotated[
    Format | None,
    typer.Option("--output", "-o", help="Default: table on a terminal, else json.", rich_help_panel=PANEL),
]
Signer = Annotated[
    str | None,
    typer.Option("--as", metavar="AGENT", help="Sign as this agent, to the runtime at --url.", rich_help_panel=PANEL),
]
SHARED = {
    "state": State, "url": Url, "token": Token, "output": Form, "ca": Ca, "cert": Cert, "key": Key, "signer": Signer,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """The shared options as given before or after the command's name."""

    state: str | None = None
    url: str | None = None
    token: str | None = None
    output: Format | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    signer: str | None = None

    def over(self, lower: Options) -> Options:
        """These, and *lower*'s where these say nothing."""
        pairs = {f.name: (getattr(self, f.name), getattr(lower, f.name)) for f in fields(self)}
        return Options(**{name: low if high is None else high for name, (high, low) in pairs.items()})


@dataclass
class Session:
    """One run of one command: where it prints, and the runtime, found and connected when first asked for."""

    options: Options
    out: Output = field(init=False)

    def __post_init__(self) -> None:
        self.out = Output(self.options.output)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for name in ("client", "home"):
            if name in self.__dict__:
                self.__dict__[name].close()

    @property
    def flags(self) -> Flags:
        """What the command line said of the runtime."""
        given = self.options
        return Flags(given.url, given.token, given.state, given.ca, given.cert, given.key)

    @cached_property
    def target(self) -> Target:
        """The runtime this run speaks to. ENOTCONN, EACCES."""
        return discover(self.flags)

    @cached_property
    def client(self) -> Client:
        """The client; it connects with its first request. With ``--as`` EINVAL without a URL to send to."""
        if self.options.signer is None:
            found = self.target
            return Client(found.url, found.token, trust=found.trust, socket=found.socket)
        there = elsewhere(self.flags)
        return Client(there.url, "", trust=there.trust, auth=Signing(self.home.call, self.options.signer))

    @cached_property
    def home(self) -> Client:
        """The client of the runtime of the agent that signs: where it would be found without ``--url`` and its CA."""
        target = discover(replace(self.flags, url=None, ca=None, cert=None, key=None))
        return Client(target.url, target.token, trust=target.trust, socket=target.socket)

    def note(self, text: str) -> None:
        """One line on standard error."""
        typer.echo(f"agentctl: {text}", err=True)


def add(app: typer.Typer, name: str, run: Callable[..., None], **settings: Any) -> None:
    """Declare *run*, whose first parameter is the `Session`, as the command *name* with the shared options."""
    app.command(name, **settings)(_shaped(run))


def group(app: typer.Typer, name: str, run: Callable[..., None]) -> typer.Typer:
    """Declare *run* as the command *name* that may have commands below it, which are added to what is returned."""
    below = typer.Typer(invoke_without_command=True, add_completion=False)
    below.callback()(_shaped(run))
    app.add_typer(below, name=name)
    return below


def _shaped(run: Callable[..., None]) -> Callable[..., None]:
    """*run* as typer wants it: its own options, then the shared ones that are not called the same."""
    own = list(inspect.signature(run, eval_str=True).parameters.values())[1:]
    kinds = {key: kind for key, kind in SHARED.items() if key not in {parameter.name for parameter in own}}

    def command(ctx: typer.Context, **given: Any) -> None:
        options = Options(**{key: given.pop(key) for key in kinds}).over(ctx.obj or Options())
        if ctx.invoked_subcommand is not None:
            ctx.obj = options  # the command below does it all
            return
        with _guarded(options.output), Session(options) as session:
            run(session, **given)

    shared = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for key, kind in kinds.items()
    ]
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    parameters = [context, *own, *shared]
    # typer reads a command's options from its signature, which here is made of two halves.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = run.__doc__
    return command


@contextlib.contextmanager
def _guarded(form: Format | None) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as exc:
        raise typer.Exit(interrupted(exc)) from None
    except BrokenPipeError:
        silence()
        raise typer.Exit(PIPE_CLOSED) from None
    except OSError as exc:
        typer.echo(failure(exc, form), err=True)
        raise typer.Exit(exit_code(exc)) from None
