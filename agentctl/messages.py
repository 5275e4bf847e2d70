"""The documents ``agentctl`` writes: a new agent's, a message's; and a message's reply found in the outbox.

Requests are built here and checked by the runtime.
"""

from __future__ import annotations

import errno
import shlex
import time
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from agentctl.client import Client
from agentctl.output import parse
from agentfs.errors import error
from agentfs.types import new_id

PROMPT_TICK_MS: Final = 600_000
"""A model may take its time: an agent made of a prompt has ten minutes for a message, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Message:
    """An envelope to send; *is_named*: its id was given, so it may have been sent, and answered, before."""

    id: str
    body: bytes
    is_named: bool


def message(text: str, ident: str | None, *, is_json: bool) -> Message:
    """*text* as an envelope with its own id; an envelope keeps text that looks like JSON text.

    EINVAL when *is_json* and it is not JSON, EILSEQ when it is not UTF-8.
    """
    chosen = ident if ident is not None else new_id(time.time_ns())
    payload = msgspec.Raw(_json(text, "payload")) if is_json else text
    try:
        body = msgspec.json.encode({"id": chosen, "payload": payload})
    except UnicodeEncodeError as exc:
        raise error(errno.EILSEQ, "", "the message") from exc
    return Message(chosen, body, ident is not None)


def ask(client: Client, home: str, sent: Message, deadline: float) -> tuple[object, dict[str, Any]]:
    """Send *sent* to the agent at *home*; its receipt, and the first envelope of the outbox that replies to it.

    The outbox is watched before the message leaves, so no reply is missed. ETIMEDOUT at *deadline*
    (`time.monotonic`); the message stays sent.
    """
    receipts: list[object] = []

    def post() -> None:
        receipts.append(parse(client.call(f"{home}/inbox", sent.body)))

    since = "0" if sent.is_named else None
    for _, line in client.watch(f"{home}/outbox", since, resume="0", deadline=deadline, opened=post):
        reply = parse(line)
        if isinstance(reply, dict) and replies_to(reply) == sent.id:
            return receipts[0], reply
    raise error(errno.ENODATA, f"{home}/outbox", f"the outbox ended before a reply to {sent.id}")


def replies_to(envelope: dict[str, Any]) -> object:
    """The id of the message that *envelope* answers, None for none."""
    metadata = envelope.get("metadata")
    return metadata.get("reply_to") if isinstance(metadata, dict) else None


@dataclass(frozen=True, slots=True)
class Ways:
    """The ways in which a command line names a program; *model* goes with *prompt*."""

    program: str | None = None
    execute: str | None = None
    inline: str | None = None
    prompt: str | None = None
    model: str | None = None


def agent(name: str, ways: Ways, config: list[str]) -> bytes:
    """The request for a new agent; at most one way to name its program. EINVAL names the option."""
    program, execute, inline, prompt = ways.program, ways.execute, ways.inline, ways.prompt
    if sum(way is not None for way in (program, execute, inline, prompt)) > 1:
        raise error(errno.EINVAL, "", "give one of --program, --exec, --inline, --prompt")
    if ways.model is not None and prompt is None:
        raise error(errno.EINVAL, "", "--model goes with --prompt")
    document: dict[str, Any] = {"name": name}
    if prompt is not None:  # below, so that --config can say otherwise
        document |= {"program": {"kind": "llm", "prompt": prompt}, "tick_timeout_ms": PROMPT_TICK_MS}
        document["program"] |= {"model": ways.model} if ways.model is not None else {}
    for pair in config:
        _place(document, pair)
    if program is not None:
        document["program"] = msgspec.Raw(_json(program, "--program"))
    elif execute is not None:
        document["program"] = {"kind": "exec", "argv": _words(execute)}
    elif inline is not None:
        document["program"] = {"kind": "inline", "ref": inline}
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError as exc:
        raise error(errno.EILSEQ, "", "the program") from exc


def _place(document: dict[str, Any], pair: str) -> None:
    key, equals, text = pair.partition("=")
    *parents, last = key.split(".")
    if not equals or not all((*parents, last)):
        raise error(errno.EINVAL, "", f"--config {pair!r}: want KEY=VALUE")
    for parent in parents:
        document = document.setdefault(parent, {})
        if not isinstance(document, dict):
            raise error(errno.EINVAL, "", f"--config {pair!r}: {parent} is already a value")
    try:
        document[last] = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        document[last] = text


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as exc:
        raise error(errno.EINVAL, "", f"--exec: {exc}") from exc
    if not words:
        raise error(errno.EINVAL, "", "--exec: the command is empty")
    return words


def _json(text: str, what: str) -> bytes:
    try:
        raw = text.encode()
        msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise error(errno.EINVAL, "", f"{what}: not JSON: {exc}") from exc
    return raw
