"""The table behind a namespace: a trie of places, each with the members of its union; never changed, only replaced.

It calls no service.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from agentfs.service import FileService
from agentfs.types import ROOT, Bind, Path, join, split

_PLACES: Final = 256  # resolved paths that a table keeps, none longer than this


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
    places: dict[Path, Place] = field(default_factory=dict, init=False, repr=False, compare=False)


class Way(NamedTuple):
    """A member that may hold a path: mounted at the point *at*, where it is asked for *inner*, which begins with *top*.

    ``label`` tells this mount from all others.
    """

    at: Path
    member: Mount
    inner: Path
    top: str
    label: str


class Place(NamedTuple):
    """A path as a table resolves it: its last *name*, its own *node* if any, and the nearest union as *ways*."""

    name: str
    node: Node | None
    ways: tuple[Way, ...]


def place_of(root: Node, path: Path) -> Place:
    """*path* in the table *root*, which keeps what it was asked for: it never changes."""
    place = root.places.get(path)
    if place is None:
        place = _resolved(root, path)
        if len(root.places) >= _PLACES:
            root.places.clear()
        if len(path) <= _PLACES:
            root.places[path] = place
    return place


def _resolved(root: Node, path: Path) -> Place:
    node: Node | None = root
    parts, nearest, depth = parts_of(path), root.members, 0
    for i, part in enumerate(parts, 1):
        node = node.children.get(part) if node else None
        if node is not None and node.members:
            nearest, depth = node.members, i
    at, rest = Path("/".join(parts[:depth])), "/".join(parts[depth:])
    inners = [join(m.root, rest) for m in nearest]
    ways = [Way(at, m, p, p.partition("/")[0], f"{m.name}:{at}") for m, p in zip(nearest, inners, strict=True)]
    return Place(split(path)[1], node, tuple(ways))


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
