"""Input items of the Responses API: as they are kept and listed, and as the chat messages that a model reads.

Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamserve.errors import InvalidParameter, UnsupportedParameter
from streamserve.server.apis.openai.requests.messages import MAX_MESSAGES
from streamserve.server.apis.responses.compacted import summary_of
from streamserve.server.apis.responses.ids import input_id

Item = dict[str, Any]
ChatMessage = dict[str, Any]

ROLES = ("user", "assistant", "system", "developer")
REFERENCE = "item_reference"
COMPACTION = "compaction"
_TEXT_PARTS = ("input_text", "output_text", "text")
_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs", COMPACTION: "cmp"}


def referenced_ids(input: str | Sequence[Item] | None) -> list[str]:
    """The ids of the items that an input refers to. Raises `InvalidParameter` naming the reference."""
    if not isinstance(input, list):
        return []
    if len(input) > MAX_MESSAGES:
        raise InvalidParameter("input", f"must be at most {MAX_MESSAGES} items, got {len(input)}")
    return [_string(f"input[{index}]", item, "id") for index, item in enumerate(input) if _is_reference(item)]


def as_items(input: str | Sequence[Item] | None, response_id: str, referenced: Mapping[str, Item]) -> list[Item]:
    """The input as items with ids, in place of references what they refer to.

    response_id  of the response that answers it
    referenced   items by id

    Raises `InvalidParameter` or `UnsupportedParameter` naming the item.
    """
    items = [{"role": "user", "content": input}] if isinstance(input, str) else input or []
    return [
        referenced[item["id"]] if _is_reference(item) else _with_id(_as_item(f"input[{index}]", item), item, response_id, index)
        for index, item in enumerate(items)
    ]


def as_messages(items: Sequence[Item]) -> list[ChatMessage]:
    """The chat messages that items mean. Reasoning is left out, as chat templates leave out that of earlier turns.

    The summary of a compaction begins the user's message that follows: many templates want the roles to take turns.
    """
    messages: list[ChatMessage] = []
    ends_in_summary = False
    for item in items:
        kind = item["type"]
        if kind == "message":
            text = "".join(part["text"] for part in item["content"])
            if ends_in_summary and item["role"] == "user":
                messages[-1]["content"] += f"\n\n{text}"
            else:
                messages.append({"role": item["role"], "content": text})
        elif kind == COMPACTION:
            messages.append({"role": "user", "content": summary_of("input", item["encrypted_content"])})
        elif kind == "function_call":
            _add_call(messages, item)
        elif kind == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
        ends_in_summary = kind == COMPACTION
    return messages


def require_calls(items: Sequence[Item], history: Sequence[ChatMessage]) -> None:
    """Raise `InvalidParameter` for an output of a function that was not called before, in these items or in `history`."""
    if not any(item["type"] == "function_call_output" for item in items):
        return
    known = {call["id"] for message in history for call in message.get("tool_calls", ())}
    for index, item in enumerate(items):
        if item["type"] == "function_call":
            known.add(item["call_id"])
        elif item["type"] == "function_call_output" and item["call_id"] not in known:
            raise InvalidParameter(f"input[{index}].call_id", f"no function call {item['call_id']!r} comes before its output")


def message_item(role: str, text: str) -> Item:
    """A message without an id."""
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "status": "completed", "role": role, "content": [{"type": kind, "text": text}]}


def _is_reference(item: Item) -> bool:
    """Whether an item refers to another one; the API lets clients leave its type out."""
    kind = item.get("type")
    return kind == REFERENCE or (kind is None and "id" in item and "role" not in item and "content" not in item)


def _with_id(item: Item, given: Item, response_id: str, index: int) -> Item:
    return {"id": given.get("id") or input_id(_PREFIXES[item["type"]], response_id, index), **item}


def _as_item(where: str, item: Item) -> Item:
    """An item as it is kept, but for its id."""
    kind = item.get("type") or "message"
    if not isinstance(item.get("id"), str | None):
        raise InvalidParameter(f"{where}.id", "must be a string")
    if kind == "message":
        return _as_message(where, item)
    if kind == "function_call":
        strings = {name: _string(where, item, name) for name in ("call_id", "name", "arguments")}
        return {"type": kind, "status": "completed", **strings}
    if kind == "function_call_output":
        output = item.get("output")
        text = output if isinstance(output, str) else "".join(part["text"] for part in _text_parts(f"{where}.output", output))
        return {"type": kind, "call_id": _string(where, item, "call_id"), "output": text}
    if kind == "reasoning":
        return {name: value for name, value in item.items() if name != "id"}
    if kind == COMPACTION:
        content = _string(where, item, "encrypted_content")
        summary_of(f"{where}.encrypted_content", content)
        return {"type": kind, "encrypted_content": content}
    known = "messages, function calls and their outputs, reasoning, references and compactions"
    raise UnsupportedParameter(where, f"items of type {kind!r}: this server takes {known}")


def _as_message(where: str, item: Item) -> Item:
    role = item.get("role")
    if role not in ROLES:
        raise InvalidParameter(f"{where}.role", f"must be one of {', '.join(ROLES)}")
    content = item.get("content")
    if isinstance(content, str):
        return message_item(role, content)
    kind = "output_text" if role == "assistant" else "input_text"
    parts = [{"type": kind, "text": part["text"]} for part in _text_parts(f"{where}.content", content)]
    return {**message_item(role, ""), "content": parts}


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
