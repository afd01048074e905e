"""A checkpoint's own `response_template`, as transformers documents it, in the words of formats.

https://huggingface.co/docs/transformers/chat_response_parsing. What stands between literal marks is read: reasoning, and calls
as JSON that a `transform` says the keys of. Templates with expressions for marks are left to the marks of the chat template.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamserve.text.parsing.formats import CallFormat, CallList, ObjectCall, ReasoningFormat

_REASONING_FIELDS = ("thinking", "reasoning_content", "reasoning")


def formats_of(template: Any) -> tuple[CallFormat | None, ReasoningFormat | None]:
    """The formats of calls and of reasoning that a template describes; None for what it doesn't, or not in these words."""
    fields = template.get("fields") if isinstance(template, Mapping) else None
    if not isinstance(fields, Mapping) or template.get("version", 1) != 1:
        return None, None
    reasoning = next((fields[name] for name in _REASONING_FIELDS if isinstance(fields.get(name), Mapping)), None)
    calls = fields.get("tool_calls")
    return (
        _calls(calls) if isinstance(calls, Mapping) else None,
        None if reasoning is None else _reasoning(reasoning),
    )


def _reasoning(field: Mapping[str, Any]) -> ReasoningFormat | None:
    opens, closes = _literals(field.get("open")), _literals(field.get("close"))
    return ReasoningFormat(opens=opens, closes=closes) if opens and closes else None


def _calls(field: Mapping[str, Any]) -> CallFormat | None:
    opens, closes = _literals(field.get("open")), _literals(field.get("close"))
    if not opens or field.get("content") != "json" or field.get("content_args"):
        return None
    call = _object(field.get("transform"))
    if call is None:
        return None
    is_array = bool(field.get("transform_each"))
    calls = CallList(call=call, opens="[", separator=",", closes="]") if is_array else CallList(call=call)
    return CallFormat(opens=opens, closes=closes, lists=(calls,))


def _object(transform: Any) -> ObjectCall | None:
    """The keys of the object that a transform makes a call of: `{"function": "{content}"}`, or a placeholder for each key."""
    function = transform.get("function") if isinstance(transform, Mapping) else None
    if function == "{content}":
        return ObjectCall()
    if not isinstance(function, Mapping):
        return None
    name, arguments = (_placeholder(function.get(key)) for key in ("name", "arguments"))
    return ObjectCall(name_key=name, arguments_key=arguments) if name and arguments else None


def _placeholder(text: Any) -> str | None:
    if isinstance(text, str) and text.startswith("{") and text.endswith("}") and text != "{content}":
        return text[1:-1]
    return None


def _literals(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())
