"""One sequence's text: what is sent for which token, where it stops, and why."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.text.sequence_text import SequenceText
from streamserve.types import ErrorInfo, Sampling, SamplingParams, SequenceSpec, TextDelta, TokenDelta, TokenLogprobs
from tests.support.byte_tokenizer import EOS, byte_tokenizer

TOKENIZER = byte_tokenizer()


def sequence_text(*, prompt: str = "p", generated: str = "", ignore_eos: bool = False, **params: Any) -> SequenceText:
    chosen = SamplingParams(ignore_eos=ignore_eos, **params)
    spec = SequenceSpec(
        sequence_id="s",
        prompt_token_ids=list(prompt.encode()),
        generated_token_ids=list(generated.encode()),
        max_tokens=100,
        sampling=Sampling(seed=0, stop_token_ids=[*([] if ignore_eos else [EOS]), *(chosen.stop_token_ids or [])]),
    )
    return SequenceText(TOKENIZER, chosen, spec, eos_token_ids=[EOS])


def tokens(text: str | bytes, **fields: Any) -> TokenDelta:
    data = text.encode() if isinstance(text, str) else text
    return TokenDelta(list(data), **fields)


def push_each(text: SequenceText, said: str, **last: Any) -> list[TextDelta]:
    """Push a token at a time, then an end."""
    deltas = [text.push(tokens(bytes([byte]))) for byte in said.encode()]
    deltas.append(text.push(TokenDelta([], **last)) if last else None)
    return [delta for delta in deltas if delta is not None]


def test_a_token_that_completes_no_character_sends_nothing() -> None:
    text = sequence_text()
    assert [text.push(tokens(bytes([byte]))) for byte in "秋".encode()[:2]] == [None, None]
    delta = text.push(tokens("秋".encode()[2:]))
    assert delta == TextDelta("秋", token_ids=list("秋".encode()))


@settings(deadline=None)
@given(said=st.text(max_size=12), sizes=st.lists(st.integers(1, 5), min_size=60, max_size=60))
def test_merged_deltas_say_the_same_as_single_ones(said: str, sizes: list[int]) -> None:
    def run(step_sizes: list[int]) -> tuple[str, list[int]]:
        text, data, deltas = sequence_text(stop=["a", "秋b"]), list(said.encode()), []
        for size in step_sizes:
            deltas.append(text.push(TokenDelta(data[:size])))
            data = data[size:]
        deltas.append(text.push(TokenDelta([], finish_reason="length")))
        sent = [delta for delta in deltas if delta is not None]
        assert [delta.finish_reason is not None for delta in sent] == [False] * (len(sent) - 1) + [True]
        return "".join(delta.text for delta in sent), [token for delta in sent for token in delta.token_ids]

    assert run(sizes) == run([1] * 60)


def test_a_stop_string_ends_the_text_before_it() -> None:
    deltas = push_each(sequence_text(stop="END"), "a EN. END and more")
    assert "".join(delta.text for delta in deltas) == "a EN. "
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", "END")
    assert sum(len(delta.token_ids) for delta in deltas) == len("a EN. END")


def test_a_stop_string_may_be_kept() -> None:
    deltas = push_each(sequence_text(stop="END", include_stop_str_in_output=True), "a END and more")
    assert "".join(delta.text for delta in deltas) == "a END"


def test_tokens_after_a_stop_string_in_one_delta_are_dropped() -> None:
    text = sequence_text(stop="b", logprobs=0)
    entries = [TokenLogprobs(byte, -1.0, 1, []) for byte in b"abc"]
    delta = text.push(tokens("abc", logprobs=entries, finish_reason="length"))
    assert delta is not None
    assert (delta.text, delta.token_ids, delta.finish_reason, delta.stop_reason) == ("a", list(b"ab"), "stop", "b")
    assert [entry.token_id for entry in delta.logprobs or []] == list(b"ab")
    assert text.push(tokens("d")) is None


def test_what_was_held_back_comes_with_the_end() -> None:
    deltas = push_each(sequence_text(stop="END"), "a EN", finish_reason="length")
    assert "".join(delta.text for delta in deltas) == "a EN"
    assert (deltas[-1].text, deltas[-1].finish_reason, deltas[-1].stop_reason) == ("EN", "length", None)


def test_a_stop_string_does_not_end_before_the_minimum_of_tokens() -> None:
    deltas = push_each(sequence_text(stop="a", min_tokens=2), "aaaa")
    assert "".join(delta.text for delta in deltas) == "aa"
    assert deltas[-1].stop_reason == "a"


@pytest.mark.parametrize(
    ("params", "last", "text", "stop_reason"),
    [
        ({}, EOS, "ab", None),
        ({"skip_special_tokens": False}, EOS, "ab", None),
        ({"stop_token_ids": [EOS]}, EOS, "ab", EOS),
        ({"stop_token_ids": [ord("x")]}, ord("x"), "ab", ord("x")),
        ({"stop_token_ids": [ord("x")], "include_stop_str_in_output": True}, ord("x"), "abx", ord("x")),
    ],
)
def test_a_stop_token_has_no_text_unless_asked_for(
    params: dict[str, Any], last: int, text: str, stop_reason: int | None
) -> None:
    sequence = sequence_text(**params)
    deltas = [sequence.push(tokens("ab")), sequence.push(TokenDelta([last], finish_reason="stop", stop_reason=last))]
    sent = [delta for delta in deltas if delta is not None]
    assert "".join(delta.text for delta in sent) == text
    assert sent[-1].token_ids == [last]
    assert (sent[-1].finish_reason, sent[-1].stop_reason) == ("stop", stop_reason)


def test_an_ignored_end_of_sequence_is_a_token_like_any_other() -> None:
    sequence = sequence_text(ignore_eos=True, skip_special_tokens=False)
    delta = sequence.push(TokenDelta([EOS], finish_reason="length"))
    assert delta is not None
    assert delta.text == "</s>"


def test_logprobs_carry_text_and_true_bytes_and_wait_for_their_text() -> None:
    text = sequence_text(logprobs=1)
    first, second = "é".encode()
    assert text.push(TokenDelta([first], [TokenLogprobs(first, -0.5, 2, [(ord("e"), -0.25)])], cached_tokens=3)) is None
    delta = text.push(TokenDelta([second], [TokenLogprobs(second, -0.1, 1, [])]))
    assert delta is not None
    assert delta.logprobs is not None
    assert [(entry.text, entry.bytes, entry.rank) for entry in delta.logprobs] == [
        ("\ufffd", b"\xc3", 2),
        ("\ufffd", b"\xa9", 1),
    ]
    assert [(other.text, other.logprob) for other in delta.logprobs[0].top] == [("e", -0.25)]
    assert delta.cached_tokens == 3


def test_prompt_logprobs_come_with_the_first_delta() -> None:
    delta = sequence_text(prompt_logprobs=0).push(tokens("a", prompt_logprobs=[None, TokenLogprobs(ord("p"), -1.0, 1, [])]))
    assert delta is not None
    assert delta.prompt_logprobs is not None
    assert delta.prompt_logprobs[0] is None
    assert delta.prompt_logprobs[1] is not None
    assert delta.prompt_logprobs[1].text == "p"


def test_without_detokenizing_every_token_is_sent() -> None:
    text = sequence_text(detokenize=False)
    assert text.push(tokens(b"\xe7")) == TextDelta("", token_ids=[0xE7])


def test_an_error_ends_the_text() -> None:
    error = ErrorInfo("engine_dead", "gone")
    delta = sequence_text().push(TokenDelta([], finish_reason="error", error=error))
    assert delta == TextDelta("", finish_reason="error", error=error)


@settings(deadline=None)
@given(said=st.text(min_size=1, max_size=10), cut=st.integers(0, 40))
def test_text_goes_on_after_what_was_generated_elsewhere(said: str, cut: int) -> None:
    data = said.encode()
    whole, before = sequence_text(stop="ab"), sequence_text(stop="ab")
    full = [whole.push(TokenDelta([byte])) for byte in data]
    first = [before.push(TokenDelta([byte])) for byte in data[:cut]]
    if any(delta is not None and delta.finish_reason for delta in first):
        return
    spec = SequenceSpec(
        sequence_id="s",
        prompt_token_ids=[ord("p")],
        generated_token_ids=list(data[:cut]),
        max_tokens=9,
        sampling=Sampling(seed=0, stop_token_ids=[EOS]),
    )
    resumed = SequenceText(TOKENIZER, SamplingParams(stop="ab"), spec, eos_token_ids=[EOS])
    rest = [resumed.push(TokenDelta([byte])) for byte in data[cut:]]

    def joined(deltas: list[TextDelta | None]) -> str:
        return "".join(delta.text for delta in deltas if delta is not None)

    assert joined(first) + joined(rest) == joined(full)
