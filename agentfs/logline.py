"""Log records as one JSON object a line on stderr, with agent, tick and envelope where a record has them."""

from __future__ import annotations

import logging
import sys

import msgspec

from agentfs.types import rfc3339

_EXTRA = ("agent", "tick_id", "envelope_id", "trace_id")


class Lines(logging.Formatter):
    """Formats a record as ``{"at","level","logger","message",...}``; a traceback goes into ``traceback``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line without its newline."""
        doc: dict[str, object] = {
            "at": rfc3339(int(record.created * 1e9)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        doc |= {name: getattr(record, name) for name in _EXTRA if hasattr(record, name)}
        if record.exc_info:
            doc["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(doc).decode()


def configure(level: str) -> None:
    """Send every logger's records of at least *level* (``debug`` ... ``error``) to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel("WARNING")
