"""The documents of /compute: request, usage, chunk, response; checked once, at the door.

What a model's server makes of an input is the provider's business; here only its outline is looked at.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from agentfs.budget import check_usd
from agentfs.errors import error

TIMEOUT_MAX_MS: Final = 3_600_000
KEY_MAX: Final = 200  # characters of an idempotency key
DEPTH_MAX: Final = 100  # brackets within brackets of an input
KINDS: Final = ("chat", "complete", "embeddings", "image_generate", "image_analyze", "transcribe", "speak")
CUSTOM: Final = "custom:"


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens as the provider counted them."""

    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Both together."""
        return self.input_tokens + self.output_tokens

    def shown(self) -> dict[str, int]:
        """The object ``usage`` of responses and chunks."""
        return {**msgspec.to_builtins(self), "total_tokens": self.total_tokens}


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ComputeRequest: the document written to ``compute/new``; amounts are micro-USD.

    ``model`` "" takes any; ``PROVIDER/MODEL`` names the provider too. ``max_tokens`` and the like go into ``input``.
    ``api_key`` is the caller's own key for the provider: used for this request, never stored.
    """

    input: dict[str, Any]
    model: str = ""
    kind: str = "chat"
    stream: bool = False
    timeout_ms: int = 120_000
    idempotency_key: str = ""
    max_cost_usd: int | None = None
    api_key: str = ""

    def kept(self) -> Request:
        """What of it may be stored and shown."""
        return msgspec.structs.replace(self, api_key="")


def parse(doc: bytes) -> Request:
    """*doc* as a `Request`. EINVAL naming the field."""
    try:
        request = msgspec.json.decode(doc, type=Request)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise error(errno.EINVAL, detail=f"request: {exc}") from None  # its context holds the document
    if not 0 < request.timeout_ms <= TIMEOUT_MAX_MS:
        raise _wrong("timeout_ms", f"want 1..{TIMEOUT_MAX_MS}")
    if len(request.idempotency_key) > KEY_MAX:
        raise _wrong("idempotency_key", f"over {KEY_MAX} characters")
    if request.max_cost_usd is not None:
        check_usd("max_cost_usd", request.max_cost_usd)
    if request.kind not in KINDS and not _is_custom(request.kind):
        raise _wrong("kind", f"want one of {' '.join(KINDS)}, or {CUSTOM}NAME")
    if request.stream and request.kind not in ("chat", "complete", "image_analyze"):
        raise _wrong("stream", f"{request.kind} has no stream")
    if not is_key(request.api_key):
        raise _wrong("api_key", "want printable ASCII without spaces")
    _depth(request.input, DEPTH_MAX)
    _decided(request.input)
    for check in _CHECKS.get(request.kind, ()):
        check(request.input)
    return request


def _decided(given: Mapping[str, Any]) -> None:
    """What a server would take from the input, and the runtime has to decide: which model is asked, and how often."""
    for name in ("model", "models", "stream", "stream_options"):
        if name in given:
            raise _wrong(f"input.{name}", "belongs beside the input, if anywhere")
    for name in ("n", "best_of"):
        if given.get(name, 1) != 1:
            raise _wrong(f"input.{name}", "one answer a request")


def is_key(key: str) -> bool:
    """Whether *key* can be a key: in a header anything else would be refused in words that show it."""
    return key.isascii() and key.isprintable() and " " not in key


def _depth(value: Any, left: int) -> None:
    if not left:
        raise _wrong("input", f"nested deeper than {DEPTH_MAX}")
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _depth(each, left - 1)


def _is_custom(kind: str) -> bool:
    name = kind.removeprefix(CUSTOM)
    return name != kind and name.isascii() and name.replace("_", "").replace("/", "").isalnum()


def _wrong(name: str, why: str) -> OSError:
    return error(errno.EINVAL, detail=f"{name}: {why}")


def _text(name: str) -> Callable[[Mapping[str, Any]], None]:
    def check(given: Mapping[str, Any]) -> None:
        if not isinstance(given.get(name), str) or not given[name]:
            raise _wrong(f"input.{name}", "want a text")

    return check


def _messages(given: Mapping[str, Any]) -> None:
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("input.messages", "want a list of {role, content}")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _wrong(f"input.messages[{place}]", "want {role, content}")


def _texts(given: Mapping[str, Any]) -> None:
    texts = given.get("texts", [given["text"]] if "text" in given else [])
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise _wrong("input", "want text, or texts: a list of texts")
    if "text" in given and "texts" in given:
        raise _wrong("input", "want text or texts, not both")


_CHECKS: Final[dict[str, tuple[Callable[[Mapping[str, Any]], None], ...]]] = {
    "chat": (_messages,), "complete": (_text("prompt"),), "embeddings": (_texts,), "image_generate": (_text("prompt"),),
    "image_analyze": (_text("prompt"), _text("image")), "transcribe": (_text("audio"),), "speak": (_text("text"),),
}  # fmt: skip


def family(kind: str) -> str:
    """*kind* as providers name what they can: all of ``custom:NAME`` are one."""
    return CUSTOM if kind.startswith(CUSTOM) else kind


def texts_of(given: Mapping[str, Any]) -> list[str]:
    """The texts of an embeddings input."""
    return list(given["texts"]) if "texts" in given else [given["text"]]


def split_model(model: str, providers: Mapping[str, object]) -> tuple[str, str]:
    """Provider and model of ``PROVIDER/MODEL``; "" for the provider where the first part is none's name."""
    head, slash, rest = model.partition("/")
    return (head, rest) if slash and head in providers else ("", model)
