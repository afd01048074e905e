"""Chat messages as clients send them, checked so that a mistake is named by its place before a template sees it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from streamserve.errors import InvalidParameter, UnsupportedParameter
from streamserve.server.http.bodies.request_body import unfit

WITHOUT_CALLS = frozenset({"system", "developer", "user", "tool", "function"})
"""The API's own roles of messages that have content and hold no calls; of any other role the template decides."""

MAX_MESSAGES = 8192
"""Messages of one request."""

TEXT_PARTS = frozenset({"text", "input_text", "output_text"})


def checked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages for a template, which knows "developer" by its older name "system".

    Raises `InvalidParameter` naming the message, or `UnsupportedParameter` for anything but text.
    """
    if not messages:
        raise InvalidParameter("messages", "must hold at least one message")
    if len(messages) > MAX_MESSAGES:
        raise InvalidParameter("messages", f"must be at most {MAX_MESSAGES}, got {len(messages)}")
    return [_checked(f"messages[{index}]", message) for index, message in enumerate(messages)]


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message that has been checked."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else part["text"] for part in content)


def _checked(where: str, message: dict[str, Any]) -> dict[str, Any]:
    _check(where, message)
    # Clients send back what they got, with null for what it did not have; templates ask whether a field is there.
    known = {name: value for name, value in message.items() if value is not None and (name != "tool_calls" or value)}
    if "tool_calls" in known:
        known["tool_calls"] = [_call(f"{where}.tool_calls[{index}]", call) for index, call in enumerate(known["tool_calls"])]
    return {**known, "role": "system"} if known["role"] == "developer" else known


def _check(where: str, message: dict[str, Any]) -> None:
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidParameter(
            f"{where}.role", "must be a string: system, developer, user, assistant, tool or one of the model's"
        )
    content = message.get("content")
    if content is None and role in WITHOUT_CALLS:
        raise InvalidParameter(f"{where}.content", "is required")
    if isinstance(content, list):
        for index, part in enumerate(content):
            _check_part(f"{where}.content[{index}]", part)
    elif not isinstance(content, str | None):
        raise InvalidParameter(f"{where}.content", "must be a string or an array of text parts")
    for name in ("tool_call_id", "name", "reasoning", "reasoning_content"):
        if not isinstance(message.get(name), str | None):
            raise InvalidParameter(f"{where}.{name}", "must be a string")
    calls = message.get("tool_calls")
    if calls and role in WITHOUT_CALLS:
        raise InvalidParameter(f"{where}.tool_calls", "belongs into messages of the assistant")
    if not isinstance(calls, list | None):
        raise InvalidParameter(f"{where}.tool_calls", "must be an array")


def _call(where: str, call: Any) -> dict[str, Any]:
    """A tool call of an earlier answer, whose arguments have been checked to be an object, or the text of one."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidParameter(f"{where}.function", "must be an object with the name of a function")
    if not isinstance(call.get("id"), str | None):
        raise InvalidParameter(f"{where}.id", "must be a string")
    _check_arguments(f"{where}.function.arguments", function.get("arguments"))
    return {**call, "type": "function", "function": {**function, "arguments": function.get("arguments") or "{}"}}


def _check_arguments(where: str, value: Any) -> None:
    try:
        arguments = json.loads(value or "{}") if isinstance(value, str | None) else value
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(where, f"must be the text of a JSON object: {error}") from None
    if not isinstance(arguments, dict):
        raise InvalidParameter(where, "must be the text of a JSON object")
    if (reason := unfit(arguments)) is not None:
        raise InvalidParameter(where, reason)


def _check_part(where: str, part: Any) -> None:
    if isinstance(part, str):
        return
    if not isinstance(part, dict):
        raise InvalidParameter(where, "must be an object with a type")
    kind = part.get("type", "text")
    if kind not in TEXT_PARTS:
        raise UnsupportedParameter(where, f"content of type {kind!r}: this server takes text only")
    if not isinstance(part.get("text"), str):
        raise InvalidParameter(f"{where}.text", "must be a string")
