"""``agentctl chat``: lines to an agent, and what its models say as they say it, up to the reply and what it came to.

It reads files only: the agent's trace names the jobs, their streams hold the words, its outbox the reply.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import typer

from agentctl import messages
from agentctl.client import Client
from agentctl.command import Session
from agentctl.output import failure, parse, printable
from agentfs.errors import error
from agentfs.types import agent_id

Name = Annotated[str, typer.Argument(metavar="NAME", help="The agent's id.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds to wait for each reply.")]


class _Silence(Exception):  # noqa: N818  # not a fault: a tick may well end without a reply
    """The message is done with, and nothing answers it."""


def chat(session: Session, name: Name, timeout: Timeout = 600.0) -> None:
    """Talk to an agent: each line is a message; prints what its models say as it comes, then the cost."""
    home, is_terminal = f"agents/{agent_id(name)}", sys.stdin is not None and sys.stdin.isatty()
    for line in _lines(is_terminal=is_terminal):
        said = Exchange(session, home, time.monotonic() + timeout)
        try:
            said.run(line)
        except OSError as exc:
            if not is_terminal:
                raise
            typer.echo(failure(exc, None), err=True)  # a person may go on


def _lines(*, is_terminal: bool) -> Iterator[str]:
    if sys.stdin is None:
        raise error(errno.EBADF, "standard input")
    while True:
        if is_terminal:
            typer.echo("> ", nl=False, err=True)
        raw = sys.stdin.buffer.readline()
        if not raw:
            return
        try:
            text = raw.decode().strip()
        except UnicodeDecodeError as exc:
            raise error(errno.EILSEQ, "standard input", str(exc.reason)) from exc
        if text:
            yield text


@dataclass
class Exchange:
    """One line and what becomes of it. Words go to standard output, all else to standard error."""

    session: Session
    home: str
    deadline: float
    jobs: set[str] = field(default_factory=set)
    streamed: str = ""  # by the job whose words came last
    is_answered: bool = False

    @property
    def _client(self) -> Client:
        return self.session.client

    def run(self, text: str) -> None:
        """Send it and show everything. EREMOTEIO when it ended as a dead letter, ETIMEDOUT."""
        sent = messages.message(text, None, is_json=False)
        try:
            reply = self._reply(sent)
        except _Silence:
            self._note("no reply")
            return
        extra = reply["metadata"].get("extra", {})
        if self.session.out.is_json:
            self.session.out.value({"id": sent.id, "reply": reply["payload"], **extra})
            return
        payload = reply["payload"]
        words = payload if isinstance(payload, str) else msgspec.json.encode(payload).decode()
        if words.strip() != self.streamed.strip():
            self._say(f"{words}\n")
        if "cost_usd" in extra:
            tokens = extra.get("input_tokens", 0) + extra.get("output_tokens", 0)
            self._note(f"steps {extra.get('steps')}, tokens {tokens}, ${extra['cost_usd'] / 1e6:.6f}")

    def _reply(self, sent: messages.Message) -> dict[str, Any]:
        """The envelope that answers *sent*; the outbox is watched before anything is sent."""

        def listen() -> None:
            self._follow(sent)

        path = f"{self.home}/outbox"
        for _, line in self._client.watch(path, None, resume="0", deadline=self.deadline, opened=listen):
            reply = parse(line)
            if isinstance(reply, dict) and messages.replies_to(reply) == sent.id:
                return reply
        raise error(errno.ENODATA, path, "the outbox ended before a reply")

    def _follow(self, sent: messages.Message) -> None:
        """Send it, and show what the trace tells of it until its tick has ended."""

        def post() -> None:
            self._client.call(f"{self.home}/inbox", sent.body)

        path = f"{self.home}/logs/trace"
        for _, line in self._client.watch(path, None, resume="0", deadline=self.deadline, opened=post):
            record = parse(line)
            if isinstance(record, dict) and self._is_end(record, sent.id):
                if not self.is_answered:
                    raise _Silence
                return

    def _is_end(self, record: dict[str, Any], ident: str) -> bool:
        """Show *record*; whether it is the end of what *ident* set off."""
        kind = record.get("type")
        if kind == "message_out":
            self.is_answered = True  # told only right before its tick's end
        if record.get("envelope_id") != ident:
            return False
        if kind == "job" and record.get("id") not in self.jobs:
            self.jobs.add(str(record.get("id")))
            self._stream(str(record.get("id")))
        elif kind == "tool_done":
            self._note(f"{record.get('name')} {record.get('path', '')}: {record.get('errno') or 'ok'}")
        elif kind == "tick_start":
            self.is_answered = False
        elif kind == "tick_end" and record.get("dead_letter"):
            raise error(errno.EREMOTEIO, f"{self.home}/deadletter/{ident}.json", str(record.get("error")))
        elif kind == "tick_end" and record.get("outcome") != "ok":
            self._note(f"{record.get('error')}; it is tried again")
        return kind == "tick_end" and record.get("outcome") == "ok"

    def _stream(self, job: str) -> None:
        """Show the words of one job as they come."""
        path, self.streamed = f"{self.home}/compute/jobs/{job}/stream", ""
        for _, line in self._client.watch(path, "0", deadline=self.deadline):
            chunk = parse(line)
            words = chunk.get("delta") if isinstance(chunk, dict) else None
            if isinstance(words, str):
                self.streamed += words
                self._say(words)
        if self.streamed:
            self._say("\n")

    def _say(self, words: str) -> None:
        if not self.session.out.is_json:
            self.session.out.raw(plain(words).encode())

    def _note(self, text: str) -> None:
        if not self.session.out.is_json:
            typer.echo(f"[{printable(text)}]", err=True)


def plain(words: str) -> str:
    """What a model says with everything escaped that could steer a terminal; its lines stay lines."""
    return "\n".join("\t".join(printable(part) for part in line.split("\t")) for line in words.split("\n"))
