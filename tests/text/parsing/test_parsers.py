"""Tool calls and reasoning, cut into pieces at every place a token boundary could fall."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.errors import ConfigError
from streamserve.text.parsing.answer import NO_CALLS, AnswerParser
from streamserve.text.parsing.dialects.known import CALL_FORMATS, REASONING_FORMATS
from streamserve.text.parsing.dialects.registry import dialect_of
from streamserve.text.parsing.first_call import FirstCallParser
from streamserve.text.parsing.forced import ForcedCallParser, RequiredCallsParser
from streamserve.text.parsing.pieces import Content, Parser, ToolCallArguments
from tests.text.parsing.read import Read, read


def of_calls(name: str, functions: Mapping[str, Mapping[str, Any]] | None = None) -> Callable[[], Parser]:
    return partial(AnswerParser.of_calls, CALL_FORMATS[name], functions)


TaggedCallParser, BareCallParser, MistralParser = of_calls("hermes"), of_calls("llama3_json"), of_calls("mistral")
ThinkingTagged = partial(AnswerParser.of_calls, CALL_FORMATS["hermes"], None, REASONING_FORMATS["qwen3"])
Thinking = partial(AnswerParser.of_calls, NO_CALLS, None, REASONING_FORMATS["qwen3"])


def cuts(text: str) -> list[list[str]]:
    """The text whole, letter by letter, and cut in two at every place."""
    return [[text], list(text), *([text[:at], text[at:]] for at in range(1, len(text)))]


WEATHER = '{"city": "北京", "note": "a } brace, a \\" quote"}'

CASES: list[tuple[Callable[[], Parser], str, Read]] = [
    (TaggedCallParser, "no call at all, 1 < 2", ("", "no call at all, 1 < 2", [])),
    (
        TaggedCallParser,
        'Let me see.\n<tool_call>\n{"name": "weather", "arguments": ' + WEATHER + "}\n</tool_call>",
        ("", "Let me see.", [("weather", WEATHER)]),
    ),
    (
        TaggedCallParser,
        '<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>\n'
        '<tool_call>\n{"arguments": {"x": [1, {"y": 2}]}, "name": "b"}\n</tool_call>',
        ("", "", [("a", "{}"), ("b", '{"x": [1, {"y": 2}]}')]),
    ),
    (TaggedCallParser, "<tool_call>not json</tool_call>", ("", "<tool_call>not json</tool_call>", [])),
    (TaggedCallParser, '<tool_call>{"name": "a", "arguments": {"x"', ("", "", [("a", '{"x"')])),
    (TaggedCallParser, '<tool_call>{"name": "a", "arguments": "{\\"x\\": 1}"}</tool_call>', ("", "", [("a", '{"x": 1}')])),
    (BareCallParser, '{"name": "weather", "parameters": ' + WEATHER + "}", ("", "", [("weather", WEATHER)])),
    (
        BareCallParser,
        '<|python_tag|>{"name": "a", "parameters": {}}; {"name": "b", "parameters": {"x": 1}}',
        ("", "", [("a", "{}"), ("b", '{"x": 1}')]),
    ),
    (BareCallParser, "It is {sunny}.", ("", "It is {sunny}.", [])),
    (MistralParser, "Fine [TOOL", ("", "Fine [TOOL", [])),
    (
        MistralParser,
        '[TOOL_CALLS][{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {}}]',
        ("", "", [("a", '{"x": 1}'), ("b", "{}")]),
    ),
    (
        MistralParser,
        'Sure. [TOOL_CALLS]a[ARGS]{"x": {}}[TOOL_CALLS]b{"y": "}"}',
        ("", "Sure. ", [("a", '{"x": {}}'), ("b", '{"y": "}"}')]),
    ),
    (RequiredCallsParser, '[{"name": "a", "parameters": {"x": 1}}]', ("", "", [("a", '{"x": 1}')])),
    (RequiredCallsParser, '[{"name": "a", "parameters": {"x": 1}}, {"na', ("", "", [("a", '{"x": 1}')])),
    (lambda: ForcedCallParser("a"), '{"x": 1}', ("", "", [("a", '{"x": 1}')])),
    (lambda: Thinking(), "<think>\nhm, 1 < 2\n</think>\n\nyes", ("hm, 1 < 2", "yes", [])),
    (lambda: Thinking(is_thinking=True), "\nhm\n</think>\n\nyes", ("hm", "yes", [])),
    (lambda: Thinking(), "<thing> is no thought", ("", "<thing> is no thought", [])),
    (lambda: Thinking(), "<think>never ends", ("never ends", "", [])),
    (
        ThinkingTagged,
        '<think>\nhm\n</think>\n\n<tool_call>{"name": "a", "arguments": {}}</tool_call>',
        ("hm", "", [("a", "{}")]),
    ),
]


ONE = '{"name": "a", "arguments": {"x": 1}}'
CALLED = [("a", '{"x": 1}')]

# What public reports of other servers show models to write.
AWKWARD: list[tuple[Callable[[], Parser], str, Read]] = [
    # text after a call keeps its blanks
    (TaggedCallParser, f"<tool_call>{ONE}</tool_call> and  more\n text ", ("", " and  more\n text ", CALLED)),
    (TaggedCallParser, f"<tool_call>{ONE}</tool_call> \n <tool_call>{ONE}</tool_call>", ("", "", CALLED * 2)),
    (TaggedCallParser, f"<tool_call>{ONE}</tool_call> a <tool_call>{ONE}</tool_call>", ("", " a ", CALLED * 2)),
    # an end tag may be left out, and a bracket written twice
    (TaggedCallParser, f"<tool_call>{ONE}\nIt is sunny.", ("", "\nIt is sunny.", CALLED)),
    (TaggedCallParser, f"<tool_call>{ONE}}}</tool_call>", ("", "", CALLED)),
    # a mark in prose stays there, and hides no call
    (TaggedCallParser, "The <tool_call> tag", ("", "The <tool_call> tag", [])),
    (TaggedCallParser, f"a\n<tool_call> b <tool_call>{ONE}</tool_call>", ("", "a\n<tool_call> b ", CALLED)),
    (TaggedCallParser, "Use <tool_call>", ("", "Use <tool_call>", [])),
    (MistralParser, "The [TOOL_CALLS] mark. [see]", ("", "The [TOOL_CALLS] mark. [see]", [])),
    (MistralParser, "A [TOOL_CALLS] [1, 2]", ("", "A [TOOL_CALLS] [1, 2]", [])),
    (MistralParser, 'The [TOOL_CALLS] mark [TOOL_CALLS]a{"x": 1}', ("", "The [TOOL_CALLS] mark ", CALLED)),
    (BareCallParser, '\n {"a": 1}', ("", '\n {"a": 1}', [])),
    # JSON that names no function that was offered is an answer
    (lambda: of_calls("llama3_json", {"a": {}})(), '{"name": "Bob", "age": 3} ', ("", '{"name": "Bob", "age": 3} ', [])),
    (lambda: of_calls("llama3_json", {"a": {}})(), '{"name": "a", "parameters": {"x": 1}}', ("", "", CALLED)),
    # calls without arguments have an empty object of them
    (TaggedCallParser, '<tool_call>{"name": "a"}</tool_call>', ("", "", [("a", "{}")])),
    (TaggedCallParser, '<tool_call>{"name": "a", "arguments": null}</tool_call>', ("", "", [("a", "{}")])),
    (TaggedCallParser, '<tool_call>{"arguments": "", "name": "a"}</tool_call>', ("", "", [("a", "{}")])),
    (TaggedCallParser, '<tool_call>{"name": "a", "arguments": "null"}</tool_call>', ("", "", [("a", "{}")])),
    (BareCallParser, '{"name": "a"}', ("", "", [("a", "{}")])),
    (RequiredCallsParser, '[{"name": "a"}, {"name": "b", "arguments": null}]', ("", "", [("a", "{}"), ("b", "{}")])),
    # only one object of arguments counts
    (BareCallParser, '{"name": "a", "parameters": {"x": 1}, "arguments": {}}', ("", "", CALLED)),
    # brackets left out are put there
    (TaggedCallParser, '<tool_call>{"name": "a", "arguments": {"x": 1</tool_call> b', ("", " b", CALLED)),
    (TaggedCallParser, '<tool_call>{"name": "a", "arguments": {"x": 1}</tool_call>', ("", "", CALLED)),
    (TaggedCallParser, '<tool_call>{"name": "a", "arguments": {"x": [1', ("", "", [("a", '{"x": [1]}')])),
    (BareCallParser, '{"name": "a", "parameters": {"x": {"y": 1}', ("", "", [("a", '{"x": {"y": 1}}')])),
    (MistralParser, '[TOOL_CALLS]a{"x": {"y": 1}', ("", "", [("a", '{"x": {"y": 1}}')])),
    # the mark of reasoning that has begun already
    (lambda: Thinking(is_thinking=True), "<think>\nhm</think>\n\nyes", ("hm", "yes", [])),
    (lambda: Thinking(is_thinking=True), "\n<think>hm</think>yes", ("hm", "yes", [])),
    (lambda: Thinking(is_thinking=True), "<thin air</think>yes", ("<thin air", "yes", [])),
]


@pytest.mark.parametrize(("make", "text", "expected"), AWKWARD, ids=[text[:30] for _, text, _ in AWKWARD])
def test_an_awkward_answer_loses_nothing_wherever_it_is_cut(make: Callable[[], Parser], text: str, expected: Read) -> None:
    for parts in cuts(text):
        assert read(make(), parts) == expected, parts


def test_a_call_that_ran_out_of_tokens_stays_cut() -> None:
    parser = TaggedCallParser()
    parser.push('<tool_call>{"name": "a", "arguments": {"x": 1')
    assert parser.finish(is_cut=True) == []


@pytest.mark.parametrize(("make", "text", "expected"), CASES, ids=[text[:30] for _, text, _ in CASES])
def test_an_answer_reads_the_same_wherever_it_is_cut(make: Callable[[], Parser], text: str, expected: Read) -> None:
    for parts in cuts(text):
        assert read(make(), parts) == expected, parts


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(
    arguments=st.dictionaries(st.text(), JSON),
    name=st.text(min_size=1),
    size=st.integers(1, 7),
    indent=st.sampled_from([None, 2]),
)
def test_any_arguments_come_through_unchanged(arguments: dict[str, object], name: str, size: int, indent: int | None) -> None:
    text = (
        "<tool_call>" + json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False, indent=indent) + "</tool_call>"
    )
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    _, content, calls = read(TaggedCallParser(), parts)
    assert content == ""
    assert [(called, json.loads(given_arguments)) for called, given_arguments in calls] == [(name, arguments)]


@given(text=st.text(alphabet='<tool_call>{}"name: ,\n/k[]A', max_size=60), size=st.integers(1, 5))
def test_arbitrary_text_breaks_no_parser(text: str, size: int) -> None:
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    for make in (TaggedCallParser, BareCallParser, MistralParser, RequiredCallsParser, ThinkingTagged):
        read(make(), parts)


def test_arguments_stream_as_they_come() -> None:
    parser = TaggedCallParser()
    parser.push('<tool_call>{"name": "a", "arguments": ')
    assert parser.push('{"x": ') == [ToolCallArguments(0, '{"x": ')]
    assert parser.push("[1, ") == [ToolCallArguments(0, "[1, ")]


def test_only_a_markers_beginning_is_held_back() -> None:
    parser = TaggedCallParser()
    assert parser.push("a < b, <tool") == [Content("a < b, ")]
    assert parser.push("box>") == [Content("<toolbox>")]


def test_the_template_tells_which_parser_reads_it() -> None:
    assert dialect_of("…<tool_call>…").tool_calls == "hermes"
    assert dialect_of("…[TOOL_CALLS]…").tool_calls == "mistral"
    assert dialect_of("{{- '\"parameters\": ' }}").tool_calls == "llama3_json"
    assert dialect_of("plain").tool_calls is None
    assert dialect_of("…<tool_call>…", tool_call_parser="llama3_json").tool_calls == "llama3_json"
    assert dialect_of("…</think>…").reasoning is not None
    assert dialect_of("plain").reasoning is None
    with pytest.raises(ConfigError, match="hermes"):
        dialect_of("", tool_call_parser="nonesuch")
    with pytest.raises(ConfigError, match="qwen3"):
        dialect_of("", reasoning_parser="nonesuch")


@pytest.mark.parametrize(
    ("prompt", "continued", "answer", "expected"),
    [
        ("assistant\n", None, "<think>a</think>b", ("a", "b", [])),
        ("assistant\n", None, "b", ("", "b", [])),
        ("assistant\n<think>\n", None, "a</think>b", ("a", "b", [])),
        ("assistant\n<think>hm", "<think>hm", "a</think>b", ("a", "b", [])),
    ],
)
def test_the_prompts_end_tells_where_an_answer_begins(prompt: str, continued: str | None, answer: str, expected: Read) -> None:
    new_parser = dialect_of("</think>").parser_factory(prompt, functions={}, continued=continued)
    assert new_parser is not None
    assert read(new_parser(), list(answer)) == expected


@pytest.mark.parametrize(
    ("prompt", "continued"), [("<think>\n\n</think>\n\n", None), ("well", "well"), ("a</think>b", "a</think>b")]
)
def test_nothing_is_read_where_no_reasoning_can_come(prompt: str, continued: str | None) -> None:
    assert dialect_of("</think>").parser_factory(prompt, functions={}, continued=continued) is None
    assert dialect_of("plain").parser_factory("assistant", functions={"f": {}}) is None


def test_deepseek_r1_reasons_without_a_mark() -> None:
    new_parser = dialect_of("", reasoning_parser="deepseek_r1").parser_factory("Assistant:", functions={})
    assert new_parser is not None
    assert read(new_parser(), ["hm</think>\n\nyes"]) == ("hm", "yes", [])


def test_a_parser_says_when_all_else_is_content() -> None:
    parser = Thinking()
    for part, passes_through in (("<think>a", False), ("</think>", False), ("\n\n", False), ("b", True)):
        parser.push(part)
        assert parser.passes_through is passes_through
    assert not ThinkingTagged().passes_through
    assert not TaggedCallParser().passes_through


def test_only_the_first_of_parallel_calls_is_passed_on() -> None:
    parser = FirstCallParser(RequiredCallsParser())
    assert read(parser, ['[{"name": "a", "parameters": {}}, {"name": "b", "parameters": {}}]']) == ("", "", [("a", "{}")])
