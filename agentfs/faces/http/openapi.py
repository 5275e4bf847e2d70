"""The OpenAPI 3.1 document of the face, made from the verb table and the error table."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

from agentfs.errors import ROWS
from agentfs.faces.http.verbs import VERBS

_BYTES = {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}
_FILE = [{"name": "path", "in": "path", "required": True, "schema": {"type": "string"}}]
_AGENT = [{"name": "id", "in": "path", "required": True, "schema": {"$ref": "#/components/schemas/AgentId"}}]


def _header(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}


def _query(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}


def _operation(summary: str, answers: dict[str, str], **more: Any) -> dict[str, Any]:
    responses: dict[str, Any] = {code: {"description": text} for code, text in answers.items()}
    return {"summary": summary, "responses": responses | {"default": {"$ref": "#/components/responses/Error"}}, **more}


_IF_MATCH = _header("If-Match", "The ETag seen; 412 ESTALE when the file has changed since.")
_KEY = _header("Idempotency-Key", "The same key again has no second effect.")
_GET = [
    _query("watch", "On a stream: server-sent events; `id` is the cursor."),
    _query("since", "With watch: begin behind this cursor; 0 is the oldest record held."),
    _query("recursive", "On a directory: everything below it."),
    _query("cursor", "On a directory: the page behind this name."),
    _query("meta", "The stat as JSON instead of the content."),
    _header("Range", "One byte range."),
    _header("Last-Event-ID", "As `since`."),
]
_PATH: dict[str, Any] = {
    "parameters": _FILE,
    "get": _operation(
        "Read a file, list a directory, watch a stream", {"200": "Content, listing or events", "206": "The range"},
        parameters=_GET,
    ),
    "head": _operation("What a file is", {"200": "Headers only"}),
    "put": _operation(
        "Replace or create a file", {"201": "Created", "204": "Replaced"}, requestBody=_BYTES, parameters=[_IF_MATCH]
    ),
    "post": _operation(
        "Call, enqueue, do verbs, append; with a trailing slash make a directory",
        {"200": "The answer or receipt", "201": "Created", "204": "Done"}, requestBody=_BYTES, parameters=[_KEY],
    ),
    "delete": _operation("Remove a file or an empty directory", {"204": "Removed"}, parameters=[_IF_MATCH]),
    "x-methods": {  # methods that OpenAPI has no word for
        "mkcol": _operation("Make a directory", {"201": "Made"}),
        "move": _operation(
            "Rename", {"204": "Renamed"},
            parameters=[_header("Destination", "The new path."), _header("Overwrite", "F: never replace.")],
        ),
    },
}  # fmt: skip
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["errno", "path", "detail"],
    "properties": {
        "errno": {"type": "string", "enum": [row.name for row in ROWS]},
        "path": {"type": "string"},
        "detail": {"type": "string"},
    },
}


@cache
def document() -> dict[str, Any]:
    """The document as JSON values."""
    verbs = {
        f"/agents/{{id}}/{name}": {
            "parameters": _AGENT,
            "post": _operation(verb.text, {"200" if verb.file == "inbox" else "204": "Done"}, requestBody=_BYTES),
        }
        for name, verb in VERBS.items()
    }
    plain = {path: {"get": _operation(text, {"200": text}, security=[])} for path, text in {
        "/healthz": "The process answers", "/readyz": "Everything answers", "/openapi.json": "This document",
    }.items()}  # fmt: skip
    agents = {
        "get": _operation("List agents", {"200": "Their directory"}),
        "post": _operation("Create an agent", {"200": "Its id and status"}, requestBody=_BYTES),
    }
    remove = {"parameters": _AGENT, "delete": _operation("Remove a terminated agent", {"204": "Removed"})}
    return {
        "openapi": "3.1.0",
        "info": {"title": "agentfs", "version": version("agentfs"), "description": __doc__},
        "security": [{"token": []}, {"nostr": []}, {"signature": []}],
        "paths": {**plain, "/agents": agents, "/agents/{id}": remove, **verbs, "/{path}": _PATH},
        "components": {
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "nostr": {"type": "http", "scheme": "nostr", "description": "A signed event of kind 27235: NIP-98."},
                "signature": {"type": "http", "scheme": "agentfs-signature", "description": "Lines that are signed."},
            },
            "schemas": {"Error": _ERROR, "AgentId": {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,62}$"}},
            "responses": {
                "Error": {
                    "description": "A row of the error table",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                }
            },
        },
    }
