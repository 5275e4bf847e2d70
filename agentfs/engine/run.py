"""`Run`: one job on its way: asked of one provider, and of another one where nothing came; its pieces into its log.

It settles no money: it says how the job ended.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import msgspec

from agentfs.budget import USD_MAX
from agentfs.compute.documents import Request, Usage
from agentfs.compute.policy import Policy
from agentfs.compute.port import Part, Task, Unserved
from agentfs.compute.prices import BYTES_A_TOKEN, input_tokens
from agentfs.compute.routing import Offer, places
from agentfs.engine.core import Core
from agentfs.engine.journal import DONE, UNKNOWN
from agentfs.engine.journal import FAILED as NOTHING_DONE
from agentfs.engine.models import Models
from agentfs.engine.scribe import Page, Scribe
from agentfs.engine.timers import Timers
from agentfs.errors import detail_of, error, row_of
from agentfs.fault import point
from agentfs.ports import Append, Change, Expect, Put
from agentfs.rows import AgentRow, JobRow

_RETRY_NS: Final = 500_000_000


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ended. ``cost_usd`` None: not known, so all that was reserved; ``is_certain``: whether that is so."""

    state: str
    errno: int = 0
    reason: str = ""
    cost_usd: int | None = None
    is_certain: bool = True
    output: str = ""
    finish_reason: str = ""
    usage: Usage | None = None
    text: str = ""  # of an answer that was not streamed

    def chunk(self, job: str) -> bytes:
        """The last one of the stream: why it ended and what was used."""
        usage = {"usage": self.usage.shown()} if self.usage else {}
        why = {"errno": errno.errorcode[self.errno], "error": self.reason} if self.errno else {}
        reason = self.finish_reason or self.state
        return msgspec.json.encode({"job_id": job, "delta": self.text, "finish_reason": reason, **usage, **why})

    @property
    def entry(self) -> str:
        """What the journal calls it: with nothing done the same key may come again."""
        if self.state == "complete":
            return DONE
        return NOTHING_DONE if self.is_certain and self.cost_usd == 0 else UNKNOWN

    def cost(self, reserved_usd: int) -> int:
        """What is spent of the reservation."""
        return reserved_usd if self.cost_usd is None else min(self.cost_usd, reserved_usd)

    def applied(self, row: JobRow) -> JobRow:
        """*row* ended so."""
        return msgspec.structs.replace(
            row, state=self.state, output=self.output, finish_reason=self.finish_reason, reason=self.reason,
            error=errno.errorcode[self.errno] if self.errno else "",
            usage=msgspec.json.encode(self.usage).decode() if self.usage else "",
        )  # fmt: skip


@dataclass(slots=True)
class Answer:
    """What has come so far."""

    texts: list[str] = field(default_factory=list)
    size: int = 0
    pieces: int = 0
    finish_reason: str = ""
    usage: Usage | None = None
    output: Any = None
    first_ns: int | None = None

    def add(self, part: Part, now_ns: int) -> None:
        """Take one piece."""
        self.first_ns = now_ns if self.first_ns is None else self.first_ns
        if part.text:
            self.texts.append(part.text)
            self.size += len(part.text)
        for rest in (part.data, part.output):
            self.size += len(msgspec.json.encode(rest)) if rest is not None else 0
        self.pieces += bool(part.text or part.data)
        self.finish_reason = part.finish_reason or self.finish_reason
        self.usage = part.usage or self.usage
        self.output = part.output if part.output is not None else self.output

    def document(self) -> str:
        """The ``output`` of the response."""
        text = "".join(self.texts)
        if isinstance(self.output, dict):
            whole = {**self.output, "content": text} if text or "role" in self.output else self.output
        else:
            whole = {"text": text}
        return msgspec.json.encode(whole).decode()


