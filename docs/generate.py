"""Writes ``docs/reference`` from the code: ``python docs/generate.py``; with ``--check`` it only says what is stale.

It holds no facts of its own: every sentence below a heading comes from a docstring, a table or a signature.
"""

from __future__ import annotations

import enum
import errno
import importlib
import inspect
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import typer
from typer.testing import CliRunner

import agentctl.cli
import agentfs.cli.command
from agentfs import config, limits, ports, service, services, types
from agentfs.engine import agent, context, effects, envelope, settings, trigger
from agentfs.engine.engine import Engine
from agentfs.errors import ROWS, Row
from agentfs.faces.http import openapi
from agentfs.providers.clock import SystemClock
from agentfs.providers.store.memory import MemoryStore
from agentfs.services.agents import Register
from agentfs.services.runtime import runtime
from agentfs.spaces import Mounts, Room
from agentfs.tree import Call, Ctl, Data, Dir, Entry, Errors, File, Graft, Info, Node, Queue, Stream, Tree

HERE = Path(__file__).parent / "reference"
WHO = {True: "operator", False: "agent, operator"}


def prose(text: str | None) -> str:
    """A docstring as Markdown."""
    return re.sub(r"``(.+?)``", r"`\1`", inspect.cleandoc(text or ""), flags=re.DOTALL)


def cell(text: object) -> str:
    """One cell of a table."""
    return prose(str(text)).replace("\n", " ").replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; nothing without rows."""
    lines = ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines]) + "\n" if lines else ""


def code(text: object) -> str:
    """*text* as inline code."""
    return f"`{text}`"


# -- services ----------------------------------------------------------------------------------------------------------


def files(node: Node, top: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Path, kind, who may write, and verbs of every file below *node*."""
    if isinstance(node, Graft):
        yield code(f"{top}/"), "tree", WHO[False], ""
        return
    if not isinstance(node, Dir):
        writer = WHO[node.operator] if node.is_writable else ""
        yield code(top), node.kind.value, writer, verbs(node) if isinstance(node, Ctl) else ""
        return
    children = [*node.entries, *([node.each] if node.each else [])]
    if not children:
        yield code(f"{top}/"), "dir", "", ""
    for child in children:
        yield from files(child, f"{top}/{child.name}".removeprefix("/"))


def verbs(node: Ctl) -> str:
    """The verbs with their arguments; those for the operator alone are marked."""
    mark = {True: " (operator)", False: ""}
    return ", ".join(code(f"{v} {a[2]}".strip()) + mark[v in node.operator_verbs] for v, a in node.arity.items())


def service_tables() -> dict[str, list[tuple[str, str, str, str]]]:
    """The files of every service, by the name of its module."""
    engine = Engine(MemoryStore(SystemClock()), SystemClock(), limits.Limits(), _no_program, lambda _: Tree())
    scope = services.Scope(engine, "demo", Errors(), Room(engine, Mounts(services.discover()), "demo"))
    default = settings.Settings(program=settings.ExecProgram(argv=["true"]))
    register = Register(engine, default, lambda _: None).table()
    top = {"agents": (register, "agents"), "runtime": (_root(runtime(engine, {})), "runtime")}
    for each in services.discover():
        top[each.name] = (_root(each.build(scope)), each.at)
    return {name: list(files(node, at)) for name, (node, at) in top.items()}


def _root(tree: object) -> Dir:
    root: Dir = tree._root  # type: ignore[attr-defined]  # the table itself: listing the tree shows no keyed entry
    return root


def _no_program(*_: object) -> Any:
    raise AssertionError("the reference runs no program")


def services_page() -> str:
    """The man page of every service."""
    tables, out = service_tables(), ["# Services\n\nThe files of an agent, then those of the runtime.\n"]
    names = [m.name for m in pkgutil.iter_modules(services.__path__) if m.name in tables]
    for name in sorted(names, key=lambda n: (n in ("agents", "runtime"), n)):
        text = prose(importlib.import_module(f"agentfs.services.{name}").__doc__).partition(": ")[2]
        out.append(f"## {name}\n\n{text[:1].upper()}{text[1:]}\n")
        out.append(table(("file", "kind", "who writes", "verbs"), tables[name]))
    return "\n".join(out)


# -- tables ------------------------------------------------------------------------------------------------------------


