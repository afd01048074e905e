"""The arguments of an earlier tool call, for templates that write them as an object and for those that write them as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class CallArguments(dict[str, Any]):
    """The arguments' object, whose text is its JSON: `tojson` and loops see the object, output and `+` the text.

    text  the JSON text as the client sent it
    """

    def __init__(self, arguments: Mapping[str, Any], text: str) -> None:
        super().__init__(arguments)
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __add__(self, after: str) -> str:
        return self._text + after

    def __radd__(self, before: str) -> str:
        return before + self._text


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
