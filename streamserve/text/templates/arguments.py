"""The arguments of an earlier tool call, for templates that write them as an object and for those that write them as text.

One value serves most templates of either kind. For those that call a string's methods, or refuse what is no string, there is a
conversation with texts instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


class CallArguments(dict[str, Any]):
    """The arguments' object, whose text is its JSON.

    `tojson`, loops and names see the object; output, `+`, numbers in brackets and comparisons with a string see the text.

    text  the JSON text as the client sent it
    """

    def __init__(self, arguments: Mapping[str, Any], text: str) -> None:
        super().__init__(arguments)
        self._text = text

    def __getitem__(self, key: Any) -> Any:
        return self._text[key] if isinstance(key, int | slice) else super().__getitem__(key)

    def __eq__(self, other: object) -> bool:
        return self._text == other if isinstance(other, str) else super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __str__(self) -> str:
        return self._text

    def __add__(self, after: str) -> str:
        return self._text + after

    def __radd__(self, before: str) -> str:
        return before + self._text


def arguments_as_text(conversation: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
    """The conversation with the text of each call's arguments; None when it has none as objects."""
    texts = [_message_with_texts(message) for message in conversation]
    return None if all(one is other for one, other in zip(texts, conversation, strict=True)) else texts


def _message_with_texts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    calls = message.get("tool_calls")
    texts = [_call_with_text(call) for call in calls] if isinstance(calls, list) else []
    changed = any(one is not other for one, other in zip(texts, calls or (), strict=True))
    return {**message, "tool_calls": texts} if changed else message


def _call_with_text(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(arguments, CallArguments):
        return call
    return {**call, "function": {**function, "arguments": str(arguments)}}


def parse_arguments(arguments: Any) -> Any:
    """`CallArguments` from an object or its JSON text, none at all included; anything else unchanged.

    Raises `ValueError` for text that is not JSON.
    """
    if isinstance(arguments, str | None):
        text = arguments or "{}"
        value = json.loads(text)
        return CallArguments(value, text) if isinstance(value, dict) else value
    if isinstance(arguments, Mapping):
        return CallArguments(arguments, json.dumps(arguments, ensure_ascii=False))
    return arguments
