"""Input items of the Responses API: as they are kept and listed, and as the chat messages that a model reads.

Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from streamserve.errors import InvalidParameter, UnsupportedParameter

Item = dict[str, Any]
ChatMessage = dict[str, Any]

ROLES = ("user", "assistant", "system", "developer")
_TEXT_PARTS = ("input_text", "output_text", "text")


def as_items(input: str | Sequence[Item]) -> list[Item]:
    """The input as items with ids. Raises `InvalidParameter` or `UnsupportedParameter` naming the item."""
    if isinstance(input, str):
        return [_message("user", [{"type": "input_text", "text": input}])]
    if not input:
        raise InvalidParameter("input", "must hold at least one item")
    return [_as_item(f"input[{index}]", item) for index, item in enumerate(input)]


def as_messages(items: Sequence[Item]) -> list[ChatMessage]:
    """The chat messages that items mean. Reasoning is left out, as chat templates leave out that of earlier turns."""
    messages: list[ChatMessage] = []
    for item in items:
        kind = item["type"]
        if kind == "message":
            messages.append({"role": item["role"], "content": "".join(part["text"] for part in item["content"])})
        elif kind == "function_call":
            _add_call(messages, item)
        elif kind == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
    return messages


def _as_item(where: str, item: Item) -> Item:
    kind = item.get("type", "message")
    if kind == "message":
        return _as_message(where, item)
    if kind == "function_call":
        strings = {name: _string(where, item, name) for name in ("call_id", "name", "arguments")}
        return {"id": item.get("id") or f"fc_{uuid4().hex}", "type": kind, "status": "completed", **strings}
    if kind == "function_call_output":
        output = item.get("output")
        text = output if isinstance(output, str) else "".join(part["text"] for part in _text_parts(f"{where}.output", output))
        call_id = _string(where, item, "call_id")
        return {"id": item.get("id") or f"fco_{uuid4().hex}", "type": kind, "call_id": call_id, "output": text}
    if kind == "reasoning":
        return {**item, "id": item.get("id") or f"rs_{uuid4().hex}"}
    raise UnsupportedParameter(where, f"items of type {kind!r}: this server takes messages, function calls and their outputs")


def _as_message(where: str, item: Item) -> Item:
    role = item.get("role")
    if role not in ROLES:
        raise InvalidParameter(f"{where}.role", f"must be one of {', '.join(ROLES)}")
    content = item.get("content")
    kind = "output_text" if role == "assistant" else "input_text"
    parts = [{"text": content}] if isinstance(content, str) else _text_parts(f"{where}.content", content)
    return _message(role, [{"type": kind, "text": part["text"]} for part in parts], item.get("id"))


def _message(role: str, content: list[Item], id: str | None = None) -> Item:
    return {"id": id or f"msg_{uuid4().hex}", "type": "message", "status": "completed", "role": role, "content": content}


def _text_parts(where: str, content: Any) -> list[Item]:
    if not isinstance(content, list):
        raise InvalidParameter(where, "must be a string or an array of text parts")
    for index, part in enumerate(content):
        if not isinstance(part, dict):
            raise InvalidParameter(f"{where}[{index}]", "must be an object with a type")
        if part.get("type") not in _TEXT_PARTS:
            raise UnsupportedParameter(
                f"{where}[{index}]", f"content of type {part.get('type')!r}: this server takes text only"
            )
        _string(f"{where}[{index}]", part, "text")
    return content


def _string(where: str, item: Item, name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise InvalidParameter(f"{where}.{name}", "must be a string")
    return value


def _add_call(messages: list[ChatMessage], item: Item) -> None:
    """Calls of one turn are one message to a template, together with the content before them."""
    call = {"id": item["call_id"], "type": "function", "function": {"name": item["name"], "arguments": item["arguments"]}}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    messages[-1].setdefault("tool_calls", []).append(call)