def errors_page() -> str:
    """The error table."""
    rows = ((", ".join(code(name) for name in names(row)), row.errno, row.status, row.text) for row in ROWS)
    intro = "# Errors\n\nA mount gives the errno, HTTP the status and a body `{errno, path, detail}` with its name.\n"
    return f"{intro}\n{table(('errno', 'number on Linux', 'HTTP status', 'text'), rows)}"


def names(row: Row) -> Sequence[str]:
    """The errno of *row* as HTTP bodies have it, then its other names."""
    return [row.name, *sorted(n for n in dir(errno) if getattr(errno, n) == row.errno and n != row.name)]


def options_page() -> str:
    """Options and limits."""
    meaning = dict(re.findall(r"^    (\w+): int = .*?# (.*)$", inspect.getsource(limits), re.MULTILINE))
    rows = [
        (code(o.name), code(o.env), shown(o.default), meaning.get(o.name.removeprefix("limits."), o.text))
        for o in config.OPTIONS.values()
    ]
    head = ("option", "environment", "default", "about")
    return "\n".join(
        [
            "# Options and limits\n\n" + prose(config.load.__doc__) + "\n",
            f"The file is TOML; an option with a dot is a key of that table. Flags: `--set NAME=VALUE`.\n\n"
            f"{table(head, [r for r in rows if 'limits.' not in r[0]])}",
            f"## Limits\n\n{prose(limits.Limits.__doc__)}\n\n{table(head, [r for r in rows if 'limits.' in r[0]])}",
        ]
    )


def shown(value: object) -> str:
    """A default as it would be written."""
    return "computed" if value is None else code(msgspec.json.encode(value).decode())


def http_page() -> str:
    """The OpenAPI document as tables."""
    document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(openapi.document()))
    out = [f"# HTTP\n\n{prose(document['info'].get('description', ''))}\n"]
    for path, item in document["paths"].items():
        out.append(f"## `{path}`\n")
        for method, operation in item.items():
            if method in ("get", "put", "post", "delete", "head", "options", "patch", "trace"):
                out.append(_operation(method.upper(), operation))
        for method, operation in item.get("x-methods", {}).items():
            out.append(_operation(method.upper(), operation))
    return "\n".join(out)


def _operation(method: str, operation: dict[str, Any]) -> str:
    text = prose(operation.get("description") or operation.get("summary"))
    named = [p for p in operation.get("parameters", []) if p["in"] != "path"]
    found = table(("takes", "in", "about"), ((code(p["name"]), p["in"], p.get("description", "")) for p in named))
    plain = {status: answer["description"] for status, answer in operation["responses"].items() if status != "default"}
    answers = "; ".join(f"{code(status)} {about}" for status, about in plain.items())
    return f"**{method}**: {text.rstrip('.')}. Answers {answers}.\n" + (f"\n{found}" if found else "")


# -- commands ----------------------------------------------------------------------------------------------------------


def commands_page(app: typer.Typer, name: str) -> str:
    """What ``--help`` says of *app* and of each of its commands."""
    app.rich_markup_mode = None  # plain text: no boxes, no colour, the same on every terminal

    def say(*words: str) -> str:
        shown = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*words, "--help"], prog_name=name)
        return f"```text\n{shown.output.rstrip()}\n```\n"

    group: Any = typer.main.get_command(app)
    found: list[tuple[str, ...]] = []
    for word, command in group.commands.items():
        if not command.hidden:
            found += [(word,), *((word, below) for below in getattr(command, "commands", {}))]
    return "\n".join([f"# {name}\n\n{say()}", *(f"## {name} {' '.join(w)}\n\n{say(*w)}" for w in found)])


# -- structs and classes -----------------------------------------------------------------------------------------------


def notes_of(kind: type) -> dict[str, str]:
    """The annotations of *kind*, those it inherits first, as they are written."""
    return {n: t for base in reversed(kind.__mro__) for n, t in vars(base).get("__annotations__", {}).items()}


def struct(kind: Any, level: str = "##") -> str:
    """A wire struct: its docstring and its fields."""
    info = kind.__struct_config__
    tag = f' `{{"{info.tag_field}": "{info.tag}"}}`' if info.tag else ""
    notes = notes_of(kind)
    rows = [(code(f.encode_name), code(notes[f.name]), _default(f)) for f in msgspec.structs.fields(kind)]
    return f"{level} {kind.__name__}{tag}\n\n{prose(kind.__doc__)}\n\n{table(('field', 'type', 'default'), rows)}"


