"""`Kept`: the `Signer` of a runtime that holds no key itself, but has a keeper in a process of its own.

It must not open, or know, what the keeper opens; checking a signature takes no secret and is done here.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import trio

from agentfs.errors import error
from agentfs.ports import Clock, Key
from agentfs.providers.keys.link import AWAY, Link
from agentfs.providers.keys.wire import Answer, Ask, Source

FIRST_NS: Final = 100_000_000
"""The pause before a keeper is started again; twice as long each time it is gone before it has lived as long."""
MOST_NS: Final = 30_000_000_000
LOST: Final = f"{AWAY}, and what opened the keys was not kept: start the runtime again"

log = logging.getLogger(__name__)


class Kept:
    """Implements `agentfs.ports.Signer` over one keeper after the other."""

    def __init__(self, source: Source, clock: Clock, nursery: trio.Nursery) -> None:
        self._source, self._clock, self._nursery = source, clock, nursery
        self._link: Link | None = None
        self._first = b""
        self._away = AWAY

    @property
    def pid(self) -> int:
        """The keeper's process. ENOTCONN while there is none."""
        return self._present().pid

    async def start(self) -> Link:
        """Start a keeper. What it raises when it cannot open the keys; EINVAL when they are not those of the first."""
        link = Link(self._source)
        self._nursery.start_soon(link.serve)
        try:
            seed = (await link.ask(self._source)).data
            if self._first not in (b"", seed):
                raise error(errno.EINVAL, self._source.file, "keys: of another seed than before")
        except BaseException:
            await link.aclose()
            raise
        self._first, self._link = seed, link
        self._source = msgspec.structs.replace(self._source, may_make=False)
        return link

    async def watch(self, link: Link) -> None:
        """Start a keeper again whenever one has gone, *link* first, if it can be opened again; else stay without."""
        pause_ns = FIRST_NS
        while True:
            began_ns, code = self._clock.monotonic_ns(), await self._ended(link)
            lasting = self._source.is_lasting
            log.warning("the keeper of the keys ended (%d)%s", code, ", starting it again" if lasting else "")
            if not lasting:
                self._away = LOST
                return
            lived_ns = self._clock.monotonic_ns() - began_ns
            pause_ns = FIRST_NS if lived_ns > MOST_NS else pause_ns
            while True:
                await self._clock.sleep_until(self._clock.now_ns() + pause_ns)
                pause_ns = min(2 * pause_ns, MOST_NS)
                try:
                    link = await self.start()
                    break
                except OSError as exc:
                    log.warning("the keeper of the keys does not start: %s", exc)

    async def _ended(self, link: Link) -> int:
        """The exit code of a keeper, once it is gone."""
        await link.gone.wait()
        self._link = None
        return await link.aclose()

    async def aclose(self) -> None:
        """End the keeper."""
        if self._link is not None:
            await self._link.aclose()

    def _present(self) -> Link:
        if self._link is None or self._link.gone.is_set():
            raise error(errno.ENOTCONN, detail=self._away)
        return self._link

    async def _ask(self, ask: Ask) -> Answer:
        return await self._present().ask(ask)

    async def pubkey(self, key: Key) -> bytes:
        """See `Signer.pubkey`."""
        return (await self._ask(Ask("pubkey", key.number, key.pubkey, key.imported))).data

    async def sign(self, key: Key, digest: bytes) -> bytes:
        """See `Signer.sign`."""
        return (await self._ask(Ask("sign", key.number, key.pubkey, key.imported, digest))).data

    async def encrypt(self, key: Key, peer: bytes, text: str) -> str:
        """See `Signer.encrypt`."""
        return (await self._ask(Ask("encrypt", key.number, key.pubkey, key.imported, peer, text))).text

    async def decrypt(self, key: Key, peer: bytes, payload: str) -> str:
        """See `Signer.decrypt`."""
        return (await self._ask(Ask("decrypt", key.number, key.pubkey, key.imported, peer, payload))).text

    async def seal(self, name: str, data: bytes) -> bytes:
        """See `Signer.seal`."""
        return (await self._ask(Ask("seal", text=name, data=data))).data

    async def unseal(self, name: str, sealed: bytes) -> bytes:
        """See `Signer.unseal`."""
        return (await self._ask(Ask("unseal", text=name, data=sealed))).data

    def verify(self, pubkey: bytes, digest: bytes, signature: bytes) -> bool:
        """See `Signer.verify`."""
        from agentfs.providers.keys import curve  # here: no start waits for the curve, which the keeper has too

        return curve.verify(pubkey, digest, signature)


@asynccontextmanager
async def keeping(source: Source, clock: Clock) -> AsyncIterator[Kept]:
    """A signer whose keeper is a process of its own that ends with the block.

    A keeper that is gone is started again after a pause, unless a passphrase opened the keys or they are in memory.
    Raises, in a group, what `opening.opened` raises in that process; its passphrase's descriptor is closed here.
    """
    async with trio.open_nursery() as nursery:
        kept = Kept(source, clock, nursery)
        nursery.start_soon(kept.watch, await kept.start())
        try:
            yield kept
        finally:
            nursery.cancel_scope.cancel()
            await kept.aclose()
