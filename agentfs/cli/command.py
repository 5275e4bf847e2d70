"""The commands of ``agentfs`` and their exit codes.

What a command does is in the module beside this one that is named after it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from agentfs.cli import ca, keys, mounts, phrase, process, remote, show
from agentfs.cli.options import (
    ConfigFile,
    Fuse,
    FuseBinding,
    Given,
    Link,
    Listen,
    Mount,
    Output,
    Settings,
    State,
    Store,
    TlsCert,
    TlsClientCa,
    TlsKey,
    Token,
    Url,
)
from agentfs.cli.show import note, say
from agentfs.cli.start import Foreground, Start, Started, make_agent, ready_place, start, unready
from agentfs.cli.stop import stop
from agentfs.client import Trust
from agentfs.config import OPTIONS, Config
from agentfs.state import StateDir

NOT_RUNNING, NOT_READY, COULD_NOT = 3, 1, 2
app = typer.Typer(
    name="agentfs",
    help="Make, start, stop and check a runtime on this machine. Exit codes: 0 done, 1 failed, 2 usage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(ca.app, name="ca")


def main() -> None:
    """The ``agentfs`` command: an `OSError` becomes one line and exit code 1."""
    try:
        phrase.hide()
        app()
    except OSError as exc:
        with contextlib.suppress(typer.Exit):
            show.fail(exc)
        sys.exit(1)


@app.command()
def init(state: State = None) -> None:
    """Make the state directory and the operator's token; again is no harm."""
    home = StateDir(Given(state=state).load().config.state)
    is_new = home.prepare()
    say(f"{home.path}: state directory")
    say(f"{home.token}: operator's token, {'made now' if is_new else 'kept'}")


@app.command()
def serve(
    state: State = None, mount: Mount = None, listen: Listen = None, fuse: Fuse = None, store: Store = None,
    tls_cert: TlsCert = None, tls_key: TlsKey = None, tls_client_ca: TlsClientCa = None,
    config: ConfigFile = None, settings: Settings = None, fuse_binding: FuseBinding = None,
) -> None:  # fmt: skip
    """Run the runtime in the foreground until SIGTERM or SIGINT."""
    more = {"tls_cert": tls_cert, "tls_key": tls_key, "tls_client_ca": tls_client_ca, "fuse_binding": fuse_binding}
    given = Given(config, settings, state=state, mount=mount, listen=listen, fuse=fuse, store=store, **more)
    chosen = given.load().config
    home = StateDir(chosen.state)
    home.prepare()
    process.hold(home.lock)
    if chosen.mount is not None:
        ready_place(chosen.mount, note)
    _put_own_commands_first()
    try:
        _run(chosen)
    finally:
        home.forget(os.getpid())


@app.command("serve-token", hidden=True)
def serve_token(
    url: Annotated[str, typer.Option("--url")],
    mount: Annotated[Path, typer.Option("--mount")],
    fuse_binding: Annotated[str, typer.Option("--fuse-binding")] = "auto",
    ca: Annotated[Path | None, typer.Option("--ca")] = None,
    cert: Annotated[Path | None, typer.Option("--cert")] = None,
    key: Annotated[Path | None, typer.Option("--key")] = None,
) -> None:
    """Serve what the token on standard input opens at a URL."""
    from agentfs.cli.opened import serve  # here: no other command waits for what a client needs

    serve(url, mount, Trust(ca, cert, key), fuse_binding)


def _run(config: Config) -> None:
    gc.disable()  # all that is imported stays: looking for garbage in it takes a tenth of the time, now and later
    import trio

    from agentfs.runtime import run  # here, so that every other command works without what a runtime needs

    gc.freeze()
    gc.enable()
    trio.run(run, config, phrase.taken())


def _put_own_commands_first() -> None:
    """So that ``python3`` and ``agentctl`` of an exec program are those this runtime is installed with."""
    own = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([own, os.environ.get("PATH", os.defpath)])


@app.command("mount")
def mount_command(
    state: State = None, mount: Mount = None, listen: Listen = None, fuse: Fuse = None, store: Store = None,
    config: ConfigFile = None, settings: Settings = None, link: Link = None, token: Token = None, url: Url = None,
    tls_cert: TlsCert = None, tls_key: TlsKey = None, tls_client_ca: TlsClientCa = None,
    fuse_binding: FuseBinding = None,
    agent: Annotated[str | None, typer.Option("--agent", help="Create this agent if it is absent.")] = None,
    wait: Annotated[float, typer.Option("--wait", help="Seconds until it must be ready.")] = 60.0,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay until the runtime or mount ends.")] = False,
) -> None:  # fmt: skip
    """Start a runtime and return when its mount and HTTP answer; one that runs already will do.

    With --token start none: mount what that token opens on one that runs, here or at --url.
    """
    tls = {"tls_cert": tls_cert, "tls_key": tls_key, "tls_client_ca": tls_client_ca}
    flags = tls | {"fuse_binding": fuse_binding}
    given = Given(config, settings, state=state, mount=mount, listen=listen, fuse=fuse, store=store, **flags)
    opened = remote.wanted(url, token, os.environ)
    with Foreground() if foreground else contextlib.nullcontext() as front:
        if opened is not None:
            others = {"listen": listen, "store": store, "link": link, "agent": agent, **tls}
            _share(remote.shared(url, opened, given.load().config, wait, front, **others))
        else:
            _start(Start(given.load().config, given.words(), wait, front), link, agent)


