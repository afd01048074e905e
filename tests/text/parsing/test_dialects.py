"""The law of all dialects: streamed in any pieces, an answer reads as at once, well-formed or not, and loses nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from streamserve.text.grammars.call_grammar import AnswerForm
from streamserve.text.parsing.answer import AnswerParser
from streamserve.text.parsing.dialects.known import CALL_FORMATS, CHANNELS, REASONING_FORMATS
from streamserve.text.parsing.pieces import Parser
from streamserve.text.schemas.call_schema import Function
from tests.text.parsing.read import read
from tests.text.parsing.writers import FUNCTIONS, WRITERS, Calls, openai

BYTES = LLTokenizer("byte")
DIALECTS = sorted(WRITERS)
ALL = [*DIALECTS, "openai"]


def new_parser(dialect: str, reasoning: str | None = None) -> Callable[[], Parser]:
    if dialect == "openai":
        return partial(AnswerParser.of_channels, CHANNELS)
    form = None if reasoning is None else REASONING_FORMATS[reasoning]
    return partial(AnswerParser.of_calls, CALL_FORMATS[dialect], FUNCTIONS, form)


def written(dialect: str, calls: Calls) -> str:
    return openai(calls) if dialect == "openai" else WRITERS[dialect](calls)


CALLS: Calls = [("weather", {"city": "B\"ern's } ]\n<b>", "days": 3, "exact": True, "places": ["a", "b, c"]}), ("now", {})]


@pytest.mark.parametrize("dialect", ALL)
def test_every_dialect_reads_the_calls_that_its_models_write(dialect: str) -> None:
    text = written(dialect, CALLS)
    for parts in ([text], list(text), [text[:9], text[9:40], text[40:]]):
        _, content, calls = read(new_parser(dialect)(), parts)
        assert content == ""
        assert [(name, json.loads(arguments)) for name, arguments in calls] == CALLS


def test_all_dialects_are_tested() -> None:
    assert set(WRITERS) == set(CALL_FORMATS)


@pytest.mark.parametrize("dialect", [name for name in DIALECTS if CALL_FORMATS[name].openings])
def test_content_around_calls_stays_in_its_place(dialect: str) -> None:
    one = [("weather", {"city": "Bern"})]
    text = f" One \n {written(dialect, one)} \n two\n"
    for parts in ([text], list(text)):
        _, content, calls = read(new_parser(dialect)(), parts)
        assert (content, len(calls)) == (" One \n  \n two\n", 1)


VALUES: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {"city": st.text(alphabet="aé\"'\\ }{[]<>|,:=\n/", max_size=12)},
    optional={
        "days": st.integers(),
        "exact": st.booleans(),
        "places": st.lists(st.text(alphabet="a\"' ,]}", max_size=5), max_size=3),
    },
)


@pytest.mark.parametrize("dialect", ALL)
@settings(max_examples=10)
@given(arguments=VALUES, size=st.integers(1, 9), data=st.data())
def test_streamed_equals_whole(dialect: str, arguments: dict[str, Any], size: int, data: st.DataObject) -> None:
    """Of answers as they should be, and of such that are cut, or miss or repeat a part."""
    text = f"a\n{written(dialect, [('weather', arguments), ('now', {})])}\n b"
    if data.draw(st.booleans()):
        text = text.removeprefix("a\n")
    kind = data.draw(st.sampled_from(["whole", "cut", "without", "twice"]))
    at = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(at, min(len(text), at + 30)))
    text = {"whole": text, "cut": text[:at], "without": text[:at] + text[end:], "twice": text[:end] + text[at:]}[kind]
    is_cut = data.draw(st.booleans())
    for reasoning in (None, "qwen3"):
        make = new_parser(dialect, reasoning)
        whole = read(make(), [text], is_cut=is_cut)
        assert read(make(), [text[place : place + size] for place in range(0, len(text), size)], is_cut=is_cut) == whole
        assert read(make(), list(text), is_cut=is_cut) == whole


@pytest.mark.parametrize("dialect", ALL)
@settings(max_examples=10)
@given(text=st.text(alphabet="ab \n<>[]{}\"':,=()|", max_size=60), size=st.integers(1, 5))
def test_text_without_marks_is_content_to_the_letter(dialect: str, text: str, size: int) -> None:
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    assert read(new_parser(dialect)(), parts) == ("", text, [])


@pytest.mark.parametrize("dialect", ALL)
def test_a_call_that_is_cut_anywhere_is_never_whole(dialect: str) -> None:
    text = written(dialect, [("weather", {"city": "Bern", "days": 3})])
    end = text.rindex("3")
    for at in range(end):
        _, _, calls = read(new_parser(dialect)(), [text[:at]], is_cut=True)
        assert all(not is_json(arguments) for _, arguments in calls), text[:at]


@pytest.mark.parametrize("dialect", [name for name in DIALECTS if not CALL_FORMATS[name].openings])
def test_without_a_mark_only_functions_that_were_offered_are_called(dialect: str) -> None:
    text = written(dialect, [("other", {"city": "Bern"})])
    assert read(new_parser(dialect)(), list(text)) == ("", text, [])


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ALL)
def test_long_answers_take_time_in_proportion_whatever_is_held_back(dialect: str) -> None:
    call = written(dialect, [("weather", {"city": "QQ"})])
    for filler in " \n<}[a":
        for text in (call, call.replace("QQ", "") + "QQ") if filler in " \na" else (call.replace("QQ", "") + "QQ",):
            spent = [time_to_read(dialect, text.replace("QQ", filler * length)) for length in (20_000, 160_000)]
            assert spent[1] < 8 * 3 * spent[0], filler


def time_to_read(dialect: str, text: str) -> float:
    parser = new_parser(dialect)()
    before = time.process_time()
    for at in range(0, len(text), 4):
        parser.push(text[at : at + 4])
    parser.finish()
    return time.process_time() - before


@pytest.mark.parametrize("dialect", ALL)
@pytest.mark.parametrize("is_required", [True, False])
def test_grammars_allow_what_models_write_and_no_other_arguments(dialect: str, is_required: bool) -> None:
    functions = [Function(name, schema) for name, schema in FUNCTIONS.items()]
    right: Calls = [("weather", {"city": "Bern", "days": 3, "exact": True, "places": ["a"]}), ("now", {})]
    for calls in (right, right[:1], right[1:]):
        assert is_allowed(dialect, functions, written(dialect, calls), is_required), calls
    for wrong in ([("weather", {"days": 3})], [("weather", {"city": "Bern", "days": "x"})], [("other", {})]):
        assert not is_allowed(dialect, functions, written(dialect, wrong), is_required), wrong
    if not is_required and dialect != "openai":
        assert is_allowed(dialect, functions, "Hello, 1 < 2 (so).", is_required)


def is_allowed(dialect: str, functions: list[Function], text: str, is_required: bool) -> bool:
    form = AnswerForm(
        calls=CALL_FORMATS.get(dialect),
        channels=CHANNELS if dialect == "openai" else None,
        functions=functions,
        is_required=is_required,
    )
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(form.lark()))
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.removesuffix("<|call|>").encode())
    return bool(matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting())


def is_json(text: str) -> bool:
    try:
        json.loads(text, strict=False)
    except ValueError:
        return False
    return True
