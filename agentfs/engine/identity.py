"""Identities: which key is whose, since when, and what it signs; the keys themselves stay with the signer.

Every use is a record with its purpose and a hash, never the content.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from agentfs.bech32 import public_of
from agentfs.engine.core import Core
from agentfs.errors import error
from agentfs.ports import Append, AtMost, Change, Expect, Insert, Put, Signer
from agentfs.rows import AgentRow, IdentityRow, KeyRow

_DIGITS = 10
_RACES = 64


def hex_of(text: object, size: int, name: str) -> bytes:
    """*text* as *size* bytes of hex. EINVAL naming the field."""
    try:
        found = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        found = b""
    if len(found) != size:
        raise error(errno.EINVAL, detail=f"{name}: want {size} bytes as {2 * size} hex digits")
    return found


def key_of(text: object, name: str) -> bytes:
    """A public key (32 bytes) given in hex or as an npub. EINVAL naming the field."""
    if isinstance(text, str) and text.lower().startswith("npub1"):
        try:
            return public_of(text)
        except OSError as exc:
            raise error(errno.EINVAL, detail=f"{name}: {exc.strerror}") from exc
    return hex_of(text, 32, name)


def event_id(event: dict[str, Any]) -> bytes:
    """The id of a Nostr event (NIP-01): SHA-256 of its canonical serialization. EINVAL naming the field."""
    fields = [0, *(event.get(name) for name in ("pubkey", "created_at", "kind", "tags", "content"))]
    kinds: Sequence[tuple[object, type | tuple[type, ...], str]] = [
        (fields[1], str, "pubkey"), (fields[2], int, "created_at"), (fields[3], int, "kind"),
        (fields[4], list, "tags"), (fields[5], str, "content"),
    ]  # fmt: skip
    for value, kind, name in kinds:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise error(errno.EINVAL, detail=f"event.{name}: missing or of another type")
    tags = event["tags"]
    if not all(isinstance(tag, list) and all(isinstance(word, str) for word in tag) for tag in tags):
        raise error(errno.EINVAL, detail="event.tags: want lists of text")
    return hashlib.sha256(msgspec.json.encode(fields)).digest()


class Identities:
    """The identities of all agents over one signer."""

    def __init__(self, core: Core, signer: Signer | None) -> None:
        self._core, self._signer = core, signer

    @property
    def signer(self) -> Signer:
        """The keeper of the keys. ENOTCONN when this runtime has none."""
        if self._signer is None:
            raise error(errno.ENOTCONN, detail="this runtime keeps no keys")
        return self._signer

    async def known(self, agent: str) -> Sequence[IdentityRow]:
        """All identities of *agent*, the oldest first."""
        return await self._core.store.scan(IdentityRow, agent)

    async def current(self, agent: str) -> IdentityRow:
        """The identity *agent* has now; its first one is made when it is first asked for. ENOENT for the agent."""
        rows = [row for row in await self.known(agent) if row.until_ns is None]
        return rows[-1] if rows else await self._make(agent, None)

    async def _make(self, agent: str, before: IdentityRow | None) -> IdentityRow:
        for _ in range(_RACES):
            newest = await self._core.store.scan(KeyRow, newest=True, limit=1)
            number = int(newest[0].number) + 1 if newest else 0
            row = IdentityRow(
                agent=agent, number=f"{number:0{_DIGITS}}", pubkey=(await self.signer.pubkey(number)).hex(),
                since_ns=self._core.clock.now_ns(),
            )  # fmt: skip
            try:
                await self._core.commit(*await self._changes(row, before))
            except OSError as exc:
                if exc.errno == errno.ESTALE and before is None:  # another made the first one meanwhile
                    return await self.current(agent)
                if exc.errno != errno.EBUSY:  # else: another agent got this number
                    raise
            else:
                return row
        raise error(errno.EBUSY, detail="keys are being made elsewhere")

    async def _changes(self, row: IdentityRow, before: IdentityRow | None) -> Sequence[Change]:
        agent = row.agent
        about: dict[str, object] = {"event": "rotated" if before else "created", "pubkey": row.pubkey}
        changes: list[Change] = [
            Expect(AgentRow, (agent,), errno=errno.ENOENT),
            Insert(KeyRow(number=row.number, owner=agent), errno.EBUSY),
            Insert(row),
        ]
        if before is None:
            changes.append(AtMost(IdentityRow, (agent,), 1, errno.ESTALE))
        else:
            about |= await self._handover(before, row)
            still = Expect(IdentityRow, (agent, before.number), "until_ns", None, errno.ESTALE)
            changes += [still, Put(msgspec.structs.replace(before, until_ns=row.since_ns))]
        return [*changes, Append(agent, "trajectory", self._core.record(agent, "identity", about), chain=True)]

    async def _handover(self, before: IdentityRow, row: IdentityRow) -> dict[str, object]:
        """The rotation as a statement that the old key signs."""
        statement = f"agentfs rotation {before.pubkey} {row.pubkey} {row.since_ns}"
        signature = await self.signer.sign(int(before.number), hashlib.sha256(statement.encode()).digest())
        return {"before": before.pubkey, "statement": statement, "signature": signature.hex()}

    async def rotate(self, agent: str) -> IdentityRow:
        """A new key for *agent*, announced in a record that the old one signs; that one verifies for a while."""
        return await self._make(agent, await self.current(agent))

    def use(self, agent: str, row: IdentityRow, op: str, digest: bytes, purpose: str = "") -> None:
        """Record one use of a key."""
        about = {"op": op, "pubkey": row.pubkey, "hash": digest.hex(), "purpose": purpose or None}
        self._core.trace(agent, "identity", **about)

    async def sign(self, agent: str, digest: bytes, purpose: str = "") -> tuple[IdentityRow, bytes]:
        """The identity and its signature of *digest* (32 bytes)."""
        row = await self.current(agent)
        signature = await self.signer.sign(int(row.number), digest)
        self.use(agent, row, "sign", digest, purpose)
        return row, signature

    async def encrypt(self, agent: str, peer: bytes, text: str) -> str:
        """*text* encrypted for *peer*."""
        row = await self.current(agent)
        payload = await self.signer.encrypt(int(row.number), peer, text)
        self.use(agent, row, "encrypt", hashlib.sha256(payload.encode()).digest())
        return payload

    async def decrypt(self, agent: str, peer: bytes, payload: str) -> str:
        """What *peer* encrypted for *agent*, also for a key that has been rotated within the grace period. EINVAL."""
        failed: OSError | None = None
        for row in reversed(await self._usable(agent)):
            try:
                text = await self.signer.decrypt(int(row.number), peer, payload)
            except OSError as exc:
                failed = failed or exc
                continue
            self.use(agent, row, "decrypt", hashlib.sha256(payload.encode()).digest())
            return text
        raise failed or error(errno.EINVAL, detail="payload: cannot be decrypted")

    async def _usable(self, agent: str) -> Sequence[IdentityRow]:
        await self.current(agent)
        since_ns = self._core.clock.now_ns() - self._core.limits.key_grace_seconds * 1_000_000_000
        return [row for row in await self.known(agent) if row.until_ns is None or row.until_ns >= since_ns]

    async def verify(self, agent: str, pubkey: bytes | None, digest: bytes, signature: bytes) -> bool:
        """Whether *signature* is of *pubkey*; without one, of any key that is *agent*'s now or was a while ago."""
        keys = [pubkey] if pubkey else [bytes.fromhex(row.pubkey) for row in await self._usable(agent)]
        return any(self.signer.verify(key, digest, signature) for key in keys)
