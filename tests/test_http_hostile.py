"""Connections that break the server's own code: a fault is that connection's alone."""

from __future__ import annotations

import struct
from contextlib import suppress

import h2.config
import h2.connection
import pytest
import trio
from httpfs import Running, running

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
UPGRADE = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n"
SOCKET = b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
Pairs = list[tuple[bytes, bytes]]


def asked(method: bytes, path: bytes | None) -> bytes:
    """The bytes of one HTTP/2 request, which may be an odd one."""
    rules = h2.config.H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
    client = h2.connection.H2Connection(rules)
    client.initiate_connection()
    pairs: Pairs = [(b":method", method), (b":authority", b"127.0.0.1")]
    pairs += [(b":scheme", b"http"), (b":path", path)] if path is not None else []
    client.send_headers(1, pairs, end_stream=True)
    return client.data_to_send()


def priorities(count: int) -> bytes:
    """HTTP/2 with so many streams announced and never begun."""
    frames = [b"\x00\x00\x05\x02\x00" + struct.pack(">IIB", 2 * i + 1, 0, 10) for i in range(count)]
    return PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"".join(frames)


HOSTILE = {
    "path": asked(b"GET", b"/\xff"), "method": asked(b"G\xff", b"/"), "connect": asked(b"CONNECT", None),
    "priorities": priorities(1500), "frames": UPGRADE + SOCKET + b"\xff\xff\xff\xff",
}  # fmt: skip


async def talk(it: Running, data: bytes) -> None:
    """Send *data* and read until the server hangs up, as it does when its own code has failed."""
    stream = await it.connect()
    await stream.send_all(data)
    with trio.fail_after(60), suppress(trio.BrokenResourceError):
        while await stream.receive_some(1 << 16):
            pass


async def is_alive(it: Running) -> None:
    """The face still answers others."""
    answers = await it.send("GET", "/healthz")
    await answers.until(b"ok\n")


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_connection_that_breaks_ends_alone(what: str) -> None:
    async with running() as it:
        await talk(it, HOSTILE[what])
        await is_alive(it)


async def test_a_body_that_comes_after_its_answer() -> None:
    """Over HTTP/2, where the stream is gone by then: what any client does whose token is refused."""
    async with running() as it:
        client = h2.connection.H2Connection(h2.config.H2Configuration())
        client.initiate_connection()
        stream = await it.connect()
        named = {"method": "PUT", "scheme": "http", "path": "/note", "authority": it.address}
        client.send_headers(1, [(f":{name}", value) for name, value in named.items()])
        await stream.send_all(client.data_to_send())
        with trio.fail_after(60):
            text = b""
            while b"EACCES" not in text:
                text += await stream.receive_some(1 << 16)
        for _ in range(2):
            client.send_data(1, b"late")
            await stream.send_all(client.data_to_send())
        await is_alive(it)
