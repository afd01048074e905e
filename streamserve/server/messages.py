"""Chat messages as clients send them, checked so that a mistake is named by its place before a template sees it."""

from __future__ import annotations

from typing import Any

from streamserve.errors import InvalidParameter, UnsupportedParameter

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
TEXT_PARTS = frozenset({"text", "input_text", "output_text"})


def checked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages for a template, which knows "developer" by its older name "system".

    Raises `InvalidParameter` naming the message, or `UnsupportedParameter` for anything but text.
    """
    if not messages:
        raise InvalidParameter("messages", "must hold at least one message")
    for index, message in enumerate(messages):
        _check(f"messages[{index}]", message)
    return [{**message, "role": "system"} if message["role"] == "developer" else message for message in messages]


def _check(where: str, message: dict[str, Any]) -> None:
    role = message.get("role")
    if role not in ROLES:
        raise InvalidParameter(f"{where}.role", f"must be one of {', '.join(ROLES)}")
    content = message.get("content")
    if content is None and role != "assistant":
        raise InvalidParameter(f"{where}.content", "is required")
    if isinstance(content, list):
        for index, part in enumerate(content):
            _check_part(f"{where}.content[{index}]", part)
    elif not isinstance(content, str | None):
        raise InvalidParameter(f"{where}.content", "must be a string or an array of text parts")


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
