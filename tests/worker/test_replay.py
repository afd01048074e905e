"""Captured decode steps, on a CPU that takes captures as a GPU does: same memory, read again at every replay."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.stepping import spec
from tests.support.tiny_model import TinyLlama
from tests.support.windowed_model import MODELS, WindowedModel
from tests.worker.playing import Playing


@pytest.mark.parametrize("in_flight", [1, 2])
def test_replayed_steps_give_the_tokens_of_transformers(tiny: TinyLlama, in_flight: int) -> None:
    playing = Playing(tiny, in_flight)
    # They end one after another, so that rows leave in the middle and sizes change; two grow into new blocks on the way.
    specs = [spec(f"s{length}", list(range(3, 3 + length)), 6 + length) for length in (1, 5, 12, 30, 17)]
    got = {name: delta.token_ids for name, delta in playing.run(*specs).items()}
    assert got == {one.sequence_id: tiny.greedy(one.prompt_token_ids, one.max_tokens) for one in specs}


@pytest.mark.parametrize("name", MODELS)
def test_replayed_steps_of_windowed_layers_give_the_tokens_of_transformers(name: str, tmp_path: Path) -> None:
    model = WindowedModel(name, tmp_path)
    playing = Playing(model, 2)
    specs = [spec(f"s{length}", prompt(length, length), 30 + length % 7) for length in (1, 12, 40, 90)]
    got = {name: delta.token_ids for name, delta in playing.run(*specs).items()}
    assert got == {one.sequence_id: model.greedy(one.prompt_token_ids, one.max_tokens) for one in specs}
    assert playing.device.replays > playing.steps // 2


@pytest.mark.parametrize("in_flight", [1, 2])
def test_prompts_are_replayed_beside_decodes_however_their_tokens_are_shared_out(tiny: TinyLlama, in_flight: int) -> None:
    playing = Playing(tiny, in_flight)
    # Steps of 64 tokens: the last prompts come in chunks, while others decode.
    shares = [(9, 20, 20, 11), (1, 3, 50, 6), (2, 29, 29), (60,), (70, 100, 30)]
    for first, lengths in enumerate(shares):
        specs = [spec(f"{first}-{index}", prompt(first, length), 20 - length // 8) for index, length in enumerate(lengths)]
        got = {name: delta.token_ids for name, delta in playing.run(*specs).items()}
        assert got == {one.sequence_id: tiny.greedy(one.prompt_token_ids, one.max_tokens) for one in specs}
    captured, replays, steps = playing.device.captured, playing.device.replays, playing.steps
    for first, lengths in enumerate(shares, 20):
        specs = [spec(f"{first}-{index}", prompt(first, length), 20 - length // 8) for index, length in enumerate(lengths)]
        playing.run(*specs)
    assert playing.device.captured == captured, "every size was seen before"
    assert playing.device.replays - replays == playing.steps - steps


def test_log_probabilities_of_a_prompt_are_those_of_a_step_without_padding(tiny: TinyLlama) -> None:
    answers = []
    for captures in (True, False):
        playing = Playing(tiny, 2, captures=captures)
        # The first decodes while the second's prompt is computed, which has padding before and behind it.
        got = playing.run(spec("plain", [5, 6, 7], 9), spec("scored", prompt(4, 90), 3, prompt_logprobs=1))
        answers.append(got["scored"].prompt_logprobs)
    assert answers[0] is not None
    assert len(answers[0]) >= 89
    replayed, launched = ([None if entry is None else entry.logprob for entry in answer or []] for answer in answers)
    assert replayed == pytest.approx(launched, abs=1e-4)


def test_a_step_of_the_same_rows_tells_the_device_nothing(tiny: TinyLlama) -> None:
    playing = Playing(tiny, 2)
    before = playing.device.uploads
    playing.run(spec("one", [5, 6, 7], 12))
    # The start and the work of the prompt, and the work of the first decode step; all tokens fit one block.
    assert playing.device.uploads - before == 3
    assert playing.steps == 12


def test_a_row_that_needs_more_is_sampled_on_its_own(tiny: TinyLlama) -> None:
    playing = Playing(tiny, 2)
    got = playing.run(spec("plain", [5, 6, 7], 9), spec("biased", [8, 9], 9, logit_bias={11: 100.0}))
    assert got["plain"].token_ids == tiny.greedy([5, 6, 7], 9)
    assert got["biased"].token_ids == [11] * 9


def prompt(first: int, length: int) -> list[int]:
    return [3 + (first + 7 * place) % 50 for place in range(length)]
