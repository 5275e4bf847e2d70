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
from agentfs.ports import Append, AtMost, Change, Expect, Insert, Key, Put, Signer
from agentfs.rows import AgentRow, IdentityRow, KeyRow

_DIGITS = 10
_RACES = 64
_CHECKED = 256


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


def _key(row: IdentityRow) -> Key:
    return Key(int(row.number), bytes.fromhex(row.pubkey), row.imported)


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

    async def restore(self) -> None:
        """See to it that the keys are those of the agents that are there. EINVAL when they are another seed's."""
        for key in await self._core.store.scan(KeyRow, newest=True, limit=_CHECKED) if self._signer else ():
            row = await self._core.store.get(IdentityRow, key.owner, key.number)
            if row is not None and not row.imported:
                if (await self.signer.pubkey(_key(row))).hex() != row.pubkey:
                    raise error(errno.EINVAL, detail=f"keys: of another seed than those of the agent {row.agent}")
                return

    async def of(self, agent: str) -> IdentityRow | None:
        """The identity *agent* has now, if it has any."""
        rows = [row for row in await self.known(agent) if row.until_ns is None]
        return rows[-1] if rows else None

    async def current(self, agent: str) -> IdentityRow:
        """The identity *agent* has now; its first one is made when it is first asked for. ENOENT for the agent."""
        return await self.of(agent) or await self._make(agent, None)

    async def _make(self, agent: str, before: IdentityRow | None, imported: Key | None = None) -> IdentityRow:
        for _ in range(_RACES):
            newest = await self._core.store.scan(KeyRow, newest=True, limit=1)
            number = int(newest[0].number) + 1 if newest else 0
            key = imported or Key(number)
            row = IdentityRow(
                agent=agent, number=f"{number:0{_DIGITS}}", pubkey=(await self.signer.pubkey(key)).hex(),
                since_ns=self._core.clock.now_ns(), imported=key.imported,
            )  # fmt: skip
            row = await self._handed_over(before, row) if before else row
            try:
                await self._core.commit(*self._changes(row, before))
            except OSError as exc:
                if exc.errno == errno.ESTALE and before is None:  # another made the first one meanwhile
                    return await self.current(agent)
                if exc.errno != errno.EBUSY:  # else: another agent got this number
                    raise
            else:
                return row
        raise error(errno.EBUSY, detail="keys are being made elsewhere")

    def _changes(self, row: IdentityRow, before: IdentityRow | None) -> Sequence[Change]:
        agent = row.agent
        changes: list[Change] = [
            Expect(AgentRow, (agent,), errno=errno.ENOENT),
            Insert(KeyRow(number=row.number, owner=agent), errno.EBUSY),
        ]
        if before is None:
            changes.append(AtMost(IdentityRow, (agent,), 0, errno.ESTALE))
        else:
            still = Expect(IdentityRow, (agent, before.number), "until_ns", None, errno.ESTALE)
            changes += [still, Put(msgspec.structs.replace(before, until_ns=row.since_ns))]
        about: dict[str, object] = {"event": "rotated" if before else "created", "pubkey": row.pubkey}
        if before is not None:
            about |= {"before": before.pubkey, "statement": row.handover, "signature": row.signature}
        record = self._core.record(agent, "identity", about)
        return [*changes, Insert(row), Append(agent, "trajectory", record, chain=True)]

    async def _handed_over(self, before: IdentityRow, row: IdentityRow) -> IdentityRow:
        """*row* with the statement of the rotation, which the old key signs."""
        statement = f"agentfs rotation {before.pubkey} {row.pubkey} {row.since_ns}"
        signature = await self.signer.sign(_key(before), hashlib.sha256(statement.encode()).digest())
        return msgspec.structs.replace(row, handover=statement, signature=signature.hex())

    async def rotate(self, agent: str) -> IdentityRow:
        """A new key for *agent*, announced in a record that the old one signs; that one verifies for a while."""
        return await self._make(agent, await self.current(agent))

    async def adopt(self, agent: str, pubkey: bytes, sealed: bytes) -> IdentityRow:
        """Rotate to a key from elsewhere, *sealed* by this runtime's keeper. EINVAL, EEXIST for the present one."""
        before = await self.current(agent)
        if before.pubkey == pubkey.hex():
            raise error(errno.EEXIST, detail="this agent has that key already")
        return await self._make(agent, before, Key(0, pubkey, sealed))

    def use(self, agent: str, row: IdentityRow, op: str, digest: bytes, purpose: str = "") -> None:
        """Record one use of a key."""
        about = {"op": op, "pubkey": row.pubkey, "hash": digest.hex(), "purpose": purpose or None}
        self._core.trace(agent, "identity", **about)

    async def sign(self, agent: str, digest: bytes, purpose: str = "") -> tuple[IdentityRow, bytes]:
        """The identity and its signature of *digest* (32 bytes)."""
        row = await self.current(agent)
        signature = await self.signer.sign(_key(row), digest)
        self.use(agent, row, "sign", digest, purpose)
        return row, signature

    async def encrypt(self, agent: str, peer: bytes, text: str) -> str:
        """*text* encrypted for *peer*."""
        row = await self.current(agent)
        payload = await self.signer.encrypt(_key(row), peer, text)
        self.use(agent, row, "encrypt", hashlib.sha256(payload.encode()).digest())
        return payload

    async def decrypt(self, agent: str, peer: bytes, payload: str) -> str:
        """What *peer* encrypted for *agent*, also for a key that has been rotated within the grace period. EINVAL."""
        failed: OSError | None = None
        for row in reversed(await self._usable(agent)):
            try:
                text = await self.signer.decrypt(_key(row), peer, payload)
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
        return any(self.is_by(key, digest, signature) for key in keys)

    def is_by(self, pubkey: bytes, digest: bytes, signature: bytes) -> bool:
        """Whether *signature* of *digest* is *pubkey*'s, whoever that is. ENOTCONN when this runtime has no keys."""
        return self.signer.verify(pubkey, digest, signature)
