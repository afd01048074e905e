"""Copies of what clients send, for templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def json_copy(value: Any) -> Any:
    """A copy of JSON's types only: other objects may have methods that the sandbox does not check."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): json_copy(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [json_copy(item) for item in value]
    return str(value)
