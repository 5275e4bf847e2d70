"""The tree of another runtime, reached over its HTTP face with one token."""

from agentfs.providers.remote.service import RemoteService
from agentfs.providers.remote.trust import Trust, found

__all__ = ["RemoteService", "Trust", "found"]
