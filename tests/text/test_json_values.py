"""Values inside a JSON text come out as they complete, however the text is cut, each with its path, and in linear time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.text.parsing.json_values import MAX_DEPTH, MAX_PATH_CHARS, JsonValues

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def read(pieces: list[str]) -> list[tuple[Any, Any]]:
    values = JsonValues()
    return [(json.loads(found.path), json.loads(found.text)) for piece in pieces for found in values.push(piece)]


def inside(value: Any, path: list[str | int]) -> Iterator[tuple[list[str | int], Any]]:
    """Everything inside a value, what ends first first."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield from inside(member, [*path, key])
        if len(path) < MAX_DEPTH:
            yield [*path, key], member


@given(VALUES, st.sampled_from([None, 1, 3]), st.sampled_from([True, False]), st.integers(1, 5))
def test_whatever_the_pieces_every_value_comes_once(value: Any, indent: int | None, ascii_only: bool, size: int) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert read(pieces) == list(inside(value, []))


def test_a_value_comes_with_the_character_that_ends_it_as_it_was_written() -> None:
    values = JsonValues()
    seen = [(character, [found.text for found in values.push(character)]) for character in '{"a": [1.0, "x\\u00e9"], "b":true}']
    assert [(character, found) for character, found in seen if found] == [
        (",", ["1.0"]),
        ('"', ['"x\\u00e9"']),
        ("]", ['[1.0,"x\\u00e9"]']),
        ("}", ["true"]),
    ]


def test_values_are_in_one_line_whatever_stands_between_their_tokens() -> None:
    values = JsonValues()
    assert [found.text for found in values.push('{\r\n\n"a" :\t[ 1\n,\n2 ]\n}')] == ["1", "2", "[1,2]"]
    assert values.push('{"a": "x\ny"}') == [], "a line break inside a string is no JSON"


def test_what_is_unfinished_is_no_value() -> None:
    assert read(['{"a": {"b": 1, "c": "half']) == [(["a", "b"], 1)]


def test_what_lies_deep_or_at_a_long_path_is_part_of_what_holds_it() -> None:
    nested = "[" * 20 + "1" + "]" * 20
    assert max(len(path) for path, _ in read([nested])) == MAX_DEPTH
    assert [path for path, _ in read([json.dumps({"a": {"k" * MAX_PATH_CHARS: [1, 2]}, "b": 3})])] == [["a"], ["b"]]


def test_half_a_surrogate_pair_is_left_to_the_text() -> None:
    values = JsonValues()
    assert [found.path for found in values.push(r'{"a": "\ud83d", "b": "\ud83c\udf42", "\ud83d": 1}')] == ['["b"]']


@pytest.mark.parametrize(
    "text",
    ['{"a": "' + "x" * 200_000 + '"}', "[" + "1," * 100_000 + "1]", '{"a":' * 40_000 + "1" + "}" * 40_000, "]" * 200_000],
    ids=["string", "array", "nested", "garbage"],
)
def test_long_texts_take_linear_time(text: str) -> None:
    values = JsonValues()
    began = time.process_time()
    for at in range(0, len(text), 4):
        values.push(text[at : at + 4])
    assert time.process_time() - began < 3
