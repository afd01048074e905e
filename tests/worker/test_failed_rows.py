"""A row that no token can be sampled for ends with an error, whatever runs beside it; nobody else notices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import streamserve_kernels
from streamserve.scheduling.plan import NO_TOKEN
from streamserve.types import SequenceSpec, TokenDelta
from tests.support.stepping import Stepper, spec
from tests.support.tiny_model import TinyLlama
from tests.worker.work import prompt_of

MakeStepper = Callable[..., Stepper]
BROKEN = 7
"""The token whose embedding is NaN."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyLlama:
    model = TinyLlama(tmp_path_factory.mktemp("tiny"))
    weights = Path(model.path) / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.embed_tokens.weight"][BROKEN] = torch.nan
    save_file(tensors, weights, {"format": "pt"})
    return model


def sound_prompt(length: int) -> list[int]:
    return [token_id for token_id in prompt_of(2 * length, length) if token_id != BROKEN][:length]


def failing(**settings: object) -> list[SequenceSpec]:
    """Sequences that fail at their first token: for their logits, and for what they exclude."""
    return [
        spec("nan", [3, BROKEN, 4], **settings),
        spec("excluded", [3, 4], allowed_token_ids=[5, 6], bad_words_token_ids=[[5], [6]], **settings),
        spec("excluded at its second token", [3, 4], allowed_token_ids=[5], bad_words_token_ids=[[5, 5]], **settings),
    ]


def assert_failed(delta: TokenDelta, token_ids: list[int]) -> None:
    assert (delta.finish_reason, delta.token_ids) == ("error", token_ids)
    assert delta.error is not None
    assert delta.error.code == "no_token_possible"
    assert not delta.logprobs or len(delta.logprobs) == len(token_ids)


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3}, {"temperature": 1.0, "top_p": 0.5}, {"logprobs": 2}],
    ids=str,
)
def test_rows_without_a_possible_token_fail_alone(
    tiny: TinyLlama, stepper: MakeStepper, settings: dict[str, object], in_flight: int
) -> None:
    """Excluded tokens made a 200 full of token 0 (argmax of -inf everywhere), and NaN logits an empty text."""
    prompt = sound_prompt(20)
    got = stepper(in_flight=in_flight).run(spec("sound", prompt, 10), *failing(**settings))
    assert got["sound"].token_ids == tiny.greedy(prompt, 10)
    assert_failed(got["nan"], [])
    assert_failed(got["excluded"], [])
    assert_failed(got["excluded at its second token"], [5])


def test_rows_fail_alone_on_two_ranks_of_which_one_has_the_broken_part(tiny: TinyLlama, rank_stepper: MakeStepper) -> None:
    prompt = sound_prompt(20)
    got = rank_stepper().run(spec("sound", prompt, 10), *failing())
    assert got["sound"].token_ids == tiny.greedy(prompt, 10)
    assert_failed(got["nan"], [])
    assert_failed(got["excluded at its second token"], [5])


def test_what_failed_rows_leave_in_the_cache_reaches_no_other(tiny: TinyLlama, stepper: MakeStepper) -> None:
    prompts = {f"sound {length}": sound_prompt(length) for length in (1, 5, 18, 40)}
    broken = [spec(f"nan {number}", [3, *[BROKEN] * 30, number], 5) for number in range(10, 14)]
    playing = stepper()
    for _ in range(2):
        got = playing.run(*broken, *(spec(name, prompt, 10) for name, prompt in prompts.items()))
        for name, prompt in prompts.items():
            assert got[name].token_ids == tiny.greedy(prompt, 10)


@pytest.mark.parametrize("behind", [1, 20])
def test_a_prefix_that_was_computed_with_a_broken_token_is_not_shared(
    tiny: TinyLlama, stepper: MakeStepper, behind: int
) -> None:
    prompt = sound_prompt(50)
    playing = stepper()
    # Of steps in which a prompt ends and of others: its tokens before the broken one may be NaN, too.
    got = playing.run(spec("broken", [*prompt, BROKEN, *prompt[:behind]], 5), spec("sound", prompt, 10))
    assert_failed(got["broken"], [])
    assert playing.run(spec("later", prompt, 10))["later"].token_ids == tiny.greedy(prompt, 10)


def test_rows_fail_alone_among_drafts(tiny: TinyLlama, stepper: MakeStepper) -> None:
    prompt = sound_prompt(20)
    playing = stepper()
    playing.propose = lambda sequence: [5, 5, 9]
    got = playing.run(spec("sound", prompt, 10), *failing())
    assert got["sound"].token_ids == tiny.greedy(prompt, 10)
    assert_failed(got["excluded at its second token"], [5])


def test_both_sides_write_no_token_alike() -> None:
    assert NO_TOKEN == streamserve_kernels.NO_TOKEN