def _default(field: Any) -> str:
    if field.required:
        return "required"
    if field.default is not msgspec.NODEFAULT:
        return shown_default(field.default)
    return shown_default(field.default_factory())


def shown_default(value: object) -> str:
    """A field's default as JSON."""
    return code(msgspec.json.encode(value).decode())


def programs_page() -> str:
    """What programs are given and may return, and the document that configures an agent."""
    kinds = typing.get_args(effects.AnyEffect)
    return "\n".join(
        [
            "# Programs\n\nAn exec program reads a trigger as JSON on stdin and prints effects, one JSON object a line.\n",  # noqa: E501
            *(struct(kind) for kind in (trigger.Trigger, envelope.Metadata, envelope.Envelope)),
            f"## Effects\n\n{prose(effects.__doc__)}\n",
            *(struct(kind, "###") for kind in kinds),
            f"## The document config\n\n{prose(settings.__doc__)}\n",
            *(struct(getattr(settings, name), "###") for name in _CONFIG),
        ]
    )


_CONFIG = ("Settings", "ExecProgram", "Sandbox", "Wanted", "InlineProgram", "LlmProgram", "Retry", "Overflow")
_CLASSES: dict[str, Sequence[Any]] = {
    "agentfs.engine.agent": (agent.Agent, context.AgentContext, context.Kv),
    "agentfs.service": (service.FileService, service.FileHandle),
    "agentfs.services": (services.Service, services.Scope),
    "agentfs.tree": (Tree, Dir, File, Queue, Ctl, Call, Stream, Data, Entry, Info),
    "agentfs.types": (types.Stat, types.Qid, types.Kind, types.Mode, types.Want, types.Principal, types.Record),
    "agentfs.ports": (ports.Store, ports.Clock, *typing.get_args(ports.Change), ports.Unit, ports.Committed),
}


def python_page() -> str:
    """The public classes, by module."""
    out = ["# Python interface\n"]
    for module, classes in _CLASSES.items():
        out.append(f"## {module}\n\n{prose(importlib.import_module(module).__doc__)}\n")
        out += ["\n".join(describe(kind)).rstrip() + "\n" for kind in classes]
    return "\n".join(out)


def describe(kind: Any) -> Iterator[str]:
    """A class: its docstring, its fields, its public methods."""
    yield f"### {kind.__name__}\n\n{prose(kind.__doc__)}\n"
    fields = [
        f"`{n}: {t}`" for n, t in notes_of(kind).items() if not n.startswith("_") and "ClassVar[Kind]" not in str(t)
    ]
    if issubclass(kind, enum.Enum):
        fields = [code(member.name) for member in kind]
    if fields:
        yield "Fields: " + ", ".join(fields) + ".\n"
    for name, member in vars(kind).items():
        is_method = inspect.isfunction(member) or isinstance(member, property)
        if is_method and not name.startswith("_") and member.__doc__:  # without one it does as what it overrides
            yield f"- `{_signature(name, member)}`: {' '.join(prose(member.__doc__).split())}"


def _signature(name: str, member: Any) -> str:
    if isinstance(member, property):
        return name
    lead = "async " if inspect.iscoroutinefunction(member) else ""
    text = str(inspect.signature(member)).replace("(self, ", "(").replace("(self)", "()")
    plain = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text).replace(repr(types.NO_WANT), "NO_WANT")
    return f"{lead}{name}{plain}"


PAGES: dict[str, Callable[[], str]] = {
    "services.md": services_page,
    "errors.md": errors_page,
    "options.md": options_page,
    "http.md": http_page,
    "agentctl.md": lambda: commands_page(agentctl.cli.app, "agentctl"),
    "agentfs.md": lambda: commands_page(agentfs.cli.command.app, "agentfs"),
    "programs.md": programs_page,
    "python.md": python_page,
}
MARK = "<!-- Generated by docs/generate.py: change the code, then run that. -->\n\n"


def main(words: Sequence[str]) -> int:
    """Write every page, or with ``--check`` name those that differ; 1 when there are any."""
    stale = []
    for name, page in PAGES.items():
        text, place = MARK + page().rstrip() + "\n", HERE / name
        if not place.exists() or place.read_text() != text:
            stale.append(name)
            if "--check" not in words:
                place.write_text(text)
    sys.stdout.writelines(f"{'stale' if '--check' in words else 'written'}: docs/reference/{name}\n" for name in stale)
    return 1 if stale and "--check" in words else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
