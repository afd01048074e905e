"""Preparation: every default resolved, everything refused that can be, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from streamserve.checkpoint.files import Checkpoint
from streamserve.errors import ContextLengthExceeded, InvalidParameter
from streamserve.text.loading import TokenizerParts
from streamserve.text.preparation import Preparation, PreparedPrompt, Prompt
from streamserve.text.sampling_defaults import default_sampling_params
from streamserve.text.tokenizers.tokenizer import Tokenizer
from streamserve.types import SamplingParams
from tests.support.byte_tokenizer import EOS, VOCAB_SIZE, ByteVocabulary, byte_tokenizer


def prepare(prompt: Prompt = "prompt", *, options: dict[str, Any] | None = None, **params: Any) -> PreparedPrompt:
    preparation = Preparation(
        byte_tokenizer(), max_model_len=64, vocab_size=VOCAB_SIZE, eos_token_ids=(EOS,), next_seed=lambda: 2**63 - 1
    )
    return preparation.prepare(prompt, SamplingParams(**params), request_id="r", **(options or {}))


def test_a_text_becomes_token_ids_and_stays_known() -> None:
    prepared = prepare("秋", max_tokens=5)
    assert prepared.prompt == "秋"
    assert prepared.prompt_token_ids == list("秋".encode())
    assert [spec.prompt_token_ids for spec in prepared.specs] == [list("秋".encode())]
    assert prepare([1, 2]).prompt is None


def test_a_text_that_could_never_fit_is_refused_before_it_is_tokenised() -> None:
    class NeverAsked(ByteVocabulary):
        def encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
            raise AssertionError("tokenised")

    preparation = Preparation(Tokenizer(TokenizerParts(NeverAsked())), max_model_len=64, vocab_size=VOCAB_SIZE)
    with pytest.raises(ContextLengthExceeded, match="1000000 characters"):
        preparation.prepare("x" * 1_000_000, SamplingParams(), request_id="r")
    assert len(prepare("x" * 1_000_000, truncate_prompt_tokens=3).prompt_token_ids) == 3


def test_each_output_has_a_name_and_a_seed_of_its_own() -> None:
    specs = prepare(n=3, seed=7).specs
    assert [(spec.sequence_id, spec.sampling.seed) for spec in specs] == [("r-0", 7), ("r-1", 8), ("r-2", 9)]
    assert [spec.sampling.seed for spec in prepare(n=2).specs] == [2**63 - 1, 0]
    assert [spec.sampling.seed for spec in prepare(seed=-1).specs] == [2**63 - 1]


def test_sampling_parameters_reach_the_engine_unchanged() -> None:
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.1,
        "min_tokens": 2,
        "logprobs": 3,
        "prompt_logprobs": 4,
        "logit_bias": {5: 1.0},
        "allowed_token_ids": [1, 2],
    }
    spec = prepare(max_time=1.5, options={"priority": -1, "cache_salt": "salt"}, **given).specs[0]
    assert {name: getattr(spec.sampling, name) for name in given} == given
    assert (spec.max_time_s, spec.priority, spec.cache_salt) == (1.5, -1, "salt")
    assert prepare(top_k=-1).specs[0].sampling.top_k == 0


def test_stop_ids_hold_the_end_of_sequence_unless_ignored() -> None:
    assert prepare(stop_token_ids=[3]).specs[0].sampling.stop_token_ids == [3, EOS]
    assert prepare(stop_token_ids=[3], ignore_eos=True).specs[0].sampling.stop_token_ids == [3]


def test_without_max_tokens_the_context_is_filled() -> None:
    assert prepare("1234", max_tokens=None).specs[0].max_tokens == 60


def test_a_prompt_can_be_truncated_to_its_last_tokens() -> None:
    assert prepare("0123456789" * 10, truncate_prompt_tokens=3).prompt_token_ids == list(b"789")


@pytest.mark.parametrize(("length", "max_tokens", "param"), [(64, 1, "prompt"), (64, None, "prompt"), (60, 5, "max_tokens")])
def test_what_does_not_fit_the_context_is_refused(length: int, max_tokens: int | None, param: str) -> None:
    with pytest.raises(ContextLengthExceeded, match=f"maximum context length is 64 tokens.*{length} in the prompt") as raised:
        prepare("x" * length, max_tokens=max_tokens)
    assert raised.value.param == param


def test_the_output_can_be_shortened_instead() -> None:
    options = {"clamp_max_tokens": True}
    assert prepare("x" * 60, max_tokens=50, options=options).specs[0].max_tokens == 4
    with pytest.raises(ContextLengthExceeded):
        prepare("x" * 64, max_tokens=1, options=options)


@pytest.mark.parametrize(
    ("prompt", "params", "param"),
    [
        ("", {}, "prompt"),
        ([], {}, "prompt"),
        ([0, VOCAB_SIZE], {}, "prompt"),
        ([-1], {}, "prompt"),
        ([True], {}, "prompt"),
        (["a"], {}, "prompt"),
        ("\ud800", {}, "prompt"),
        ("a", {"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
        ("a", {"allowed_token_ids": [-1]}, "allowed_token_ids"),
        ("a", {"logit_bias": {VOCAB_SIZE: 1.0}}, "logit_bias"),
        ("a", {"logprobs": 21}, "logprobs"),
        ("a", {"logprobs": -1}, "logprobs"),
        ("a", {"prompt_logprobs": 21}, "prompt_logprobs"),
        ("x" * 60, {"min_tokens": 5, "max_tokens": None}, "min_tokens"),
    ],
)
def test_wrong_values_are_refused_by_name(prompt: Any, params: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidParameter) as raised:
        prepare(prompt, **params)
    assert raised.value.param == param
    assert raised.value.status == 400


def test_minus_one_means_every_token_where_there_is_no_limit() -> None:
    preparation = Preparation(byte_tokenizer(), max_model_len=64, vocab_size=VOCAB_SIZE, max_logprobs=-1)
    prepared = preparation.prepare("a", SamplingParams(logprobs=-1, prompt_logprobs=30), request_id="r")
    assert (prepared.specs[0].sampling.logprobs, prepared.specs[0].sampling.prompt_logprobs) == (VOCAB_SIZE, 30)


def test_a_text_that_makes_a_token_without_an_embedding_is_refused_by_the_tokens_name() -> None:
    preparation = Preparation(byte_tokenizer(), max_model_len=64, vocab_size=ord("z"))
    with pytest.raises(InvalidParameter, match=r"holds 'z', a token \(id 122\)") as raised:
        preparation.prepare("fizz", SamplingParams(), request_id="r")
    assert raised.value.param == "prompt"
    kept = preparation.prepare("fizz up", SamplingParams(truncate_prompt_tokens=2, bad_words=["z", "x"]), request_id="r")
    assert kept.prompt_token_ids == list(b"up")
    assert kept.specs[0].sampling.bad_words_token_ids == [list(b"x"), list(b" x")]


@pytest.mark.parametrize(
    ("excluding", "params"),
    [
        ("bad_words", {"bad_words": ["a", "b"], "allowed_token_ids": list(b"ab")}),
        ("min_tokens", {"min_tokens": 1, "allowed_token_ids": [EOS]}),
        ("min_tokens", {"min_tokens": 1, "bad_words": ["a"], "allowed_token_ids": [EOS, *b"a"]}),
    ],
)
def test_allowed_tokens_that_are_all_excluded_are_refused(excluding: str, params: dict[str, Any]) -> None:
    """They were answered with token 0, which nobody had allowed."""
    with pytest.raises(InvalidParameter, match=f"allowed_token_ids: names only tokens that {excluding} excludes"):
        prepare(**params)


def test_prompts_of_one_request_share_their_lists() -> None:
    params = SamplingParams(allowed_token_ids=[3, 1], bad_words=["x"], stop_token_ids=[5], logit_bias={2: 1.0}, n=2)
    preparation = Preparation(byte_tokenizer(), max_model_len=64, vocab_size=VOCAB_SIZE, next_seed=iter((7, 50)).__next__)
    first = preparation.prepare("a", params, request_id="r-0")
    second = preparation.prepare("b", params, request_id="r-1", like=first)
    samplings = [spec.sampling for spec in (*first.specs, *second.specs)]
    assert [sampling.seed for sampling in samplings] == [7, 8, 50, 51]
    for name in ("allowed_token_ids", "bad_words_token_ids", "stop_token_ids", "logit_bias"):
        assert len({id(getattr(sampling, name)) for sampling in samplings}) == 1


@pytest.mark.parametrize("name", ["allowed_token_ids", "stop_token_ids"])
def test_a_list_of_more_ids_than_there_are_is_refused_and_one_that_repeats_them_shortened(name: str) -> None:
    with pytest.raises(InvalidParameter, match=f"{name}: names {VOCAB_SIZE + 1} tokens; this model has {VOCAB_SIZE}"):
        prepare(**{name: [7] * (VOCAB_SIZE + 1)})
    sampling = prepare(**{name: [7] * VOCAB_SIZE}, ignore_eos=True).specs[0].sampling
    assert getattr(sampling, name) == [7]


def test_ids_that_do_not_fit_the_context_are_refused_before_they_are_looked_at() -> None:
    with pytest.raises(ContextLengthExceeded, match="65 in the prompt"):
        prepare([-1] * 65)
    assert prepare([-1] * 65 + [1], truncate_prompt_tokens=1).prompt_token_ids == [1]


def test_bad_words_are_banned_at_the_start_and_after_a_space(demo: Tokenizer) -> None:
    preparation = Preparation(demo, max_model_len=64, vocab_size=demo.vocab_size)
    spec = preparation.prepare("a", SamplingParams(bad_words=["Paris", " Paris", "北京"]), request_id="r").specs[0]
    texts = [demo.decode(token_ids) for token_ids in spec.sampling.bad_words_token_ids]
    assert sorted(texts) == sorted(["Paris", " Paris", "北京", " 北京"])


def test_a_models_recommendations_are_sampling_parameters() -> None:
    recommended = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "max_new_tokens": 9, "eos_token_id": 3, "min_p": None}
    checkpoint = Checkpoint(source="x", path=Path("x"), format="dummy", config={}, generation_config=recommended)
    assert default_sampling_params(checkpoint) == {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "max_tokens": 9}
