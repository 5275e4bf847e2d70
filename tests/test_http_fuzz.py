"""Whatever is asked of the HTTP face, it answers with a status of the table and an error that can be rebuilt."""

from __future__ import annotations

import logging
from urllib.parse import quote_from_bytes

import msgspec
import pytest
import trio
from httpfs import World, ask, face
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agentfs.errors import BY_NAME, ROWS, Row, detail_of, error, row_of
from agentfs.faces.http import answers, paths
from agentfs.types import PATH_MAX

QUICK = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])

segments = st.one_of(
    st.sampled_from(
        [b"agents", b"a1", b"config", b"kv", b"events", b"events@follow", b"ctl", b"inbox", b"send", b"rooms"]
    ),
    st.sampled_from([b"", b".", b"..", b"%2e%2e", b"%2F", b"%00", b"%ff", b"%252e", b"@", b"events@0", b"x" * 256]),
    st.binary(max_size=12).map(lambda raw: quote_from_bytes(raw, safe="/@%.~").encode()),
)
raw_paths = st.lists(segments, max_size=6).map(lambda parts: b"/" + b"/".join(parts))
queries = st.one_of(
    st.just(b""),
    st.lists(
        st.tuples(
            st.sampled_from(["watch", "recursive", "since", "cursor", "meta", "x", ""]),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        ),
        max_size=3,
    ).map(lambda pairs: "&".join(f"{k}={v}" for k, v in pairs).encode()),
    st.binary(max_size=20),
)
methods = st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE", "MKCOL", "MOVE", "PATCH"])
values = st.one_of(
    st.sampled_from(
        [b"*", b'"1"', b"bytes=0-", b"bytes=-1", b"bytes=9-1", b"F", b"/kv/x", b"http://127.0.0.1/kv/y", b"//", b"0"]
    ),
    st.binary(max_size=16).filter(lambda raw: not set(raw) & set(b"\r\n\0")),
)
headers = st.lists(
    st.tuples(
        st.sampled_from([
            b"if-match", b"if-none-match", b"range", b"if-range", b"destination", b"overwrite", b"last-event-id",
            b"idempotency-key", b"traceparent", b"content-length", b"authorization", b"host",
        ]),
        values,
    ),
    max_size=3,
)  # fmt: skip
bodies = st.one_of(
    st.sampled_from([b"", b"{}", b"[1]\n[2", b"{bad", b"pause x\n", b"\xff\n", b"a\nb"]), st.binary(max_size=40)
)


def one(method: str, raw: bytes, query: bytes, sent: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Ask it, and check that the answer is one of those it may give."""
    world = World()
    world.events.append(b'{"type":"first"}')
    world.events.finish()  # so that a watch ends

    async def main() -> tuple[int, dict[str, str], bytes]:
        with trio.fail_after(60):
            return await ask(face(world), method, raw, query, sent, body)

    status, named, text = trio.run(main)
    if status < 400:
        return
    doc = msgspec.json.decode(text, type=dict[str, str])
    assert set(doc) == {"errno", "path", "detail"} and doc["errno"] != "EIO"
    assert status == BY_NAME[doc["errno"]].status or (status, doc["errno"]) in {
        (401, "EACCES"), (416, "EINVAL"), (421, "EACCES"),
    }  # fmt: skip
    assert (named.get("retry-after") == "1") == (status in (429, 503))
    assert named["content-type"] == "application/json"
    rebuilt = error(BY_NAME[doc["errno"]].errno, doc["path"], doc["detail"])
    assert row_of(rebuilt).name == doc["errno"] and (rebuilt.filename or "") == doc["path"]


@QUICK
@given(methods, raw_paths, queries, headers, bodies)
@example("GET", b"/events@follow", b"", [], b"")
@example("GET", b"/events", b"watch=1&since=.1", [], b"")
@example("MOVE", b"/kv", b"", [(b"destination", b"http://[")], b"")
@example("GET", b"/config", b"", [(b"range", b"bytes=" + b"9" * 5000 + b"-")], b"")
@example("GET", b"/agents", b"cursor=%ff%00&recursive", [], b"")
@example("PUT", b"/kv/x", b"", [(b"if-match", "\N{SUPERSCRIPT TWO}".encode("latin-1"))], b"")
@example("PUT", b"/kv/x", b"", [(b"content-length", "\N{SUPERSCRIPT TWO}".encode("latin-1"))], b"")
def test_no_request_breaks_it(
    method: str, raw: bytes, query: bytes, sent: list[tuple[bytes, bytes]], body: bytes
) -> None:
    one(method, raw, query, sent, body)


def test_the_fuzz_would_see_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger("agentfs.faces.http.app").setLevel(logging.CRITICAL)
    monkeypatch.setattr(paths, "decode", lambda raw: 1 // 0)
    with pytest.raises(AssertionError):
        one("GET", b"/config", b"", [], b"")
    logging.getLogger("agentfs.faces.http.app").setLevel(logging.NOTSET)


@QUICK
@given(raw_paths)
def test_a_path_decodes_to_itself_or_is_refused(raw: bytes) -> None:
    try:
        path, is_dir = paths.decode(raw)
    except OSError as exc:
        assert row_of(exc).name in ("EINVAL", "EILSEQ", "ENAMETOOLONG")
        return
    assert not path.startswith("/") and "\0" not in path and len(path.encode()) <= PATH_MAX
    assert not {"", ".", ".."} & set(path.split("/")) or path == ""
    again = "/" + quote_from_bytes(path.encode()) + ("/" if is_dir and path else "")
    assert paths.decode(again.encode()) == (path, is_dir or not path)


@given(
    st.sampled_from(ROWS),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_an_error_survives_the_wire(row: Row, path: str, detail: str) -> None:
    sent = error(row.errno, path, detail)
    answer = answers.failure(sent, path)
    doc = msgspec.json.decode(bytes(answer.body), type=dict[str, str])
    back = error(BY_NAME[doc["errno"]].errno, doc["path"])
    assert type(back) is type(sent) and back.errno == sent.errno and back.filename == sent.filename
    assert doc["detail"] == detail_of(sent) and answer.status_code == row_of(sent).status


@QUICK
@given(st.binary(max_size=30), st.text("bytes=0123456789-, ", max_size=14))
def test_a_range_is_a_slice(body: bytes, asked: str) -> None:
    found = answers._span(asked, len(body))
    if found is None or found[0] > found[1]:
        return
    first, last = found
    assert 0 <= first <= last < len(body)