class Run:
    """One job until its end; `cancel` may come at any time."""

    def __init__(
        self, core: Core, timers: Timers, models: Models, scribe: Scribe, row: JobRow, request: Request
    ) -> None:
        self._core, self._timers, self._models, self._scribe = core, timers, models, scribe
        self.row, self._request = row, request
        self._scope, self._why = anyio.CancelScope(), ""
        self._answer, self._is_sent, self._page = Answer(), False, Page(row.agent)

    def cancel(self, why: str = "cancelled") -> None:
        """End it."""
        self._why = self._why or why
        self._scope.cancel()

    async def _time_is_up(self) -> None:
        self.cancel("timeout")

    async def run(self, slots: anyio.Semaphore, rules: Callable[[], Awaitable[Policy]]) -> Ending:
        """Ask until there is an answer or no way left; it waits for one of *slots*, within its own time."""
        timer = ("job", self.row.agent, self.row.id)
        self._timers.set(timer, self.row.at_ns + self._request.timeout_ms * 1_000_000, self._time_is_up)
        try:
            with self._scope:
                async with slots:
                    return await self._ask(await rules())
        finally:
            self._timers.cancel(timer)
        return self._cut_off()

    def _cut_off(self) -> Ending:
        """How it ended when it was ended from outside: what was not sent costs nothing."""
        cost = None if self._is_sent else 0
        text = self._answer.document() if self._answer.texts else ""
        if self._why == "timeout":
            reason = f"no end within {self._request.timeout_ms} ms"
            return Ending("failed", errno.ETIMEDOUT, reason, cost, not self._is_sent, text)
        return Ending("cancelled", errno.ECANCELED, "cancelled", cost, not self._is_sent, text)

    async def _ask(self, policy: Policy) -> Ending:
        try:
            offers = self._paid(await self._models.route(self._request, policy))
        except OSError as exc:
            return _failed(exc, cost_usd=0)
        is_open, failure = False, error(errno.EREMOTEIO)
        first, second = places(offers, policy)
        for offer in (first, second):
            try:
                return await self._through(offer, is_open=is_open)
            except OSError as exc:
                failure = exc
                is_open = is_open or self._is_sent
                if self._answer.pieces or (isinstance(exc, Unserved) and exc.why == "refused"):
                    break
                if second is first:
                    if not (isinstance(exc, Unserved) and exc.is_passing):
                        break
                    await self._core.clock.sleep_until(self._core.clock.now_ns() + _RETRY_NS)
        return _failed(failure, cost_usd=None if is_open else 0, answer=self._answer)

    def _paid(self, offers: Sequence[Offer]) -> Sequence[Offer]:
        """The offers that the reservation still pays for: prices may have changed since it was made. EDQUOT."""
        most = self.row.reserved_usd
        paid = [offer for offer in offers if offer.price is None or offer.price.least(self._request) <= most]
        if not paid:
            raise error(errno.EDQUOT, detail=f"{most} micro-USD are reserved, and no answer costs so little any more")
        return paid

    async def _key(self, offer: Offer) -> str:
        """The key to ask with. `Unserved` when there is none to be had: nothing was sent."""
        try:
            return self._request.api_key or await self._models.key(self._models.served[offer.provider])
        except OSError as exc:
            raise Unserved("denied", f"{offer.provider}: its key: {detail_of(exc)}") from exc

    def _is_fault(self, exc: OSError) -> bool:
        """Whether *exc* tells something of the provider; that it has no room for a caller's own key does not."""
        if not isinstance(exc, Unserved):
            return True
        return exc.is_passing and not (exc.why == "busy" and self._request.api_key)

    async def _through(self, offer: Offer, *, is_open: bool) -> Ending:
        """The answer of one provider, and what it cost. Raises what the provider does."""
        self._answer, key = Answer(), await self._key(offer)
        self.row = msgspec.structs.replace(
            self.row, state="running", provider=offer.provider, model=offer.model, version=self.row.version + 1,
            started_ns=self._core.clock.now_ns(),
        )  # fmt: skip
        task = Task(
            offer.model, self._request.kind, self._request.input, self._request.stream,
            key, self._most(offer),
        )  # fmt: skip
        is_alive = Expect(AgentRow, (self.row.agent,), "terminated_at_ns", None, errno.EPERM)
        await self._core.commit(is_alive, Put(self.row))
        self._models.began(offer.provider)
        begun_ns = self._core.clock.monotonic_ns()
        try:
            self._is_sent = True
            await self._stream(offer, task)
            point("job.answered")
        except OSError as exc:
            self._is_sent = is_open or not isinstance(exc, Unserved)
            if not self._answer.pieces and self._is_fault(exc):
                self._models.failed(offer.provider)
            raise
        finally:
            self._models.left(offer.provider)
        self._measure(offer, begun_ns)
        return self._complete(offer, is_open=is_open)

    def _most(self, offer: Offer) -> int | None:
        """How many tokens may come out within what is reserved."""
        if offer.price is None:
            return None
        return offer.price.output_tokens(self.row.reserved_usd, input_tokens(self._request) // BYTES_A_TOKEN)

    async def _stream(self, offer: Offer, task: Task) -> None:
        """Take the pieces as they come, while those that came are being stored; all of them are when this returns."""
        self._page = Page(self.row.agent)
        try:
            with self._page.scope:
                await self._pull(offer, task)
        finally:
            with anyio.CancelScope(shield=True):
                await self._page.stored()
        if self._page.failure is not None:
            raise self._page.failure

    async def _pull(self, offer: Offer, task: Task) -> None:
        async with aclosing(self._models.served[offer.provider].provider.run(task)) as parts:
            async for part in parts:
                self._take(part)
                if task.max_tokens is not None and self._answer.pieces > task.max_tokens:
                    self._answer.finish_reason = "budget"
                    break
        if self._answer.first_ns is None:
            raise error(errno.EREMOTEIO, detail=f"{offer.provider}: it answered nothing")

    def _take(self, part: Part) -> None:
        self._answer.add(part, self._core.clock.monotonic_ns())
        if self._answer.size > self._core.limits.body_bytes:
            raise error(errno.EFBIG, detail=f"answer over {self._core.limits.body_bytes} bytes")
        if self._request.stream and (part.text or part.data is not None):
            calls = {"tool_calls": part.data} if part.data is not None else {}
            line = msgspec.json.encode({"job_id": self.row.id, "delta": part.text, **calls})
            self._scribe.write(self._page, *self._begun(), Append(self.row.agent, f"job-{self.row.id}", line))

    def _begun(self) -> Sequence[Change]:
        """With the first piece of a stream: that it streams."""
        if self.row.state != "running":
            return ()
        self.row = msgspec.structs.replace(
            self.row, state="streaming", first_ns=self._core.clock.now_ns(), version=self.row.version + 1
        )
        return (Put(self.row),)

    def _measure(self, offer: Offer, begun_ns: int) -> None:
        now_ns, first_ns = self._core.clock.monotonic_ns(), self._answer.first_ns or begun_ns
        count = self._answer.usage.output_tokens if self._answer.usage else self._answer.pieces
        rate = count * 1e9 / (now_ns - begun_ns) if now_ns > begun_ns else 0.0
        self._models.answered(offer.provider, offer.model, (first_ns - begun_ns) / 1e6, rate)

    def _complete(self, offer: Offer, *, is_open: bool) -> Ending:
        """*is_open*: one that was asked before may have cost something too, so all of the reservation is spent."""
        answer, usage, price = self._answer, self._answer.usage or Usage(), offer.price
        is_known = price is not None and (bool(usage.total_tokens) or not price.counts_tokens) and not is_open
        cost = min(price.cost(usage), USD_MAX) if is_known and price is not None else None
        return Ending(
            "complete", cost_usd=cost, is_certain=is_known, output=answer.document(),
            finish_reason=answer.finish_reason or "stop", usage=answer.usage,
            text="" if self._request.stream else "".join(answer.texts),
        )  # fmt: skip


def _failed(exc: OSError, *, cost_usd: int | None, answer: Answer | None = None) -> Ending:
    text = answer.document() if answer is not None and answer.texts else ""
    return Ending("failed", row_of(exc).errno, detail_of(exc)[:2000], cost_usd, cost_usd is not None, text)
