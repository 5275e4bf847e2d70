"""The rows of access: tokens, keys, identities, secrets, grants, peers."""

from __future__ import annotations

from agentfs.rows.row import Row


class TokenRow(Row, frozen=True, kw_only=True):
    """A capability token that was issued or revoked (never the token itself); ``agent`` is empty for the operator's."""

    TABLE = "tokens"
    KEY = ("agent", "id")
    agent: str
    id: str
    about: str = "{}"
    at_ns: int
    expires_ns: int | None = None
    revoked_at_ns: int | None = None


class KeyRow(Row, frozen=True, kw_only=True):
    """A key's number, given once and to one agent: never reused, also when that agent is gone."""

    TABLE = "keys"
    KEY = ("number",)
    number: str
    owner: str


class IdentityRow(Row, frozen=True, kw_only=True):
    """A public key (hex) of an agent; ``until_ns`` is set once another has taken its place.

    ``imported`` is its secret key as the keeper sealed it, empty for one of the seed's. ``handover`` is the statement
    by which the key before this one announced it and ``signature`` (hex) that one's of it.
    """

    TABLE = "identities"
    KEY = ("agent", "number")
    agent: str
    number: str
    pubkey: str
    since_ns: int
    until_ns: int | None = None
    imported: bytes = b""
    handover: str = ""
    signature: str = ""


class SecretRow(Row, frozen=True, kw_only=True):
    """A secret of an agent's, sealed by the keeper."""

    TABLE = "secrets"
    KEY = ("agent", "name")
    agent: str
    name: str
    sealed: bytes
    changed_at_ns: int


class RegistryRow(Row, frozen=True, kw_only=True):
    """What lets an agent fetch images from a registry (host[:port]), sealed by the keeper."""

    TABLE = "registries"
    KEY = ("agent", "registry")
    agent: str
    registry: str
    sealed: bytes
    changed_at_ns: int


class GrantRow(Row, frozen=True, kw_only=True):
    """What the holder of a key may do in an agent's namespace: ``allow`` is a JSON list of ``PATH:OP+OP``."""

    TABLE = "grants"
    KEY = ("agent", "pubkey")
    agent: str
    pubkey: str
    allow: str
    expires_ns: int | None = None
    note: str = ""
    changed_at_ns: int


class PeerRow(Row, frozen=True, kw_only=True):
    """A key whose clock is ahead of ours: up to ``ahead_ns`` its signed requests were let in before they were due."""

    TABLE = "peers"
    KEY = ("pubkey",)
    pubkey: str
    ahead_ns: int
