"""Peers that sign their requests, written from the description and not with the code under test; a face to ask."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from engines import running, settings
from httpfs import ask

from agentfs.checked import Checked
from agentfs.engine.engine import Engine
from agentfs.engine.settings import parse_settings
from agentfs.faces.http import Face, app
from agentfs.house import House, build
from agentfs.limits import Limits
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.providers.keys import curve
from agentfs.rows import AgentRow
from agentfs.service import FileService
from agentfs.types import OPERATOR, Mode, Path

SECRET = "the operator's own"
BASE = "http://127.0.0.1"
FORMS = ("own", "nostr")
Pairs = Sequence[tuple[str, str]]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Peer:
    """The holder of a key."""

    secret: bytes = field(default_factory=curve.fresh)

    @property
    def pubkey(self) -> str:
        return curve.pubkey(self.secret).hex()

    def sign(self, text: bytes) -> str:
        return curve.sign(self.secret, hashlib.sha256(text).digest()).hex()

    def own(self, method: str, url: str, at_ns: int, body: bytes = b"", acting: Pairs = (), nonce: str = "") -> str:
        """Our form."""
        at, nonce, digest = str(at_ns // 1_000_000), nonce or secrets.token_urlsafe(16), sha(body)
        lines = ["agentfs request 1", method, url, at, nonce, digest, *(f"{n.lower()}: {v}" for n, v in sorted(acting))]
        sig = self.sign("".join(f"{line}\n" for line in lines).encode())
        return f'Agentfs-Signature pubkey="{self.pubkey}", at="{at}", nonce="{nonce}", body="{digest}", sig="{sig}"'

    def nostr(
        self, method: str, url: str, at_ns: int, body: bytes = b"", tags: Sequence[Sequence[str]] | None = None,
        **other: Any,
    ) -> str:  # fmt: skip
        """NIP-98."""
        payload = [["payload", sha(body)]] if body else []
        found = [["u", url], ["method", method], *payload, ["x", secrets.token_hex(4)]] if tags is None else tags
        event = {"pubkey": self.pubkey, "created_at": at_ns // 10**9, "kind": 27235, "tags": found, "content": ""}
        event |= other
        parts = [0, *(event[name] for name in ("pubkey", "created_at", "kind", "tags", "content"))]
        text = json.dumps(parts, separators=(",", ":"), ensure_ascii=False).encode()
        signed = event | {"id": sha(text), "sig": self.sign(text)}
        return "Nostr " + base64.b64encode(json.dumps(signed, separators=(",", ":")).encode()).decode()

    def header(self, form: str, method: str, url: str, at_ns: int, body: bytes = b"", acting: Pairs = ()) -> str:
        """Either form."""
        if form == "own":
            return self.own(method, url, at_ns, body, acting)
        return self.nostr(method, url, at_ns, body)


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def doc(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def why(self) -> tuple[int, str, str]:
        """Status, errno and detail of a refusal."""
        return self.status, self.doc["errno"], self.doc["detail"].removeprefix("permission denied: ")


@dataclass
class Place:
    """A runtime's house behind its HTTP face, in this process."""

    engine: Engine
    house: House
    face: Face
    clock: ManualClock

    @property
    def tree(self) -> FileService:
        """The operator's."""
        return self.house.attach(OPERATOR)

    async def grant(self, peer: Peer, *allow: str, agent: str = "a", name: str = "", **more: Any) -> None:
        """Let *peer* in."""
        doc = msgspec.json.encode({"allow": list(allow), **more})
        path = Path(f"agents/{agent}/grants/{name or peer.pubkey}")
        async with await self.tree.create(path, Mode.WRITE) as handle:
            await handle.write(doc, 0)
            await handle.flush(final=True)

    async def withdraw(self, peer: Peer, agent: str = "a") -> None:
        """Let *peer* in no more."""
        await self.tree.remove(Path(f"agents/{agent}/grants/{peer.pubkey}"))

    async def send(
        self, header: str, method: str, target: str, body: bytes = b"", acting: Pairs = (), host: str = "127.0.0.1"
    ) -> Answer:
        """One request with exactly this Authorization."""
        raw, _, query = target.encode().partition(b"?")
        pairs = [(b"authorization", header.encode()), (b"host", host.encode())]
        pairs += [(name.lower().encode(), value.encode()) for name, value in acting]
        return Answer(*await ask(self.face, method, raw, query, pairs, body))

    async def ask(
        self, peer: Peer, method: str, target: str, body: bytes = b"", acting: Pairs = (), form: str = "own"
    ) -> Answer:
        """One request, signed now."""
        header = peer.header(form, method, f"{BASE}{target}", self.clock.now_ns(), body, acting)
        return await self.send(header, method, target, body, acting)


@asynccontextmanager
async def place(store: Store, clock: ManualClock, limits: Limits | None = None) -> AsyncIterator[Place]:
    """A house with the agents "a" and "b", ten seconds after its start."""
    limits = limits or Limits()
    async with running(store, clock, limits, secret=SECRET) as engine:
        default = parse_settings(b'{"program": {"kind": "inline", "ref": "engines:Script"}}')
        house, spaces = build(engine, default, lambda config: None, {})
        for name in ("a", "b"):
            if not await engine.core.store.get(AgentRow, name):
                await engine.create(name, settings())
        face = app(
            Checked(house, limits), engine.tokens.check, limits, hosts=["agentfs.test", "proxy.test:81"],
            ready=lambda: None, note=spaces.report, requests=engine.requests,
        )  # fmt: skip
        clock.advance(10)
        yield Place(engine, house, face, clock)
