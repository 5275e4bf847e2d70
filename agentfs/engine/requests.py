"""`Requests`: whether a signed request is genuine, in time, unaltered and new; and which were let in already.

It opens no file: what the key may do is the grants' affair, in `peers`.
"""

from __future__ import annotations

import errno
import hashlib
import heapq
from collections import Counter
from collections.abc import Callable
from typing import Final

from agentfs.engine.claims import EMPTY, Claim, Sent, form_of, parse
from agentfs.engine.core import Core
from agentfs.engine.peers import Peers
from agentfs.errors import error
from agentfs.ports import Delete, Put
from agentfs.rows import PeerRow

WINDOW_NS: Final = 60 * 1_000_000_000
Verify = Callable[[bytes, bytes, bytes], bool]
_Key = tuple[str, str]  # of whom, and which nonce


class Requests:
    """Lets each signed request in once: `recognise`, `judge`, then with its body `admit`; EACCES says why not.

    What was let in is remembered until it is too old to come again, but not across a restart: what was signed before
    this runtime started is too old as well. Of keys whose clock is ahead, the latest time is kept on disk for that.
    """

    def __init__(self, core: Core, peers: Peers, verify: Verify) -> None:
        self._core, self._peers, self._verify = core, peers, verify
        self._started_ns = self._floor_ns = core.clock.now_ns()
        self._before: dict[str, int] = {}  # by key: let in by the process before this one, for a time to come
        self._ahead: dict[str, int] = {}
        self._seen: set[_Key] = set()
        self._ends: list[tuple[int, _Key]] = []
        self._count: Counter[str] = Counter()

    async def restore(self) -> None:
        """Take up what was let in for a time to come."""
        rows = await self._core.store.scan(PeerRow)
        self._before = {row.pubkey: row.ahead_ns for row in rows}
        over_ns = self._core.clock.now_ns() - WINDOW_NS
        if gone := [Delete(PeerRow, (row.pubkey,)) for row in rows if row.ahead_ns < over_ns]:
            await self._core.commit(*gone)

    @staticmethod
    def is_signed(header: str) -> bool:
        """Whether an Authorization header is of one of the two forms."""
        return form_of(header) != ""

    def recognise(self, header: str, sent: Sent) -> Claim:
        """The claim of a key that is let in by some agent, truly signed by it.

        An unknown key and a wrong signature are the same EACCES, so that nobody learns which keys are known.
        """
        claim = parse(header, sent)
        is_signed = self._verify(
            bytes.fromhex(claim.pubkey), claim.digest, claim.sig
        )  # the time it takes tells nothing
        if not (is_signed and self._peers.is_known(claim.pubkey)):
            raise _refused("signature: not one of a key that is let in here")
        return claim

    def judge(self, claim: Claim, sent: Sent) -> None:
        """EACCES unless *claim* is about this very request, and in time. Says nothing of the body yet."""
        if claim.sent.method != sent.method:
            raise _refused(f"method: signed for {claim.sent.method[:20]}")
        if claim.sent.url != sent.url:
            raise _refused(f"url: signed for {claim.sent.url[:200]}, not for {sent.url[:200]}")
        if claim.sent.acting != sent.acting:
            raise _refused(f"headers: {' '.join(name for name, _ in sent.acting)}: this form does not sign them")
        self._check_time(claim)

    def _check_time(self, claim: Claim) -> None:
        now_ns, end_ns = self._core.clock.now_ns(), claim.at_ns + WINDOW_NS
        is_before = claim.at_ns // claim.step_ns <= self._started_ns // claim.step_ns
        if is_before or claim.at_ns <= self._before.get(claim.pubkey, -1):
            raise _refused("late: signed before this runtime started")
        if end_ns < now_ns or end_ns <= self._floor_ns:
            raise _refused("late: signed more than 60 s ago")
        if claim.at_ns > now_ns + WINDOW_NS:
            raise _refused("early: signed for more than 60 s from now")

    async def admit(self, claim: Claim, body: bytes) -> None:
        """Let the request in, once. EACCES for another body or a replay, ENOBUFS when too many are remembered."""
        if claim.body is None and body:
            raise _refused("body: not signed, the tag payload is missing")
        if hashlib.sha256(body).hexdigest() != (claim.body or EMPTY):
            raise _refused("body: altered, or the hash of another one was signed")
        self._check_time(claim)  # a body may be long in coming, and what is too old is forgotten
        self._mark(claim)
        if claim.at_ns > self._core.clock.now_ns():
            await self._remember(claim)

    def _mark(self, claim: Claim) -> None:
        """Check and remember in one go: of two at the same time one is let in."""
        self._forget_old()
        limits, key = self._core.limits, (claim.pubkey, claim.nonce)
        if key in self._seen:
            raise _refused("replayed: this request was let in already")
        if len(self._seen) >= limits.nonces or self._count[claim.pubkey] >= limits.peer_nonces:
            raise error(errno.ENOBUFS, detail="too many signed requests within two minutes")
        self._seen.add(key)
        self._count[claim.pubkey] += 1
        heapq.heappush(self._ends, (claim.at_ns + WINDOW_NS, key))

    def _forget_old(self) -> None:
        """Forget what is too old; it stays so when the clock is set back."""
        now_ns = self._core.clock.now_ns()
        while self._ends and self._ends[0][0] < now_ns:
            self._floor_ns, key = heapq.heappop(self._ends)
            self._seen.discard(key)
            self._count[key[0]] -= 1
            if not self._count[key[0]]:
                del self._count[key[0]]

    async def _remember(self, claim: Claim) -> None:
        """It could be sent again after a restart, when it is not from before that: keep its time on disk."""
        known_ns = max(self._ahead.get(claim.pubkey, 0), self._before.get(claim.pubkey, 0))
        self._ahead[claim.pubkey] = ahead_ns = max(known_ns, claim.at_ns)
        await self._core.commit(Put(PeerRow(pubkey=claim.pubkey, ahead_ns=ahead_ns)))


def _refused(why: str) -> OSError:
    return error(errno.EACCES, detail=why)
