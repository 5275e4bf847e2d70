"""The namespace: against a plain model of a mount table, and each promise by itself."""

from __future__ import annotations

import errno
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from dictfs import DictService
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agentfs.errors import error
from agentfs.namespace import Namespace, Resolve
from agentfs.service import FileService
from agentfs.types import OPERATOR, ROOT, Bind, Mode, Path, Principal, Stat, Want, join, split
from agentfs.views import ReadOnly

T = TypeVar("T")
NAMES = ("a", "b", "c")
UNIVERSE = [Path("/".join(p)) for p in [(), *((x,) for x in NAMES), *((x, y) for x in NAMES for y in NAMES)]]
UNIVERSE += [Path(f"{p}/{x}") for p in UNIVERSE[4:] for x in NAMES]
PATHS = st.sampled_from(UNIVERSE)
GONE = {errno.ENOENT, errno.ENOTDIR}
Table = dict[Path, list[tuple[int, Path]]]


def run(call: Coroutine[Any, Any, T]) -> T:
    """Services of this test never wait, so a call ends in its first step."""
    try:
        call.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    raise AssertionError("waited")


def code(call: Coroutine[Any, Any, object]) -> int:
    try:
        run(call)
    except OSError as exc:
        return exc.errno or -1
    return 0


def names(space: Namespace, path: str = "", limit: int = 1000) -> list[str]:
    """Listed in pages of *limit* until an empty one."""
    found: list[str] = []
    while page := run(space.list(Path(path), found[-1] if found else "", limit)):
        assert len(page) <= limit
        found += [entry.name for entry in page]
    return found


def read(space: Namespace, path: str) -> bytes:
    return run(run(space.open(Path(path), Mode.READ)).read(100, 0))


def named_services(services: dict[str, DictService]) -> Resolve:
    """What a script may mount: these, without options."""

    def resolve(name: str, options: tuple[str, ...]) -> FileService:
        if name not in services:
            raise error(errno.ENOENT, detail=f"no service {name!r}")
        if options:
            raise error(errno.EINVAL, detail=f"flag {options[0]!r}")
        return services[name]

    return resolve


