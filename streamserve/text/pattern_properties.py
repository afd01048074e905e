"""Declared properties that a pattern of their object makes impossible, which llguidance finds out in the middle of a text.

Pure functions over JSON schemas; they run on the threads that compile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from llguidance import LLMatcher, LLTokenizer

_DEFINITIONS = ("$defs", "definitions")
_DATA_WORDS = ("const", "enum", "default", "examples")
_UNSATISFIABLE = re.compile(r"required property '(.*?)' is unsatisfiable")


def impossible_property(tokenizer: LLTokenizer, schema: Any) -> str | None:
    """The name of a property whose schema contradicts that of a pattern its name matches; None when there is none."""
    if not isinstance(schema, Mapping):
        return None
    definitions = {word: schema[word] for word in _DEFINITIONS if word in schema}
    for owner in _with_patterns(schema):
        declared = {name: each for name, each in owner["properties"].items() if each is not False}
        # Required, they are all checked by compiling once.
        alone = {"type": "object", "patternProperties": owner["patternProperties"], "required": list(declared)}
        matcher = LLMatcher(
            tokenizer, LLMatcher.grammar_from_json_schema({**definitions, **alone, "properties": declared}), log_level=0
        )
        found = _UNSATISFIABLE.search(matcher.get_error()) if matcher.is_error() else None
        if found is not None:
            return found[1]
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