def _share(share: remote.Share) -> None:
    child = remote.start(share, note)
    say(f"mounted on {share.place}")
    if share.foreground:
        code = child.wait()
        mounts.clear(share.place)
        raise typer.Exit(code if code >= 0 else 128 - code)


def _start(plan: Start, link: Path | None, agent: str | None) -> None:
    started = start(plan, note)
    if agent and make_agent(plan.state, started.running, agent):
        say(f"created the agent {agent}")
    _introduce(plan, started, link)
    if plan.foreground and started.child:
        code = started.child.wait()
        stop(plan.config, say, link)
        raise typer.Exit(code if code >= 0 else 128 - code)


def _introduce(plan: Start, started: Started, link: Path | None) -> None:
    running, place = started.running, plan.config.mount
    say(f"{'started' if started.child else 'already running'}: process {running.pid}, {running.url}, "
        f"state {plan.config.state}")  # fmt: skip
    if place is None:
        return
    say(f"mounted on {place}")
    if link is not None:
        if mounts.link(link, place):
            say(f"{link} links to it")
        else:
            note(f"{link} is not a symbolic link and was left alone; use {place}")


@app.command()
def umount(
    state: State = None, mount: Mount = None, config: ConfigFile = None, settings: Settings = None, link: Link = None,
) -> None:  # fmt: skip
    """Stop the runtime of this state directory and take away what it left; again is no harm.

    Where --token mounted, only that mount is taken off, and no runtime is stopped.
    """
    chosen = Given(config, settings, state=state, mount=mount).load().config
    if chosen.mount is None or not remote.stop(chosen.mount, say):
        stop(chosen, say, link)


@app.command()
def status(
    state: State = None, config: ConfigFile = None, settings: Settings = None, output: Output = None,
    wait: Annotated[float, typer.Option("--wait", help="Seconds to wait until it is ready.")] = 0.0,
) -> None:  # fmt: skip
    """Whether a runtime runs and answers. Exit codes: 0 ready, 1 running but not ready, 3 not running."""
    home = StateDir(Given(config, settings, state=state).load().config.state)
    deadline = time.monotonic() + wait
    code, about = _look(home)
    while code and time.monotonic() < deadline:
        time.sleep(0.1)
        code, about = _look(home)
    show.fields(about, output)
    raise typer.Exit(code)


def _look(home: StateDir) -> tuple[int, dict[str, object]]:
    pid = process.holder(home.lock)
    about: dict[str, object] = {"state": str(home.path), "is_running": pid is not None, "pid": pid}
    about |= {"url": None, "mount": None, "version": None, "is_ready": False, "missing": "runtime"}
    running = home.running()
    if pid is None:
        return NOT_RUNNING, about
    if running is None or running.pid != pid:
        return NOT_READY, about | {"missing": "runtime.json"}
    missing = unready(running, home)
    about |= {"url": running.url, "mount": running.mount, "version": running.version}
    return (NOT_READY if missing else 0), about | {"is_ready": not missing, "missing": missing or None}


@app.command()
def fsck(
    state: State = None,
    store: Annotated[Path | None, typer.Option("--store", metavar="FILE", help="Instead of STATE/agentfs.db.")] = None,
    config: ConfigFile = None,
) -> None:
    """Check a store that no runtime holds. Exit codes: 0 sound, 1 faults (one a line), 2 could not check."""
    from agentfs.cli.fsck import faults

    try:
        file = store or StateDir(Given(config, state=state).load().config.state).store
        found = faults(file)
    except OSError as exc:
        show.fail(exc, COULD_NOT)
    for fault in found:
        say(fault)
    if found:
        raise typer.Exit(1)
    say(f"{file}: sound")


seeds = typer.Typer(help="The seed of all agents' keys: words, and recovery from them.", no_args_is_help=True)
app.add_typer(seeds, name="keys")


@seeds.command("new")
def keys_new(state: State = None, config: ConfigFile = None) -> None:
    """Make the seed of all keys and print its 24 words, this once; write them down."""
    keys.new(Given(config, state=state).load().config, phrase.taken(), say)


@seeds.command("recover")
def keys_recover(state: State = None, config: ConfigFile = None) -> None:
    """Make the seed anew from the words on standard input: every agent has its keys again."""
    keys.recover(Given(config, state=state).load().config, phrase.taken())
    say("the keys are those of the words")


@seeds.command("import")
def keys_import(
    agent: Annotated[str, typer.Argument(metavar="AGENT")], state: State = None, config: ConfigFile = None,
) -> None:  # fmt: skip
    """Give AGENT the key on standard input, an nsec or 64 hex digits; the runtime gets it sealed, and must run."""
    pubkey = keys.adopt(Given(config, state=state).load().config, phrase.taken(), agent)
    say(f"{agent} has the key {pubkey}")


@app.command("config")
def config_command(
    state: State = None, mount: Mount = None, listen: Listen = None, fuse: Fuse = None, store: Store = None,
    config: ConfigFile = None, settings: Settings = None, output: Output = None,
    effective: Annotated[bool, typer.Option("--effective", help="The values in force, and where from.")] = False,
) -> None:  # fmt: skip
    """List the options with their defaults, or the values in force with their origins."""
    if effective:
        given = Given(config, settings, state=state, mount=mount, listen=listen, fuse=fuse, store=store)
        items = given.load().items()
        show.rows(({"name": name, "value": value, "origin": origin} for name, value, origin in items), output)
    else:
        options = OPTIONS.values()
        show.rows(({"name": o.name, "default": o.default, "env": o.env, "about": o.text} for o in options), output)
