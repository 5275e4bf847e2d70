"""Options: precedence, origin, and errors that name the place."""

from __future__ import annotations

import errno
import json
import os
import traceback
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfs import toml
from agentfs.config import OPTIONS, Loaded, Upstream, load
from agentfs.limits import Limits


def env(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path), **more}


def write(tmp_path: Path, text: str) -> Path:
    state = tmp_path / "agentfs"
    state.mkdir(exist_ok=True)
    (state / "config.toml").write_text(text)
    return state / "config.toml"


def fails(tmp_path: Path, text: str = "", **more: str) -> OSError:
    if text:
        write(tmp_path, text)
    with pytest.raises(OSError) as caught:
        load({}, env(tmp_path, **more))
    return caught.value


def test_defaults(tmp_path: Path) -> None:
    loaded = load({}, env(tmp_path))
    config = loaded.config
    assert config.state == tmp_path / "agentfs"
    assert config.address == ("127.0.0.1", 8080)
    assert config.limits == Limits()
    assert set(loaded.origins.values()) == {"default"}
    assert config.default_program["kind"] == "exec"


def test_every_limit_is_an_option() -> None:
    assert {f"limits.{limit.name}" for limit in fields(Limits)} <= set(OPTIONS)


def test_precedence_and_origin(tmp_path: Path) -> None:
    file = write(tmp_path, '\nlisten = "127.0.0.1:1"\nstore = "memory"\nlog_level = "debug"\n[limits]\n\nhandles = 7\n')
    settings = env(tmp_path, AGENTFS_LISTEN="127.0.0.1:2", AGENTFS_STORE="memory", AGENTFS_LIMITS_HOPS="5")
    loaded = load({"listen": "127.0.0.1:3"}, settings)
    shown = {name: (value, origin) for name, value, origin in loaded.items()}
    assert shown["listen"] == ("127.0.0.1:3", "flag")
    assert shown["store"] == ("memory", "env AGENTFS_STORE")
    assert shown["log_level"] == ("debug", f"file {file}:4")
    assert shown["limits.handles"] == (7, f"file {file}:7")
    assert shown["limits.hops"] == (5, "env AGENTFS_LIMITS_HOPS")
    assert shown["limits.agents"] == (Limits().agents, "default")
    assert list(shown) == list(OPTIONS)


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("\nnosuch = 1\n", 2, "nosuch"),
        ("[limits]\nhandles = 1\nhandels = 2\n", 3, "limits.handels"),
        ("limits.handels = 1", 1, "limits.handels"),
        ("store = 'sqlite'\nlimits = {handels = 1}", 2, "limits.handels"),
        ("limits = 3", 1, "limits"),
        ("[[limits]]\nhandles = 1", 1, "limits"),
        ("# c\n[nosuch]\nx = 1", 2, "nosuch"),
        ('default_program = {kind = "exec", argv = [\n"a",\n]}\nx = 1', 4, "'x'"),
        ('listen = """127.0.0.1:\\\n1"""\nstore = "nosuch"', 3, "store"),
        ("fuse = 'true'", 1, "fuse"),
        ("fuse = 1", 1, "fuse"),
        ("hosts = 'a'", 1, "hosts"),
        ("drain_seconds = -1", 1, "drain_seconds"),
        ("drain_seconds = 1.5", 1, "drain_seconds"),
        ("[limits]\nhandles = true", 2, "limits.handles"),
        ("[limits]\nhandles = '9'", 2, "limits.handles"),
        ("[limits]\nhandles = 0", 2, "limits.handles"),
        ("[default_program]\nargv = []", 1, "kind"),
        ("store = 'sqlite'\nstate = '/x'", 2, "state"),
        ('listen = "127.0.0.1:70000"', 1, "port"),
        ('listen = "8080"', 1, "listen"),
        ('mount = "a\\u0000b"', 1, "mount"),
        ("providers = 3", 1, "providers"),
        ("[providers.a]\nkind = 'openai'\nurl = 'http://h/v1'\n[providers.b]\nkind = 'x'", 4, "kind"),
        ("[providers.a]\nkind = 'openai'", 1, "url: openai needs one"),
        ("[providers.a]\nkind = 'workers_ai'\nkey = 'secret:k'", 1, "url: workers_ai needs one"),
        ("[providers.a]\nkind = 'embedded'\nurl = 'http://h/v1'", 1, "embedded model has neither"),
        ("[providers.a]\nkind = 'embedded'\nkey = 'secret:k'", 1, "embedded model has neither"),
        ("[providers.a]\nkind = 'openai'\nurl = 'ftp://h/v1'", 1, "url"),
        ("[providers.a]\nkind = 'openai'\nurl = 'http://me:pw@h/v1'", 1, "url"),
        ("[providers.a]\nkind = 'openai'\nurl = 'http:///v1'", 1, "url"),
        ("[providers.a]\nkind = 'openai'\nurl = 'http://h:99999/v1'", 1, "url: Port"),
        ("[providers.a]\nkind = 'openai'\nurl = 'http://[::1/v1'", 1, "url: Invalid IPv6"),
        ("[providers.a]\nkind = 'openai'\nurl = 'http://a..b/v1'", 1, "url: "),
        ("[providers.a]\nkind = 'openai'\nurl = \"http://h/\\u0001\"", 1, "url: it has characters"),
        ("[providers.a]\nkind = 'openai'\nurl = 'http://h/v1'\nkey = 'sk-0123456789'", 1, "key"),
        ("[providers.a]\nkind = 'openai'\nurl = 'http://h/v1'\nwhere = 1", 1, "where"),
        ("[providers.A]\nkind = 'anthropic'", 1, "providers"),
    ],
)
def test_faults_in_the_file_name_their_line(tmp_path: Path, text: str, line: int, word: str) -> None:
    exc = fails(tmp_path, text)
    assert exc.errno == errno.EINVAL
    assert exc.filename == f"{tmp_path}/agentfs/config.toml:{line}"
    assert word in str(exc.strerror)


