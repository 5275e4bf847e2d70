"""The HTTP face: the same tree over GET, PUT, POST, DELETE, MKCOL, MOVE and server-sent events."""

from agentfs.faces.http.app import Face, app
from agentfs.faces.http.serve import serve

__all__ = ["Face", "app", "serve"]
