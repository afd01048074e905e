"""Schemas as agents send them: formats nobody checks, and what a grammar can't say."""

from __future__ import annotations

from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from streamserve.errors import InvalidParameter
from streamserve.text.grammars.grammar import grammar_source
from streamserve.text.grammars.lark_rules import json_rule
from streamserve.text.schemas.weakening import weakened
from streamserve.types import StructuredOutputs

BYTES = LLTokenizer("byte")

BEYOND_GRAMMARS: dict[str, dict[str, Any]] = {
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "^a"}},
    "uniqueItems": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    "if": {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}},
    "not": {"type": "string", "not": {"const": "a"}},
    "contains": {"type": "array", "contains": {"const": 1}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "pattern": {"type": "string", "pattern": "^(?=.*a).+$"},
    "patternProperties": {"type": "object", "patternProperties": {"^(?!a)": {}}, "additionalProperties": False},
    "oneOf": {"oneOf": [{"type": "number", "minimum": 3}, {"type": "number", "multipleOf": 2}]},
}


def error_of(source: str) -> str:
    matcher = LLMatcher(BYTES, source, log_level=0)
    return str(matcher.get_error()) if matcher.is_error() else ""


@pytest.mark.parametrize("keyword", BEYOND_GRAMMARS)
def test_what_a_grammar_can_not_say_is_left_out_of_a_tool_and_named(keyword: str) -> None:
    schema = {"type": "object", "properties": {"x": BEYOND_GRAMMARS[keyword]}, "required": ["x"]}
    assert error_of(LLMatcher.grammar_from_lark(f"start: {json_rule(schema)}"))
    weak, left_out = weakened(schema)
    assert keyword in left_out
    assert not error_of(LLMatcher.grammar_from_lark(f"start: {json_rule(weak)}"))
    assert weak["required"] == ["x"]


def test_properties_that_are_named_like_keywords_stay() -> None:
    schema = {"type": "object", "properties": {"not": {"type": "string"}, "if": {"type": "integer"}}, "default": {"not": 1}}
    assert weakened(schema) == (schema, frozenset())


@pytest.mark.parametrize("format", ["color", "int32", "regex", "uri-reference"])
def test_formats_that_nobody_checks_are_annotations(format: str) -> None:
    outputs = StructuredOutputs(json={"type": "object", "properties": {"x": {"type": "string", "format": format}}})
    assert not error_of(grammar_source(outputs, {}))


@pytest.mark.parametrize("format", ["date", "uuid", "ipv4"])
def test_formats_that_the_library_checks_are_enforced(format: str) -> None:
    matcher = LLMatcher(BYTES, grammar_source(StructuredOutputs(json={"type": "string", "format": format}), {}))
    data = list(b'"hello"')
    assert matcher.try_consume_tokens(data) < len(data)


@pytest.mark.parametrize("keyword", ["uniqueItems", "not", "propertyNames"])
def test_as_an_answer_they_are_refused_by_name(keyword: str) -> None:
    try:
        error = error_of(grammar_source(StructuredOutputs(json=BEYOND_GRAMMARS[keyword]), {}))
    except InvalidParameter as refused:
        error = str(refused)
    assert keyword in error