def test_broken_files(tmp_path: Path) -> None:
    exc = fails(tmp_path, "a = 1\nb = = 2\n")
    assert "line 2" in str(exc.strerror)
    assert fails(tmp_path, "#" * (toml.SIZE_MAX + 1)).errno == errno.EFBIG
    (tmp_path / "agentfs" / "config.toml").write_bytes(b"a = '\xff'")
    assert fails(tmp_path).errno == errno.EILSEQ


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AGENTFS_LIMITS_HANDELS", "1"),
        ("AGENTFS_NOSUCH", "1"),
        ("AGENTFS_LIMITS_HANDLES", "many"),
        ("AGENTFS_FUSE", "perhaps"),
        ("AGENTFS_DEFAULT_PROGRAM", "{bad"),
        ("AGENTFS_DEFAULT_PROGRAM", "[]"),
        ("AGENTFS_MOUNT", "~nosuchuser/mnt"),
        ("AGENTFS_STORE", "disk"),
        ("AGENTFS_PROVIDERS", "local"),
        ("AGENTFS_PROVIDERS", '{"a": {"kind": "anthropic", "key": "sk-0123456789"}}'),
        ("AGENTFS_DISCOVER", "sometimes"),
    ],
)
def test_faults_in_the_environment_name_the_variable(tmp_path: Path, name: str, value: str) -> None:
    exc = fails(tmp_path, **{name: value})
    assert (exc.errno, exc.filename) == (errno.EINVAL, name)


def test_providers_are_named_in_a_file_the_environment_or_a_flag(tmp_path: Path) -> None:
    text = """
[providers.here]
kind = "openai"
url = "http://127.0.0.1:8080/v1"
[providers.claude]
kind = "anthropic"
key = "secret:claude"
"""
    write(tmp_path, text)
    here = Upstream(kind="openai", url="http://127.0.0.1:8080/v1")
    named = {"here": here, "claude": Upstream(kind="anthropic", key="secret:claude")}
    assert load({}, env(tmp_path)).config.providers == named
    one = json.dumps({"cf": {"kind": "workers_ai", "url": "https://api.example.org/accounts/a", "key": "secret:cf"}})
    over = load({}, env(tmp_path, AGENTFS_PROVIDERS=one))
    assert [place.kind for place in over.config.providers.values()] == ["workers_ai"]
    assert over.origins["providers"] == "env AGENTFS_PROVIDERS"
    flag = load({"providers": json.dumps({"own": {"kind": "embedded"}})}, env(tmp_path, AGENTFS_PROVIDERS=one))
    assert flag.config.providers == {"own": Upstream(kind="embedded")} and flag.origins["providers"] == "flag"


