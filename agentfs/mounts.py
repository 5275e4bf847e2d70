"""The table behind a namespace: a trie of places, each with the members of its union; never changed, only replaced.

It resolves nothing and calls no service.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from agentfs.service import FileService
from agentfs.types import ROOT, Bind, Path, join


@dataclass(frozen=True, slots=True, eq=False)
class Mount:
    """One member of a union: *service*, called *name* in the script, of which the subtree *root* is seen.

    ``options``: the words behind it in the script, which mean something to whoever provides the service.
    """

    service: FileService
    root: Path
    name: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """A place in the trie; never changed, so that a fork is a reference."""

    members: tuple[Mount, ...] = ()
    children: Mapping[str, Node] = field(default_factory=dict)
    count: int = 0  # of members here and below


@dataclass(slots=True)
class Table:
    """The mount table that a namespace and everything attached to it share."""

    root: Node = field(default_factory=Node)
    # by name and options; may hold what is mounted no more
    names: dict[tuple[str, tuple[str, ...]], FileService] = field(default_factory=dict)


def parts_of(path: Path) -> list[str]:
    return path.split("/") if path else []


def placed(node: Node, parts: Sequence[str], members: tuple[Mount, ...]) -> Node:
    """*node* with the union *members* at *parts*; places that hold nothing are dropped."""
    if not parts:
        return replace(node, members=members, count=node.count - len(node.members) + len(members))
    before = node.children.get(parts[0], Node())
    child = placed(before, parts[1:], members)
    children = {**node.children, parts[0]: child}
    if not child.count:
        del children[parts[0]]
    return replace(node, children=children, count=node.count - before.count + child.count)


def walk(node: Node, at: Path = ROOT) -> Iterator[tuple[Path, tuple[Mount, ...]]]:
    """Every place that has members, with its path below *at*, parents first."""
    if node.members:
        yield at, node.members
    for name in sorted(node.children):
        yield from walk(node.children[name], join(at, name))


def flag_of(words: Sequence[str]) -> tuple[Bind, tuple[str, ...]]:
    """The place in the union, and the options behind it."""
    if words and words[0] in ("before", "after", "replace"):
        return Bind(words[0]), tuple(words[1:])
    return Bind.REPLACE, tuple(words)
