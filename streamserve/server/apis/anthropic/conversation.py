"""Messages of content blocks, as chat templates know them: text, reasoning, tool calls and their results.

Pure functions. Every mistake is named by its place. https://docs.anthropic.com/en/api/messages#body-messages
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from streamserve.errors import InvalidParameter, UnsupportedParameter
from streamserve.server.apis.openai.requests.messages import MAX_MESSAGES

Block = dict[str, Any]
ChatMessage = dict[str, Any]

ROLES = ("user", "assistant", "system")
_PARAGRAPH = "\n\n"


def ends_in_answer(messages: Sequence[dict[str, Any]]) -> bool:
    """Whether the last message is the beginning of the answer, which the model is to continue."""
    return bool(messages) and messages[-1].get("role") == "assistant"


def as_chat_messages(system: str | list[Block] | None, messages: Sequence[dict[str, Any]]) -> list[ChatMessage]:
    """The messages of the chat, the system's first; neighbours of one role are one turn.

    Raises `InvalidParameter` or `UnsupportedParameter` naming the block.
    """
    if not messages:
        raise InvalidParameter("messages", "must hold at least one message")
    if len(messages) > MAX_MESSAGES:
        raise InvalidParameter("messages", f"must be at most {MAX_MESSAGES}, got {len(messages)}")
    chat: list[ChatMessage] = []
    if system:
        chat.append({"role": "system", "content": _text("system", system)})
    for index, message in enumerate(messages):
        where, role = f"messages[{index}]", message.get("role")
        if role not in ROLES:
            raise InvalidParameter(f"{where}.role", "must be user or assistant; the system prompt is `system`")
        for turn in _assistant(where, message) if role == "assistant" else _turns(where, role, message):
            _append(chat, turn)
    if ends_in_answer(messages) and "tool_calls" in chat[-1]:
        raise InvalidParameter("messages", "a tool call must be followed by its result, in a message of the user")
    return chat


def _append(chat: list[ChatMessage], turn: ChatMessage) -> None:
    """Add a turn, to the one before where both are text of one role: many templates want the roles to take turns."""
    last = chat[-1] if chat else None
    if last is not None and last["role"] == turn["role"] != "tool" and "tool_calls" not in last:
        content = [text for text in (last.get("content"), turn.get("content")) if text]
        last.update({**turn, "content": _PARAGRAPH.join(content)})
    else:
        chat.append(turn)


def _turns(where: str, role: str, message: dict[str, Any]) -> list[ChatMessage]:
    """The messages of a user: results of tools each have their own, with the role that templates know."""
    turns: list[ChatMessage] = []
    for place, block in _blocks(where, message):
        if block.get("type") == "tool_result" and role == "user":
            turns.append(_result(place, block))
        else:
            _append(turns, {"role": role, "content": _text_of(place, block)})
    return turns


def _assistant(where: str, message: dict[str, Any]) -> list[ChatMessage]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for place, block in _blocks(where, message):
        match block.get("type"):
            case "thinking":
                thoughts.append(_string(place, block, "thinking"))
            case "redacted_thinking":
                continue
            case "tool_use":
                calls.append(_call(place, block))
            case _:
                texts.append(_text_of(place, block))
    turn: ChatMessage = {"role": "assistant", "content": "".join(texts) if texts or not calls else None}
    if thoughts:
        turn["reasoning_content"] = _PARAGRAPH.join(thoughts)
    if calls:
        turn["tool_calls"] = calls
    return [turn]


def _call(where: str, block: Block) -> dict[str, Any]:
    arguments = block.get("input", {})
    if not isinstance(arguments, dict):
        raise InvalidParameter(f"{where}.input", "must be an object")
    function = {"name": _string(where, block, "name"), "arguments": orjson.dumps(arguments).decode()}
    return {"id": _string(where, block, "id"), "type": "function", "function": function}


def _result(where: str, block: Block) -> ChatMessage:
    content = block.get("content") or ""
    text = _text(f"{where}.content", content)
    return {"role": "tool", "tool_call_id": _string(where, block, "tool_use_id"), "content": text}


def _blocks(where: str, message: dict[str, Any]) -> list[tuple[str, Block]]:
    """The blocks of a message with their places; a string is one block of text."""
    content = message.get("content")
    if isinstance(content, str):
        return [(f"{where}.content", {"type": "text", "text": content})]
    if not isinstance(content, list):
        raise InvalidParameter(f"{where}.content", "must be a string or an array of content blocks")
    blocks = [(f"{where}.content[{index}]", block) for index, block in enumerate(content)]
    for place, block in blocks:
        if not isinstance(block, dict):
            raise InvalidParameter(place, "must be an object with a type")
    return blocks


def _text(where: str, content: str | list[Block]) -> str:
    """The text of what may be a string or blocks of text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidParameter(where, "must be a string or an array of text blocks")
    return _PARAGRAPH.join(_text_of(f"{where}[{index}]", block) for index, block in enumerate(content))


def _text_of(where: str, block: Any) -> str:
    if not isinstance(block, dict):
        raise InvalidParameter(where, "must be an object with a type")
    kind = block.get("type")
    if kind == "text":
        return _string(where, block, "text")
    source = block.get("source")
    if kind == "document" and isinstance(source, dict) and source.get("type") == "text":
        return _string(f"{where}.source", source, "data")
    raise UnsupportedParameter(where, f"content of type {kind!r}: this server takes text only")


def _string(where: str, block: Block, name: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise InvalidParameter(f"{where}.{name}", "must be a string")
    return value
