"""Every kind of provider by its name, and the servers that run on this machine on their usual ports.

It opens nothing but connections to loopback, and asks no model.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

import anyio

from agentfs.compute.port import ComputeProvider
from agentfs.errors import error
from agentfs.providers.compute.openai import OpenAI

USUAL: Final = {
    "ollama": "http://127.0.0.1:11434/v1", "llamacpp": "http://127.0.0.1:8080/v1",
    "lmstudio": "http://127.0.0.1:1234/v1", "vllm": "http://127.0.0.1:8000/v1",
}  # fmt: skip
"""Where Ollama, llama.cpp's server, LM Studio and vLLM listen unless told otherwise."""
_PROBE_SECONDS: Final = 1.0
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


def _openai(url: str) -> ComputeProvider:
    is_local = (urlsplit(url).hostname or "") in _LOOPBACK
    return OpenAI(url, is_local=is_local, needs_key=not is_local)


KINDS: Final[Mapping[str, Callable[[str], ComputeProvider]]] = {"openai": _openai}


def make(kind: str, url: str) -> ComputeProvider:
    """The provider of *kind* at *url*. EINVAL naming either."""
    if kind not in KINDS:
        raise error(errno.EINVAL, detail=f"kind: {kind[:40]!r}: want one of {' '.join(KINDS)}")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise error(errno.EINVAL, detail="url: want http(s)://HOST[:PORT][/PATH]")
    return KINDS[kind](url)


async def found(places: Mapping[str, str] = USUAL) -> Mapping[str, ComputeProvider]:
    """The servers at *places* that answer with a list of models, by name."""
    here: dict[str, ComputeProvider] = {}

    async def probe(name: str, url: str) -> None:
        provider = OpenAI(url, is_local=True)
        try:
            with anyio.fail_after(_PROBE_SECONDS):
                if await provider.models(""):
                    here[name] = provider
        except (OSError, TimeoutError):
            pass
        finally:
            if name not in here:
                with anyio.CancelScope(shield=True):
                    await provider.aclose()

    async with anyio.create_task_group() as group:
        for name, url in places.items():
            group.start_soon(probe, name, url)
    return here