class Model(RuleBasedStateMachine):
    """Namespaces and their forks beside plain dicts of ordered members; the files themselves are shared."""

    def __init__(self) -> None:
        super().__init__()
        seeds = ({"a/b": b"0 a/b", "c": b"0 c"}, {"a": b"1 a", "b/c/a": b"1 bca"}, {"a/b/c": b"2 abc", "b": b"2 b"})
        self.services = [DictService(dict(seed), page=i) for i, seed in enumerate(seeds)]
        self.services[1].writable = False
        self.worlds: list[tuple[Namespace, Table]] = [(Namespace(), {})]

    # -- the model -------------------------------------------------------------------------------------------------

    def members(self, table: Table, path: Path) -> list[tuple[int, Path]]:
        at, rest = path, ROOT
        while at not in table and at != ROOT:
            at, name = split(at)
            rest = join(Path(name), rest)
        return [(i, join(root, rest)) for i, root in table.get(at, [])]

    def shown(self, table: Table, path: Path) -> bytes | str:
        """The bytes of a file, or ``dir``, or ``gone``; a point beneath which something is mounted is a directory."""
        beneath = any(path == ROOT or at.startswith(f"{path}/") for at in table if at != path)
        is_point = path == ROOT or path in table or beneath
        if not is_point and self.shown(table, split(path)[0]) != "dir":
            return "gone"
        for i, inner in self.members(table, path):
            files = self.services[i].files
            if inner in files:
                data = files[inner]
                return "dir" if data is None or beneath else data
        return "dir" if is_point else "gone"

    def listed(self, table: Table, path: Path) -> set[str]:
        tops = [(self.services[i].files, p) for i, p in self.members(table, path)]
        found = {split(f)[1] for files, p in tops if files.get(p, b"") is None
                 for f in files if f != ROOT and split(f)[0] == p}  # fmt: skip
        start = f"{path}/" if path else ""
        return found | {at[len(start) :].split("/")[0] for at in table if at != path and at.startswith(start)}

    # -- changing the table ----------------------------------------------------------------------------------------

    def put(self, table: Table, at: Path, members: list[tuple[int, Path]], flag: Bind) -> None:
        here = table.get(at, [])
        table[at] = {Bind.REPLACE: members, Bind.BEFORE: members + here, Bind.AFTER: here + members}[flag]

    @rule(w=st.integers(0, 9), i=st.integers(0, 2), at=PATHS, flag=st.sampled_from(Bind))
    def mount(self, w: int, i: int, at: Path, flag: Bind) -> None:
        space, table = self.worlds[w % len(self.worlds)]
        if len(self.members(table, at)) < 6:
            space.mount(self.services[i], at, flag, name=f"s{i}")
            self.put(table, at, [(i, ROOT)], flag)

    @rule(w=st.integers(0, 9), new=PATHS, old=PATHS, flag=st.sampled_from(Bind))
    def bind(self, w: int, new: Path, old: Path, flag: Bind) -> None:
        space, table = self.worlds[w % len(self.worlds)]
        found = self.members(table, new)
        beneath = {at: ms for at, ms in table.items() if at != new and (new == ROOT or at.startswith(f"{new}/"))}
        if len(table) > 12 or len(found) > 3:
            return
        if not found and not beneath and new != ROOT:
            with pytest.raises(FileNotFoundError):
                space.bind(new, old, flag)
            return
        space.bind(new, old, flag)
        if found or flag is Bind.REPLACE:
            self.put(table, old, found, flag)
        if not table.get(old, True):
            del table[old]
        for at, members in beneath.items():
            to = join(old, at[len(new) + 1 :] if new else at)
            if flag is Bind.REPLACE or to not in table:
                table[Path(to)] = list(members)

    @rule(w=st.integers(0, 9), at=PATHS)
    def unmount(self, w: int, at: Path) -> None:
        space, table = self.worlds[w % len(self.worlds)]
        if at in table:
            space.unmount(at)
            del table[at]
        else:
            with pytest.raises(OSError, match="nothing is mounted"):
                space.unmount(at)

    @rule(w=st.integers(0, 9))
    def fork(self, w: int) -> None:
        space, table = self.worlds[w % len(self.worlds)]
        if len(self.worlds) < 3:
            self.worlds.append((space.fork(), {at: list(ms) for at, ms in table.items()}))

    # -- changing files --------------------------------------------------------------------------------------------

    @rule(w=st.integers(0, 9), path=PATHS, is_dir=st.booleans())
    def create(self, w: int, path: Path, is_dir: bool) -> None:
        space, table = self.worlds[w % len(self.worlds)]
        before, top = self.shown(table, path), self.shown(table, split(path)[0])
        members = self.members(table, path)
        fits = [(s.files, p) for i, p in members if (s := self.services[i]).writable]
        fits = [(files, p) for files, p in fits if p != ROOT and files.get(split(p)[0], b"") is None]
        want = Want(exclusive=True)
        got = code(space.mkdir(path) if is_dir else space.create(path, Mode.WRITE, want=want))
        if before != "gone":
            assert got == errno.EEXIST
        elif top != "dir" or not fits:
            assert got in {*GONE, errno.EACCES}
        else:
            assert got == 0
            assert fits[0][1] in fits[0][0]

    @rule(w=st.integers(0, 9), path=PATHS)
    def remove(self, w: int, path: Path) -> None:
        space, table = self.worlds[w % len(self.worlds)]
        holder = next((m for m in self.members(table, path) if m[1] in self.services[m[0]].files), None)
        before = self.shown(table, path)
        got = code(space.remove(path))
        if path == ROOT or path in table or any(at.startswith(f"{path}/") for at in table):
            assert got == errno.EBUSY
        elif before == "gone":
            assert got in GONE
        elif holder is not None and got == 0:
            assert holder[1] not in self.services[holder[0]].files
        else:
            assert got in (errno.EACCES, errno.ENOTEMPTY)

    @rule(w=st.integers(0, 9), old=PATHS, new=PATHS)
    def rename(self, w: int, old: Path, new: Path) -> None:
        space, table = self.worlds[w % len(self.worlds)]
        data = self.shown(table, old)
        if isinstance(data, bytes) and self.shown(table, new) != "dir" and code(space.rename(old, new)) == 0:
            assert self.shown(table, new) == data

    # -- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def shows_what_the_model_shows(self) -> None:
        for space, table in self.worlds:
            for path in UNIVERSE:
                self.same(space, table, path)

    def same(self, space: Namespace, table: Table, path: Path) -> None:
        expected = self.shown(table, path)
        if expected == "gone":
            assert code(space.stat(path)) in GONE, path
            assert code(space.list(path)) in GONE, path
            assert code(space.open(path, Mode.READ)) in GONE, path
            return
        found = run(space.stat(path))
        assert (found.name, found.is_dir) == (split(path)[1], expected == "dir"), path
        if isinstance(expected, bytes):
            assert read(space, path) == expected
            assert code(space.list(path)) == errno.ENOTDIR
        else:
            assert code(space.open(path, Mode.READ)) == errno.EISDIR
            assert names(space, path, limit=2) == names(space, path) == sorted(self.listed(table, path)), path

    @invariant()
    def scripts_replay(self) -> None:
        services = {f"s{i}": s for i, s in enumerate(self.services)}
        for space, table in self.worlds:
            again = Namespace()
            again.replay(space.script(), named_services(services))
            assert again.script() == space.script()
            for path in UNIVERSE[:13]:
                self.same(again, table, path)


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)
TestModel = Model.TestCase


