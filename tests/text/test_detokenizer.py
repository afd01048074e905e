"""Detokenizing as tokens come gives the text that decoding all of them at once gives."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.text.detokenizer import Detokenizer, WindowDetokenizer, detokenizer_for
from streamserve.text.tokenizers.tokenizer import Tokenizer
from tests.support.byte_tokenizer import byte_tokenizer
from tests.text.samples import texts

REPLACEMENT = "\ufffd"
BYTES = byte_tokenizer()
ANY_IDS = st.lists(st.integers(0, 49151), max_size=40)
PIECE_IDS = st.lists(st.one_of(st.integers(0, 270), st.integers(259, 270), st.integers(3 + 0xE0, 3 + 0xF4)), max_size=40)


def run(detokenizer: Detokenizer, token_ids: list[int]) -> list[str]:
    return [*map(detokenizer.push, token_ids), detokenizer.finish()]


@settings(deadline=None)
@given(token_ids=ANY_IDS, skip=st.booleans())
def test_deltas_of_random_ids_join_to_the_text_of_all_of_them(demo: Tokenizer, token_ids: list[int], skip: bool) -> None:
    deltas = run(detokenizer_for(demo, [], skip_special_tokens=skip), token_ids)
    assert "".join(deltas) == demo.decode(token_ids, skip_special_tokens=skip)
    assert "".join(deltas) == demo.vocabulary.decode([i for i in token_ids if not skip or i not in demo.special_ids])


@settings(deadline=None)
@given(token_ids=PIECE_IDS, skip=st.booleans())
def test_deltas_of_random_sentencepiece_ids_join_to_the_text_of_all(
    sentencepiece: Tokenizer, token_ids: list[int], skip: bool
) -> None:
    deltas = run(detokenizer_for(sentencepiece, [], skip_special_tokens=skip), token_ids)
    whole = sentencepiece.decode(token_ids, skip_special_tokens=skip)
    assert "".join(deltas) == whole
    theirs = sentencepiece.vocabulary.decode([i for i in token_ids if not skip or i not in sentencepiece.special_ids])
    # The library replaces every byte of a run that isn't UTF-8 as a whole; we keep the characters in it that are.
    assert REPLACEMENT in theirs or whole == theirs


@settings(deadline=None)
@given(token_ids=st.lists(st.integers(0, 9), max_size=40), skip=st.booleans())
def test_deltas_of_an_opaque_decoder_join_to_the_text_of_all(opaque: Tokenizer, token_ids: list[int], skip: bool) -> None:
    deltas = run(detokenizer_for(opaque, [], skip_special_tokens=skip), token_ids)
    assert "".join(deltas) == opaque.decode(token_ids, skip_special_tokens=skip)


@pytest.mark.parametrize("text", texts(300, seed=1))
def test_no_delta_holds_part_of_a_character(demo: Tokenizer, text: str) -> None:
    text = text.replace(REPLACEMENT, "")
    *deltas, last = run(detokenizer_for(demo, [], skip_special_tokens=False), demo.encode(text))
    assert "".join(deltas) == text
    assert last == ""
    assert not any(REPLACEMENT in delta for delta in deltas)


@settings(deadline=None)
@given(text=st.text(max_size=30), cut=st.integers(1, 3))
def test_an_unfinished_character_is_replaced_at_the_end_and_not_before(text: str, cut: int) -> None:
    ids = list((text + "🍂").encode()[:-cut])
    *deltas, last = run(detokenizer_for(BYTES, []), ids)
    assert "".join(deltas) == text
    assert last == REPLACEMENT


def test_bytes_that_can_never_become_a_character_are_replaced_at_once() -> None:
    detokenizer = detokenizer_for(BYTES, [])
    assert [detokenizer.push(byte) for byte in b"\xff\xe4A"] == [REPLACEMENT, "", REPLACEMENT + "A"]


@settings(deadline=None)
@given(prompt=st.text(min_size=1, max_size=8), answer=st.text(min_size=1, max_size=8), cut=st.integers(0, 3))
def test_a_prompt_that_ends_inside_a_character_is_completed(prompt: str, answer: str, cut: int) -> None:
    character = "🍂".encode()
    detokenizer = detokenizer_for(BYTES, [*prompt.encode(), *character[:cut]])
    assert "".join(run(detokenizer, [*character[cut:], *answer.encode()])) == "🍂" + answer


def test_a_prompts_broken_character_stays_the_prompts() -> None:
    prompt_ids = list("秋".encode()[:2])
    assert "".join(run(detokenizer_for(BYTES, prompt_ids), list(b"Hello"))) == "Hello"
    assert "".join(run(detokenizer_for(BYTES, prompt_ids), [])) == ""


def test_the_dummy_space_is_dropped_at_the_start_of_a_text_only(sentencepiece: Tokenizer) -> None:
    hello = sentencepiece.vocabulary.token_id("▁Hello")
    assert hello is not None
    assert "".join(run(detokenizer_for(sentencepiece, [1]), [hello, hello])) == "Hello Hello"
    assert "".join(run(detokenizer_for(sentencepiece, [1, hello]), [hello])) == " Hello"


def test_special_tokens_are_shown_on_request(demo: Tokenizer) -> None:
    ids = demo.encode("a<|im_end|>b")
    assert "".join(run(detokenizer_for(demo, []), ids)) == "ab"
    assert "".join(run(detokenizer_for(demo, [], skip_special_tokens=False), ids)) == "a<|im_end|>b"


def test_spaces_between_special_tokens_can_be_left_out(opaque: Tokenizer) -> None:
    def text(spaces: bool) -> str:
        return "".join(
            run(
                detokenizer_for(opaque, [], skip_special_tokens=False, spaces_between_special_tokens=spaces),
                [3, 1, 2, 1, 4],
            )
        )

    assert text(True) == "hello [SEP] [CLS] [SEP] world"
    assert text(False) == "hello [SEP][CLS][SEP] world"


def test_the_windowed_decoder_shows_text_like_the_exact_one(demo: Tokenizer) -> None:
    for text in texts(200, seed=2):
        ids = demo.encode(text)
        window = WindowDetokenizer(demo, [], frozenset(), frozenset())
        assert "".join(run(window, ids)) == demo.decode(ids, skip_special_tokens=False)


def test_a_token_costs_the_same_after_many(demo: Tokenizer) -> None:
    ids = demo.encode("The leaves fall. 秋天的叶子落了 🍂 ") * 2000
    detokenizer = detokenizer_for(demo, [])

    def seconds(some: list[int]) -> float:
        started = time.perf_counter()
        for token_id in some:
            detokenizer.push(token_id)
        return time.perf_counter() - started

    tenth = len(ids) // 10
    spans = [seconds(ids[at : at + tenth]) for at in range(0, 10 * tenth, tenth)]
    assert min(spans[5:]) < 3 * min(spans[:5])
