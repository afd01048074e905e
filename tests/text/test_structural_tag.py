"""Structural tags: what is in the language and what is not, in the forms that vLLM and SGLang take."""

from __future__ import annotations

import json
from typing import Any

import pytest

from streamserve.errors import InvalidParameter, UnsupportedParameter
from streamserve.text.grammars.grammar import GrammarCompiler
from streamserve.text.grammars.structural_tag import structural_tag_lark
from streamserve.types import StructuredOutputs
from tests.support.byte_tokenizer import EOS, VOCAB_SIZE, byte_tokenizer
from tests.text.allowed import allowed

pytestmark = pytest.mark.anyio

CITY = {"type": "object", "properties": {"city": {"const": "Rome"}}, "required": ["city"], "additionalProperties": False}
WEATHER = {"begin": "<function=weather>", "schema": CITY, "end": "</function>"}
CLOCK = {"begin": "<function=clock>", "end": "</function>"}
CALL = '<function=weather>{"city": "Rome"}</function>'


def tag(begin: str, content: dict[str, Any], end: str) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def const(value: str) -> dict[str, Any]:
    return {"type": "const_string", "value": value}


async def accepted(structural_tag: Any, text: str) -> str:
    """How much of a text the language allows, "all" when it may end there."""
    compiler = GrammarCompiler(byte_tokenizer, vocab_size=VOCAB_SIZE, eos_token_ids=[EOS])
    constraint = await compiler.compile(StructuredOutputs(structural_tag=structural_tag))
    for place, byte in enumerate(text.encode()):
        if byte not in allowed(constraint):
            return text.encode()[:place].decode()
        constraint.accept(byte)
    return "all" if EOS in allowed(constraint) else text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no call < at all", "all"),
        (f"It is {CALL} or {CALL}.", "all"),
        ("<function=clock>{}</function>", "all"),
        ("<function=other>", "<function="),
        ('<function=weather>{"city": "Oslo', '<function=weather>{"city": "'),
        ('<function=weather>{"city": "Rome"}', '<function=weather>{"city": "Rome"}'),
    ],
)
@pytest.mark.parametrize("written", [dict, json.dumps])
async def test_free_text_may_hold_tagged_parts(text: str, expected: str, written: Any) -> None:
    value = {"type": "structural_tag", "structures": [WEATHER, CLOCK], "triggers": ["<function="]}
    assert await accepted(written(value), text) == expected


NUMBER = {"type": "regex", "pattern": "[0-9]+/s"}
TAGS = [tag("<a>", NUMBER, "</a>"), tag("<b>", const("x"), "</b>")]


@pytest.mark.parametrize(
    ("format", "text", "expected"),
    [
        ({"type": "sequence", "elements": [const("So: "), NUMBER]}, "So: 12/s", "all"),
        ({"type": "or", "elements": [const("yes"), const("no")]}, "no", "all"),
        ({"type": "or", "elements": [const("yes"), const("no")]}, "na", "n"),
        ({"type": "any_text", "excludes": ["END"]}, "a EN b END", "a EN b EN"),
        (tag("<t>", {"type": "any_text"}, "</t>"), "<t>a < b</t>", "all"),
        (tag("<t>", {"type": "any_text"}, "</t>"), "<t>a</t>x", "<t>a</t>"),
        (tag("<t>", const("x"), ""), "<t>x", "all"),
        (
            {"type": "sequence", "elements": [tag("<think>", {"type": "any_text"}, "</think>"), {"type": "any_text"}]},
            "<think>hm</think>ok",
            "all",
        ),
        ({"type": "triggered_tags", "triggers": ["<"], "tags": TAGS, "at_least_one": True}, "none", "none"),
        ({"type": "triggered_tags", "triggers": ["<"], "tags": TAGS, "at_least_one": True}, "a <b>x</b> c", "all"),
        ({"type": "triggered_tags", "triggers": ["<"], "tags": TAGS, "stop_after_first": True}, "a <b>x</b> c", "a <b>x</b>"),
        ({"type": "triggered_tags", "triggers": ["<a", "<b"], "tags": TAGS}, "<c <a>1/s</a><b>x</b>", "all"),
        ({"type": "tags_with_separator", "tags": TAGS, "separator": ", "}, "<b>x</b>, <a>1/s</a>", "all"),
        ({"type": "tags_with_separator", "tags": TAGS, "separator": ", "}, "", "all"),
        ({"type": "tags_with_separator", "tags": TAGS, "separator": ", ", "at_least_one": True}, "", ""),
    ],
)
async def test_formats_nest(format: dict[str, Any], text: str, expected: str) -> None:
    assert await accepted({"type": "structural_tag", "format": format}, text) == expected


def test_what_is_a_special_token_is_matched_as_that_token() -> None:
    format = {"type": "triggered_tags", "triggers": ["<|call|>"], "tags": [tag("<|call|>(", const("x"), "<|end|>)")]}
    source = structural_tag_lark({"format": format}, {"<|call|>": 7, "<|end|>": 8})
    assert ("T0 <[7]" in source, '("(" "x" (<[8]> ")"))' in source) == (True, True)
    assert "<|call|>" not in source


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("[]", InvalidParameter, "must be an object"),
        ("{", InvalidParameter, "can't be compiled"),
        ({"type": "structural_tag"}, InvalidParameter, "format must be an object"),
        ({"format": {"type": "zork"}}, UnsupportedParameter, "formats of type 'zork'"),
        ({"format": {"type": "sequence", "elements": [{"type": "any_text"}, const("x")]}}, UnsupportedParameter, "at the end"),
        ({"structures": [WEATHER], "triggers": ["<other"]}, InvalidParameter, "must begin with one of the triggers"),
        ({"structures": [{"begin": "<a>"}], "triggers": ["<a"]}, InvalidParameter, "end must be a string"),
        ({"format": {"type": "or", "elements": ["x"]}}, InvalidParameter, "must be an object"),
        ({"format": tag("<a>", {"type": "json_schema"}, "")}, InvalidParameter, "json_schema must be an object"),
    ],
)
async def test_what_makes_no_language_is_refused(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        await accepted(value, "")