def space(**at: DictService) -> Namespace:
    made = Namespace()
    for name, service in at.items():
        made.mount(service, Path(name.replace("_", "/") if name != "root" else ""), name=name)
    return made


def test_bind_of_a_bind_and_what_is_mounted_beneath() -> None:
    made = space(root=DictService({"a/b/c/f": b"1"}), a_b_m=DictService({"deep": b"2"}))
    made.bind(Path("a/b"), Path("x"))
    made.bind(Path("x/c"), Path("y"))
    assert (read(made, "y/f"), read(made, "x/m/deep")) == (b"1", b"2")


def test_bind_shows_what_was_there_then() -> None:
    made = space(kv=DictService({"notes/n": b"old"}))
    made.bind(Path("kv/notes"), Path("n"))
    made.unmount(Path("kv"))
    assert read(made, "n/n") == b"old"


def test_bound_file_is_a_file() -> None:
    made = space(kv=DictService({"f": b"text"}))
    made.bind(Path("kv/f"), Path("here/g"))
    assert (read(made, "here/g"), run(made.stat(Path("here/g"))).name) == (b"text", "g")
    assert code(made.create(Path("here/g"), Mode.WRITE, want=Want(exclusive=True))) == errno.EEXIST
    assert code(made.remove(Path("here/g"))) == errno.EBUSY


def test_rename_never_hides_a_file() -> None:
    first, second = DictService({"new": b"A"}), DictService({"old": b"B"})
    made = space(root=first)
    made.mount(second, ROOT, Bind.AFTER, name="b")
    assert code(made.rename(Path("old"), Path("new"))) == errno.EXDEV
    assert second.files[Path("old")] == b"B"
    assert code(made.rename(Path("old"), Path("other"))) == 0


def test_create_passes_a_read_only_member_and_shows_the_permission() -> None:
    made = Namespace()
    made.mount(ReadOnly(DictService()), ROOT, name="a")
    made.mount(DictService(), ROOT, Bind.AFTER, name="b")
    assert code(made.create(Path("f"), Mode.WRITE)) == 0
    assert run(made.stat(ROOT)).mode & 0o222


def test_errors_name_the_path_of_the_caller() -> None:
    made = space(kv=DictService({"f": b""}, writable=False))
    for call in (made.open(Path("kv/f"), Mode.WRITE), made.create(Path("kv/g"), Mode.WRITE), made.stat(Path("kv/h"))):
        with pytest.raises(OSError, match="kv/") as caught:
            run(call)
        assert str(caught.value.filename).startswith("kv/")
    handle = run(made.open(Path("kv/f"), Mode.READ))
    with pytest.raises(OSError, match="kv/f"):
        run(handle.truncate(0))


