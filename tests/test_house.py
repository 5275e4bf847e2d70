"""The house rules that can be counted: sizes, who may import what, tables that the documentation must hold."""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentfs.errors import ROWS

HERE = Path(__file__).parent.parent
PACKAGES = ("agentfs", "agentctl", "conformance")
FILE_MAX, FUNCTION_MAX, MEDIAN_MAX = 400, 40, 150
OUTSIDE = {
    *("cli", "runtime", "house", "spaces", "authority", "client", "logline", "watchdog", "config", "toml", "state"),
    *("faces", "services", "providers", "drivers", "demo"),
}
CORE_LIBRARIES = {"anyio", "msgspec", "agentfs"}
PLATFORM = {"sqlite3", "socket", "subprocess", "ctypes", "multiprocessing"}  # not in a browser or a Worker
HOMES = {
    "docker": "agentfs/providers/containers",
    "pyfuse3": "agentfs/faces/fuse",
    "starlette": "agentfs/faces/http",
    "sse_starlette": "agentfs/faces/http",
    "sqlite3": "agentfs/providers/store",
    "sqlite_utils": "agentfs/providers/store",
}


def sources(*tops: str) -> list[Path]:
    return sorted(file for top in tops for file in (HERE / top).rglob("*.py"))


def code() -> list[Path]:
    scripts = [*HERE.glob("*.sh"), *(HERE / "scripts").glob("*.sh"), HERE / ".ci" / "run"]
    return sources(*PACKAGES, "tests") + scripts


def named(file: Path) -> str:
    return file.relative_to(HERE).as_posix()


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{named(file)}:{node.lineno}: a relative import"
            yield node.module or ""


def is_core(file: Path) -> bool:
    return file.is_relative_to(HERE / "agentfs") and file.relative_to(HERE / "agentfs").parts[0] not in {
        name for top in OUTSIDE for name in (top, f"{top}.py")
    }


def test_no_file_is_over_its_cap() -> None:
    sizes = {named(file): len(file.read_text().splitlines()) for file in code()}
    assert {name: size for name, size in sizes.items() if size > FILE_MAX} == {}


def test_the_median_file_is_small() -> None:
    sizes = [len(file.read_text().splitlines()) for file in sources(*PACKAGES) if file.stat().st_size]
    assert statistics.median(sizes) <= MEDIAN_MAX


def test_no_function_is_over_its_cap() -> None:
    long = {}
    for file in sources(*PACKAGES, "tests"):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or 0) - node.lineno + 1
                if size > FUNCTION_MAX:
                    long[f"{named(file)}:{node.lineno} {node.name}"] = size
    assert long == {}


def test_every_module_says_what_it_holds() -> None:
    silent = [f for f in sources(*PACKAGES) if f.stat().st_size and not ast.get_docstring(ast.parse(f.read_bytes()))]
    assert [named(file) for file in silent] == []


def test_every_package_is_one() -> None:
    """The import linter does not see into a directory without ``__init__.py``."""
    open_ones = {named(file.parent) for file in sources(*PACKAGES) if not (file.parent / "__init__.py").exists()}
    assert open_ones == set()


def test_the_core_imports_little() -> None:
    allowed = (set(sys.stdlib_module_names) - PLATFORM) | CORE_LIBRARIES
    core = [file for file in sources("agentfs") if is_core(file)]
    assert len(core) > 10
    foreign = {named(file): {m for m in imported(file) if m.partition(".")[0] not in allowed} for file in core}
    assert {name: modules for name, modules in foreign.items() if modules} == {}


def test_the_client_knows_only_the_ground() -> None:
    known = {m for file in sources("agentctl") for m in imported(file) if m.partition(".")[0] == "agentfs"}
    assert known <= {"agentfs.errors", "agentfs.types", "agentfs.capability", "agentfs.client"}


@pytest.mark.parametrize("library", HOMES)
def test_a_library_has_one_home(library: str) -> None:
    users = {named(file) for file in sources("agentfs") if library in {m.partition(".")[0] for m in imported(file)}}
    homes = (f"{HOMES[library]}/", f"{HOMES[library]}.py")
    assert [user for user in sorted(users) if not user.startswith(homes)] == []


def test_tests_are_never_skipped() -> None:
    words = ("pytest.skip", "mark.skip", "importorskip", "mark.xfail", "|| " + "true")
    found = [(named(file), word) for file in code() for word in words if word in file.read_text()]
    assert [pair for pair in found if pair[0] != named(Path(__file__))] == []


def test_lock_files_name_no_place() -> None:
    locks = sorted((HERE / ".ci").glob("requirements*.lock"))
    assert len(locks) == 2
    for lock in locks:
        text = lock.read_text()
        assert "://" not in text
        assert "--index" not in text
        assert "--find-links" not in text
        assert all("--hash=sha256:" in block for block in text.replace("\\\n", " ").splitlines() if "==" in block)


def test_every_error_row_is_documented() -> None:
    lines = [line for page in (HERE / "docs" / "reference").glob("*.md") for line in page.read_text().splitlines()]
    missing = {r.name for r in ROWS if not any(r.name in line and str(r.status) in line for line in lines)}
    assert not lines or missing == set()
