"""A service tree (kv) against a plain dict: random operations by name, on both stores, must agree at every step."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path as FsPath

import pytest
import trio
from engines import settings
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from agentfs.engine.engine import Engine
from agentfs.house import build
from agentfs.limits import Limits
from agentfs.providers.clock import ManualClock
from agentfs.service import FileService
from agentfs.types import OPERATOR, Mode, Path, Want
from conformance.drivers import open_store

NAMES = st.sampled_from(["a", "b", "A", "key-1", "ü"])
OPS = st.one_of(
    st.tuples(st.just("put"), NAMES, st.binary(max_size=40)),
    st.tuples(st.just("append"), NAMES, st.binary(max_size=40)),
    st.tuples(st.just("make"), NAMES, st.booleans()),
    st.tuples(st.just("cut"), NAMES, st.integers(0, 50)),
    st.tuples(st.just("remove"), NAMES),
    st.tuples(st.just("rename"), NAMES, NAMES),
)


def expect(model: dict[str, bytes], op: tuple[object, ...]) -> int:
    """Apply *op* to the dict; the errno it must give, 0 for success."""
    verb, name = str(op[0]), str(op[1])
    if verb == "make":
        if name in model:
            return errno.EEXIST if op[2] else 0
        model[name] = b""
        return 0
    if name not in model:
        return errno.ENOENT
    value = op[2] if len(op) > 2 else None
    match verb:
        case "put":
            model[name] = bytes(value)  # type: ignore[call-overload]
        case "append":
            model[name] += bytes(value)  # type: ignore[call-overload]
        case "cut":
            assert isinstance(value, int)
            model[name] = model[name][:value].ljust(value, b"\0")
        case "remove":
            del model[name]
        case "rename" if value != name:
            model[str(value)] = model.pop(name)
    return 0


async def do(kv: FileService, op: tuple[object, ...]) -> None:
    """Apply *op* to the tree."""
    verb, path = op[0], Path(f"agents/m/kv/{op[1]}")
    match verb:
        case "make":
            await (await kv.create(path, Mode.WRITE, want=Want(exclusive=bool(op[2])))).aclose()
        case "remove":
            await kv.remove(path)
        case "rename":
            await kv.rename(path, Path(f"agents/m/kv/{op[2]}"))
        case _:
            mode = {"put": Mode.TRUNCATE, "append": Mode.APPEND}.get(str(verb), Mode.READ)
            async with await kv.open(path, Mode.WRITE | mode) as handle:
                if isinstance(op[2], int):
                    await handle.truncate(op[2])
                elif isinstance(op[2], bytes):
                    await handle.write(op[2], 0)
                await handle.flush(final=True)


async def compare(store_name: str, ops: list[tuple[object, ...]]) -> None:
    """Run *ops* on a fresh agent and on a dict."""
    with tempfile.TemporaryDirectory() as top:
        store = await open_store(store_name, FsPath(top))
        engine = Engine(
            store, ManualClock(), Limits(), lambda a, s: pytest.fail("no tick"), lambda a: pytest.fail("no")
        )
        house, _ = build(engine, settings(), lambda s: None, {})
        await engine.create("m", settings())
        tree, model = house.attach(OPERATOR), dict[str, bytes]()
        for op in ops:
            code = 0
            try:
                await do(tree, op)
            except OSError as exc:
                code = exc.errno or 0
            assert code == expect(model, op), op
            listed = {s.name: s.size for s in await tree.list(Path("agents/m/kv"))}
            assert listed == {name: len(value) for name, value in model.items()}, op
        for name, value in model.items():
            async with await tree.open(Path(f"agents/m/kv/{name}"), Mode.READ) as handle:
                assert await handle.read(1000, 0) == value
        assert list(await store.check()) == []
        await store.aclose()


HEALTH = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.mark.parametrize("store_name", ["memory", "sqlite"])
@examples(max_examples=30, deadline=None, suppress_health_check=HEALTH)
@given(ops=st.lists(OPS, max_size=25))
def test_kv_is_a_dict(store_name: str, ops: list[tuple[object, ...]]) -> None:
    trio.run(compare, store_name, ops)