class Broken(DictService):
    async def stat(self, path: Path) -> Stat:
        raise error(errno.ENOTCONN, path)


def test_a_broken_mount_does_not_hide_its_neighbours() -> None:
    made = space(root=DictService({"a": b""}), bad=Broken())
    assert names(made) == ["a", "bad"]
    assert code(made.stat(Path("bad"))) == errno.ENOTCONN


def test_short_pages_lose_nothing() -> None:
    made = space(root=DictService(dict.fromkeys("abcd", b""), page=2))
    made.mount(DictService(dict.fromkeys("awxyz", b"")), ROOT, Bind.AFTER, name="b")
    assert names(made) == names(made, limit=1) == names(made, limit=3) == list("abcdwxyz")


def test_attached_once_and_sees_later_mounts() -> None:
    service, agent = DictService({"f": b""}), Principal("agent", "x")
    made = space(root=service)
    seen = made.attach(agent)
    for _ in range(5):
        run(seen.stat(Path("f")))
    assert service.attached == 1
    for i in range(50):
        made.mount(DictService({"g": b""}), Path("new"), name=f"n{i}")
        assert names(seen, "new") == ["g"]
    assert len(seen._attached) <= 4
    made.unmount(Path("new"))
    assert names(seen) == ["f"]
    assert made.attach(OPERATOR).script() == made.script()


def test_qids_differ_between_members_and_not_between_runs() -> None:
    def numbers() -> list[int]:
        made = space(root=DictService({"f": b""}), x=DictService({"f": b""}), y=DictService({"f": b""}))
        return [run(made.stat(Path(p))).qid.path for p in ("f", "x/f", "y/f", "x", "y", "")]

    assert numbers() == numbers()
    assert len(set(numbers())) == 6


def test_what_cannot_be_mounted() -> None:
    made = space(x=DictService())
    for at in ("../x", "a//b", "a/.hidden", "a@b", "/x", "x/", "a\nb"):
        with pytest.raises(OSError, match=r"segment|name") as caught:
            made.mount(DictService(), Path(at), name="n")
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(FileExistsError):
        made.mount(DictService(), Path("y"), name="x")
    with pytest.raises(OSError, match="in itself"):
        made.mount(made.attach(OPERATOR), ROOT, name="me")
    made.unmount(Path("x"))
    made.mount(DictService(), Path("y"), name="x")


def test_a_script_is_applied_whole_or_not_at_all() -> None:
    made, services = space(x=DictService({"d/f": b"1"})), {"k": DictService({"g": b""})}
    before = made.script()
    for text, line in (
        ("mount k /k\nmount nobody /n", "line 2"),
        ("mount k /k\n\n# fine\nbind /no /where", "line 4"),
        ("mount k /k sideways", "line 1"),
        ("mount k /k 'open", "line 1"),
        ("chmod k", "line 1"),
        ("mount k /../k", "line 1"),
        ("bind '#k/..' /k", "line 1"),
    ):
        with pytest.raises(OSError, match=line) as caught:
            made.replay(text, named_services(services))
        assert caught.value.errno == errno.EINVAL
        assert made.script() == before
    made.replay("mount k '/a\u2028b # c' after\nbind /x/d /y", named_services(services))
    again = Namespace()
    again.replay(made.script(), named_services({**services, "x": DictService({"d/f": b"2"})}))
    assert again.script() == made.script()
    assert read(again, "y/f") == b"2"


def test_binds_that_double_end_with_an_error_and_change_nothing() -> None:
    made = space(x=DictService())
    for i in range(60):
        before = made.script()
        try:
            made.bind(ROOT, Path(f"d{i}"))
        except OSError as exc:
            assert exc.errno in (errno.ENOSPC, errno.ENAMETOOLONG)
            assert made.script() == before
            return
    raise AssertionError("grew without limit")
