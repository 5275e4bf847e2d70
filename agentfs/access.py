"""Bearer tokens: the operator's from the state directory, an agent's derived from it; each selects one principal.

It checks tokens only; what a principal may do is decided by the files.
"""

from __future__ import annotations

import hashlib
import hmac

from agentfs.types import AgentId, Principal, agent_id


class Tokens:
    """The operator's token is a secret; an agent's is ``agent.<id>.<mac>`` with a MAC under a key derived from it."""

    def __init__(self, operator: str) -> None:
        self._operator = operator.encode()
        self._key = hashlib.sha256(b"agentfs agent tokens\0" + self._operator).digest()

    def issue(self, agent: str) -> str:
        """The token of *agent*: it opens that agent's own namespace with its own rights."""
        return f"agent.{agent}.{self._mac(agent_id(agent))}"

    def check(self, token: str) -> Principal | None:
        """Whose token it is, or None; compares in constant time."""
        if hmac.compare_digest(token.encode(errors="replace"), self._operator):
            return Principal("operator")
        kind, _, rest = token.partition(".")
        agent, _, mac = rest.rpartition(".")
        try:
            known = self._mac(agent_id(agent))
        except OSError:
            return None
        is_good = kind == "agent" and hmac.compare_digest(mac.encode(errors="replace"), known.encode())
        return Principal("agent", agent) if is_good else None

    def _mac(self, agent: AgentId) -> str:
        return hmac.new(self._key, agent.encode(), hashlib.sha256).hexdigest()
