"""Answers that may be text, JSON or calls: what their grammars allow, and that parsers read it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from streamserve.text.grammars.call_grammar import AnswerForm
from streamserve.text.parsing.answer import AnswerParser
from streamserve.text.parsing.dialects.known import CALL_FORMATS, REASONING_FORMATS
from streamserve.text.parsing.pieces import Content, ToolCallArguments, ToolCallStart
from streamserve.text.schemas.call_schema import ANY_ARGUMENTS, Function, call_schema

QWEN3, HERMES = REASONING_FORMATS["qwen3"], CALL_FORMATS["hermes"]
BYTES = LLTokenizer("byte")
STRICT = {"type": "object", "properties": {"x": {"$ref": "#/$defs/n"}}, "required": ["x"], "additionalProperties": False}
FUNCTIONS = [Function("a", {**STRICT, "$defs": {"n": {"type": "integer"}}}), Function("b", ANY_ARGUMENTS)]
ANSWER = {"type": "object", "properties": {"y": {"type": "boolean"}}, "required": ["y"], "additionalProperties": False}

A = {"name": "a", "arguments": {"x": 1}}
WRONG = {"name": "a", "arguments": {"x": "1"}}
B = {"name": "b", "arguments": {"anything": [1]}}


def is_allowed(form: AnswerForm, text: str) -> bool:
    """Whether `text` is a whole answer."""
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(form.lark()))
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return bool(matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting())


def tagged(*calls: dict[str, Any]) -> str:
    return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)


def bare(*calls: dict[str, Any]) -> str:
    return "; ".join(json.dumps({"name": call["name"], "parameters": call["arguments"]}) for call in calls)


def array(*calls: dict[str, Any]) -> str:
    return "[TOOL_CALLS] " + json.dumps(list(calls))


def named(*calls: dict[str, Any]) -> str:
    return "".join(f"[TOOL_CALLS]{call['name']}[ARGS]{json.dumps(call['arguments'])}" for call in calls)


WAYS = [("hermes", tagged), ("llama3_json", bare), ("mistral", array), ("mistral", named)]


@pytest.mark.parametrize(("dialect", "write"), WAYS, ids=["hermes", "llama3", "array", "named"])
def test_free_text_is_free_and_calls_keep_to_their_schemas(dialect: str, write: Any) -> None:
    form = AnswerForm(calls=CALL_FORMATS[dialect], functions=FUNCTIONS)
    for text in ("", "Hello, 1 < 2 [and] {so} on.\n", write(A), write(B), write(A, B, A)):
        assert is_allowed(form, text), text
    for text in (write(WRONG), write(A, WRONG), write({**A, "name": "c"}), write(A)[:-3]):
        assert not is_allowed(form, text), text
    assert not is_allowed(AnswerForm(calls=CALL_FORMATS[dialect], functions=FUNCTIONS, parallel=False), write(A, B))


@pytest.mark.parametrize(("dialect", "write"), WAYS, ids=["hermes", "llama3", "array", "named"])
def test_what_is_allowed_is_what_the_parser_reads(dialect: str, write: Any) -> None:
    parser = AnswerParser.of_calls(CALL_FORMATS[dialect], {function.name: function.arguments for function in FUNCTIONS})
    pieces = [*parser.push(write(A, B)), *parser.finish()]
    assert [piece.name for piece in pieces if isinstance(piece, ToolCallStart)] == ["a", "b"]
    texts = [
        "".join(piece.json for piece in pieces if isinstance(piece, ToolCallArguments) and piece.call == n) for n in (0, 1)
    ]
    assert [json.loads(text) for text in texts] == [A["arguments"], B["arguments"]]
    assert not any(isinstance(piece, Content) for piece in pieces)


def test_text_may_stand_before_marked_calls() -> None:
    for dialect, write in (("hermes", tagged), ("mistral", array)):
        assert is_allowed(AnswerForm(calls=CALL_FORMATS[dialect], functions=FUNCTIONS), "Let me see.\n" + write(A))


@pytest.mark.parametrize("write", [tagged, array])
def test_an_answer_is_json_or_calls(write: Any) -> None:
    form = AnswerForm(calls=CALL_FORMATS["hermes" if write is tagged else "mistral"], functions=FUNCTIONS, answer=ANSWER)
    for text in ('{"y": true}', write(A), write(A, B)):
        assert is_allowed(form, text), text
    for text in ("Hello", '{"y": 1}', write(WRONG), '{"y": true} ' + write(A)):
        assert not is_allowed(form, text), text


def test_reasoning_may_come_before_json_must_have_ended_or_can_not_come() -> None:
    thought = "hm, {\n</think>\n\n"
    may, has_begun, cannot = (AnswerForm(reasoning=QWEN3, answer=ANSWER, thinks=thinks) for thinks in (False, True, None))
    assert is_allowed(may, "<think>\n" + thought + '{"y": true}')
    assert is_allowed(may, '{"y": true}')
    assert not is_allowed(may, thought + '{"y": true}')
    assert is_allowed(has_begun, thought + '{"y": true}')
    assert not is_allowed(has_begun, '{"y": true}')
    assert is_allowed(cannot, '{"y": true}')
    assert not is_allowed(cannot, "<think>\n" + thought + '{"y": true}')


@pytest.mark.parametrize("dialect", ["hermes", "llama3_json", "mistral"])
def test_marks_that_are_special_tokens_are_named_by_their_ids(dialect: str) -> None:
    special = dict.fromkeys((*CALL_FORMATS[dialect].marks, "<think>", "</think>"), 7)
    for answer in (None, ANSWER):
        source = AnswerForm(
            calls=CALL_FORMATS[dialect],
            functions=FUNCTIONS,
            answer=answer,
            thinks=False,
            special=special,
            reasoning=QWEN3,
        ).lark()
        assert not any(mark in source for mark in special)
        assert "<[7]>" in source


def test_references_in_properties_that_are_named_like_keywords_move_along() -> None:
    """A function whose parameter was called `default` or `enum` and had a `$ref` got a schema that could not be compiled."""
    names = ("default", "enum", "const", "examples", "properties", "$defs", "$id")
    arguments = {
        "type": "object",
        "properties": {name: {"$ref": "#/$defs/city"} for name in names},
        "$defs": {"city": {"type": "string", "default": {"$ref": "#/kept"}, "enum": [{"$ref": "#/kept"}]}},
    }
    _, definitions = call_schema([Function("f", arguments)], "arguments")
    moved = definitions["0"]
    assert moved["properties"] == {name: {"$ref": "#/$defs/0/$defs/city"} for name in names}
    assert moved["$defs"] == arguments["$defs"]


def test_identifiers_and_anchors_of_a_functions_parameters_lead_to_the_same_places() -> None:
    arguments = {
        "$id": "https://example.org/weather",
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "a": {"$ref": "#/$defs/city"},
            "b": {"$ref": "#town"},
            "c": {"$ref": "https://example.org/weather#/$defs/city"},
            "d/e": {"$anchor": "here", "type": "string"},
            "f": {"$ref": "#here"},
            "g": {"$ref": "#"},
            "h": {"$ref": "https://example.org/other"},
        },
        "$defs": {"city": {"$anchor": "town", "type": "string"}},
    }
    _, definitions = call_schema([Function("x", {}), Function("f", arguments)], "arguments")
    moved = definitions["1"]
    assert {name: schema.get("$ref") for name, schema in moved["properties"].items()} == {
        "a": "#/$defs/1/$defs/city",
        "b": "#/$defs/1/$defs/city",
        "c": "#/$defs/1/$defs/city",
        "d/e": None,
        "f": "#/$defs/1/properties/d~1e",
        "g": "#/$defs/1",
        "h": "https://example.org/other",
    }
    assert moved["$defs"] == {"city": {"type": "string"}}
    assert "$id" not in moved


def test_tools_that_name_their_parts_alike_keep_them_apart() -> None:
    """References of a tool's parameters to their own names, relative to one another, led nowhere, or into another tool's."""

    def arguments(kind: str) -> dict[str, Any]:
        return {
            "$id": "https://example.org/tool",
            "type": "object",
            "properties": {"part": {"$ref": "part"}, "again": {"$ref": "https://example.org/part#inner"}},
            "$defs": {"p": {"$id": "part", "$ref": "#/$defs/q", "$defs": {"q": {"$anchor": "inner", "type": kind}}}},
        }

    form = AnswerForm(calls=HERMES, functions=[Function("a", arguments("string")), Function("b", arguments("integer"))])
    for name, value in (("a", "x"), ("b", 1)):
        other = 1 if value == "x" else "x"
        for key in ("part", "again"):
            assert is_allowed(form, tagged({"name": name, "arguments": {key: value}}))
            assert not is_allowed(form, tagged({"name": name, "arguments": {key: other}}))


@pytest.mark.parametrize(("dialect", "write"), WAYS, ids=["hermes", "llama3", "array", "named"])
def test_names_that_are_no_ascii_are_found(dialect: str, write: Any) -> None:
    schema = {**ANSWER, "properties": {"y": {"$ref": "#/$defs/对"}}, "$defs": {"对": {"type": "boolean"}}}
    form = AnswerForm(calls=CALL_FORMATS[dialect], functions=[Function("a", schema)])
    assert is_allowed(form, write({"name": "a", "arguments": {"y": True}}))
    assert not is_allowed(form, write({"name": "a", "arguments": {"y": 1}}))
    if dialect != "llama3_json":
        assert is_allowed(AnswerForm(calls=CALL_FORMATS[dialect], functions=FUNCTIONS, answer=schema), '{"y": true}')
