"""Declared properties that a pattern of their object makes impossible, which llguidance finds out in the middle of a text.

Pure functions over JSON schemas; they run on the threads that compile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llguidance import LLMatcher, LLTokenizer

_DEFINITIONS = ("$defs", "definitions")
_DATA_WORDS = ("const", "enum", "default", "examples")


def impossible_property(tokenizer: LLTokenizer, schema: Any) -> str | None:
    """The name of a property whose schema contradicts that of a pattern its name matches; None when there is none."""
    if not isinstance(schema, Mapping):
        return None
    definitions = {word: schema[word] for word in _DEFINITIONS if word in schema}
    for owner in _with_patterns(schema):
        for name, declared in owner["properties"].items():
            alone = {
                **definitions,
                "type": "object",
                "properties": {name: declared},
                "patternProperties": owner["patternProperties"],
                "required": [name],
            }
            if declared is not False and _is_unsatisfiable(tokenizer, alone):
                return str(name)
    return None


def _with_patterns(schema: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(schema, list):
        for item in schema:
            yield from _with_patterns(item)
    if not isinstance(schema, Mapping):
        return
    if isinstance(schema.get("properties"), Mapping) and isinstance(schema.get("patternProperties"), Mapping):
        yield schema
    for key, value in schema.items():
        if key not in _DATA_WORDS:
            yield from _with_patterns(value)


def _is_unsatisfiable(tokenizer: LLTokenizer, schema: dict[str, Any]) -> bool:
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(schema), log_level=0)
    return bool(matcher.is_error() and "nsatisfiable" in matcher.get_error())
