"""The tree of another runtime, reached over its HTTP face with one token."""

from agentfs.providers.remote.service import RemoteService

__all__ = ["RemoteService"]
