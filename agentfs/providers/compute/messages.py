"""Messages of /compute, which have OpenAI's form, as Anthropic's Messages API wants them, and its blocks back.

Pure: it asks nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from agentfs.compute.port import Task, Unserved

TOKENS: Final = 4096
"""How many tokens may come out where neither the request nor its budget says; the API wants a number."""
_RENAMED: Final = frozenset(
    {"messages", "tools", "tool_choice", "stop", "max_tokens", "max_completion_tokens", "prompt", "image", "stream"}
)
_CHOICES: Final = {"auto": "auto", "none": "none", "required": "any"}


def document(task: Task) -> dict[str, Any]:
    """The body for ``POST /messages``. `Unserved` ("refused") names what of the input has another form."""
    given = task.input
    messages = given["messages"] if task.kind == "chat" else [_looking(given)]
    try:
        turns = _turns(messages)
        system = _system(given, messages)
        tools = {"tools": [_tool(tool) for tool in given["tools"]]} if given.get("tools") else {}
        choice = {"tool_choice": _choice(given["tool_choice"])} if given.get("tool_choice") else {}
    except (AttributeError, KeyError, TypeError) as exc:
        raise Unserved("refused", f"input: not a chat as OpenAI has it: {type(exc).__name__}") from None
    rest = {name: value for name, value in given.items() if name not in _RENAMED}
    stop = given.get("stop")
    stops = {"stop_sequences": [stop] if isinstance(stop, str) else stop} if stop else {}
    most = {"max_tokens": _most(task)}
    return {**rest, "model": task.model, "messages": turns, **most, **system, **tools, **choice, **stops}


def _most(task: Task) -> int:
    asked = task.input.get("max_completion_tokens", task.input.get("max_tokens"))
    wanted = asked if isinstance(asked, int) else None
    if task.max_tokens is None:
        return TOKENS if wanted is None else wanted
    return min(task.max_tokens, TOKENS if wanted is None else wanted)


def _system(given: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is said before the talk, in blocks."""
    own = given.get("system")
    blocks = [{"type": "text", "text": own}] if isinstance(own, str) else list(own or [])
    for message in messages:
        if message["role"] in ("system", "developer"):
            blocks += _blocks(message.get("content"))
    return {"system": blocks} if blocks else {}


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The talk: results of tools that follow each other are one turn, and a turn without content is none."""
    turns: list[dict[str, Any]] = []
    is_result = False
    for place, message in enumerate(messages):
        role, was_result = message["role"], is_result
        is_result = role == "tool"
        if role == "tool":
            held = message.get("content")
            content = held if isinstance(held, str) else _blocks(held)
            block = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": content}
            if was_result:
                turns[-1]["content"].append(block)
            else:
                turns.append({"role": "user", "content": [block]})
        elif role == "assistant":
            calls = [_use(call, place) for call in message.get("tool_calls") or []]
            turns.append({"role": role, "content": [*_blocks(message.get("content")), *calls]})
        elif role not in ("system", "developer"):
            turns.append({"role": role, "content": _blocks(message.get("content"))})
    return [turn for turn in turns if turn["content"]]


def _blocks(content: Any) -> list[Any]:
    """Content as blocks; a text without a word is none, for the API takes no such block."""
    if content is None or (isinstance(content, str) and not content.strip()):
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [_picture(part["image_url"]["url"]) if part.get("type") == "image_url" else part for part in content]


def _picture(url: str) -> dict[str, Any]:
    head, comma, data = url.partition(",")
    if not (comma and head.startswith("data:")):
        return {"type": "image", "source": {"type": "url", "url": url}}
    kind = head.removeprefix("data:").partition(";")[0] or "image/png"
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


def _looking(given: Mapping[str, Any]) -> dict[str, Any]:
    """The one message of an image_analyze input: a picture by its URL or as base64, and what is asked of it."""
    image = given["image"]
    url = image if image.startswith(("http:", "https:", "data:")) else f"data:image/png;base64,{image}"
    text = {"type": "text", "text": given["prompt"]}
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, text]}


def _use(call: Mapping[str, Any], place: int) -> dict[str, Any]:
    function = call["function"]
    try:
        given = msgspec.json.decode(function.get("arguments") or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        where = f"input.messages[{place}].tool_calls"
        raise Unserved("refused", f"{where}: arguments: want a JSON object") from None
    return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": given}


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool in OpenAI's form; any other is passed on as it is."""
    if tool.get("type") != "function":
        return tool
    function = tool["function"]
    about = {"description": function["description"]} if function.get("description") else {}
    empty = {"type": "object", "properties": {}}
    return {"name": function["name"], **about, "input_schema": function.get("parameters") or empty}


def _choice(given: Any) -> Any:
    if isinstance(given, str):
        return {"type": _CHOICES.get(given, given)}
    return {"type": "tool", "name": given["function"]["name"]} if given.get("type") == "function" else given


def spoken(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The assistant's message that *blocks* are: text, thoughts and tool calls, in OpenAI's form."""
    text = "".join(str(block["text"]) for block in blocks if block["type"] == "text")
    thoughts = "".join(str(block["thinking"]) for block in blocks if block["type"] == "thinking")
    calls = [_called(block) for block in blocks if block["type"] == "tool_use"]
    return {
        "role": "assistant", **({"content": text} if text else {}),
        **({"reasoning_content": thoughts} if thoughts else {}), **({"tool_calls": calls} if calls else {}),
    }  # fmt: skip


def _called(block: Mapping[str, Any]) -> dict[str, Any]:
    given = block["input"]
    arguments = given if isinstance(given, str) else msgspec.json.encode(given).decode()
    return {"id": block["id"], "type": "function", "function": {"name": block["name"], "arguments": arguments}}