@pytest.mark.parametrize("form", ["file", "env", "flag"])
def test_a_key_that_is_written_out_is_refused_and_not_repeated(tmp_path: Path, form: str) -> None:
    place = {"a": {"kind": "anthropic", "key": "sk-0123456789"}}
    with pytest.raises(OSError) as caught:
        if form == "file":
            write(tmp_path, "[providers.a]\nkind = 'anthropic'\nkey = 'sk-0123456789'")
            load({}, env(tmp_path))
        else:
            env_ = {"AGENTFS_PROVIDERS": json.dumps(place)} if form == "env" else {}
            load({"providers": json.dumps(place)} if form == "flag" else {}, env(tmp_path, **env_))
    assert caught.value.errno == errno.EINVAL and ".key" in str(caught.value)
    assert "0123456789" not in "".join(traceback.format_exception(caught.value))


def test_foreign_and_empty_variables_are_left_alone(tmp_path: Path) -> None:
    names = ("AGENTFS_URL", "AGENTFS_SOCKET", "AGENTFS_TOKEN", "AGENTFS_ROOT")
    loaded = load({}, env(tmp_path, AGENTFS_LISTEN="", **dict.fromkeys(names, "x")))
    assert loaded.origins["listen"] == "default"


def test_text_forms(tmp_path: Path) -> None:
    settings = env(tmp_path, AGENTFS_FUSE="False", AGENTFS_HOSTS="a, b,", AGENTFS_DEFAULT_PROGRAM='{"kind":"inline"}')
    loaded = load({"limits.handles": "12", "listen": "[::1]:80", "mount": None}, settings)
    config = loaded.config
    assert (config.fuse, config.mount, config.hosts) == (False, None, ("a", "b"))
    assert loaded.origins["mount"] == "env AGENTFS_FUSE"
    assert (config.limits.handles, config.address) == (12, ("::1", 80))
    assert config.default_program == {"kind": "inline"}


def test_unknown_flag(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        load({"nosuch": "1"}, env(tmp_path))
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, "flag nosuch")


def test_relative_paths_belong_to_where_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "else" / "c.toml"
    file.parent.mkdir()
    file.write_text('state = "s"\nmount = "../m"\n')
    monkeypatch.chdir(tmp_path)
    config = load({}, {}, file).config
    assert (config.state, config.mount) == (tmp_path / "else" / "s", tmp_path / "m")
    assert load({"state": "here"}, {}, file).config.state == tmp_path / "here"
    assert load({}, {"AGENTFS_CONFIG": str(file)}).origins["state"] == f"file {file}:1"


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load({}, env(tmp_path), tmp_path / "nosuch.toml")


def test_the_mount_never_covers_the_state(tmp_path: Path) -> None:
    assert fails(tmp_path, AGENTFS_MOUNT=str(tmp_path)).errno == errno.EINVAL
    assert load({"mount": str(tmp_path / "agentfs" / "mnt")}, env(tmp_path)).config.mount is not None


def test_default_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mount(uid: int, **more: str) -> Path | None:
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        return load({}, env(tmp_path, **more)).config.mount

    assert mount(0, XDG_RUNTIME_DIR="/run/user/0") == Path("/run/agentfs")
    assert mount(7, XDG_RUNTIME_DIR="/run/user/7") == Path("/run/user/7/agentfs")
    assert mount(7, XDG_RUNTIME_DIR="relative") == mount(7) == tmp_path / "agentfs" / "mnt"


def test_relative_xdg_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    loaded: Loaded = load({}, {"XDG_STATE_HOME": "relative"})
    assert loaded.config.state == tmp_path / ".local" / "state" / "agentfs"


_values = st.sampled_from(['"v"', "1", "'''\na = 1\n[b]\n'''", "[\n1, # ]\n\n2]", '"""\nx = [\n"""', '"[x]"'])


@given(st.lists(st.tuples(st.booleans(), _values, st.sampled_from(["", "# note\n", "\n\n"])), max_size=8))
def test_lines_of_keys_are_exact(parts: list[tuple[bool, str, str]]) -> None:
    text = ""
    table: toml.Key = ()
    expected: dict[toml.Key, int] = {}
    for number, (is_table, value, gap) in enumerate(parts):
        text += gap
        if is_table:
            table = (f"t{number}", "u")
            expected[table] = text.count("\n") + 1
            text += f" [t{number}.u] # {value!r}\n"
        else:
            expected[(*table, f"k{number}")] = text.count("\n") + 1
            text += f"k{number} = {value}\n"
    document = toml.parse(text.encode(), "f")
    for key, line in expected.items():
        assert document.where(key) == f"f:{line}"
