"""Vectors of prompts, against transformers' states: whole and in chunks, beside decodes, preempted, divided, over two ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streamserve.fail_points import arm, faults_from
from streamserve.types import Pooling, SequenceSpec, TokenDelta
from streamserve.worker.step_memory import OUT_OF_MEMORY
from tests.support.stepping import Stepper, spec
from tests.support.tiny_model import TinyLlama
from tests.worker.playing import Playing
from tests.worker.two_ranks import stepper_of, two_ranks
from tests.worker.work import prompt_of

MakeStepper = Callable[..., Stepper]

POOLINGS = [
    Pooling("last"),
    Pooling("mean"),
    Pooling("mean", normalize=False),
    Pooling("last", dimensions=10),
    Pooling("mean", normalize=False, dimensions=96),
]


def pooled(name: str, prompt: list[int], pooling: Pooling) -> SequenceSpec:
    return spec(name, prompt, 1, pooling=pooling)


def crowd(*lengths: int) -> list[SequenceSpec]:
    """Prompts of these lengths, pooled in all ways, and two that generate beside them."""
    prompts = [
        pooled(f"p{length}", prompt_of(length, length), POOLINGS[place % len(POOLINGS)]) for place, length in enumerate(lengths)
    ]
    return [spec("g5", prompt_of(5, 5), 14), *prompts, spec("g40", prompt_of(40, 40), 14)]


def check(tiny: TinyLlama, specs: list[SequenceSpec], deltas: dict[str, TokenDelta]) -> None:
    for one in specs:
        delta = deltas[one.sequence_id]
        if one.pooling is None:
            assert delta.token_ids == tiny.greedy(one.prompt_token_ids, 14)
        else:
            assert delta.embedding is not None
            vector = np.frombuffer(delta.embedding, dtype="<f4")
            np.testing.assert_allclose(vector, tiny.embedding(one.prompt_token_ids, one.pooling), atol=2e-5)


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("step_tokens", [9, 512])
def test_vectors_are_made_of_the_states_of_transformers(
    tiny: TinyLlama, stepper: MakeStepper, step_tokens: int, in_flight: int
) -> None:
    specs = crowd(1, 16, 17, 33, 90)
    check(tiny, specs, stepper(step_tokens=step_tokens, in_flight=in_flight).run(*specs))


def test_preempted_prompts_are_pooled_from_their_first_token(tiny: TinyLlama, stepper: MakeStepper) -> None:
    long = [spec(f"g{seed}", prompt_of(15, seed), 40) for seed in range(2)]
    mean = pooled("p", prompt_of(60, 60), POOLINGS[1])
    playing = stepper(num_blocks=9, step_tokens=5, rows=3)
    check(tiny, [mean], playing.run(*long, mean))
    assert playing.scheduler.stats().num_preemptions > 0


def test_a_prefix_from_the_cache_changes_no_vector(tiny: TinyLlama, stepper: MakeStepper) -> None:
    playing, prompt = stepper(), prompt_of(50, 1)
    playing.run(spec("first", prompt, 2))
    for place, pooling in enumerate(POOLINGS):
        specs = [pooled(f"p{place}", prompt, pooling)]
        deltas = playing.run(*specs)
        check(tiny, specs, deltas)
        assert deltas[f"p{place}"].cached_tokens == (48 if pooling.kind == "last" else 0)


def test_steps_that_run_out_of_memory_pool_no_token_twice(tiny: TinyLlama, stepper: MakeStepper, tmp_path: Path) -> None:
    arm(tmp_path, OUT_OF_MEMORY, times=20, at_least=40)
    specs = crowd(33, 60, 90)
    playing = stepper()
    with faults_from(tmp_path):
        check(tiny, specs, playing.run(*specs))
    assert playing.scheduler.stats().divided_steps > 0


def test_steps_that_are_replayed_pool_too(tiny: TinyLlama) -> None:
    specs = crowd(1, 16, 33)
    playing = Playing(tiny, 2)
    check(tiny, specs, playing.run(*specs))
    assert playing.device.replays > 0


def test_two_ranks_pool_as_one_does(tiny: TinyLlama) -> None:
    specs = [one for one in crowd(1, 17, 40) if one.pooling is not None]
    with two_ranks(Path(tiny.path)) as (ranks, info):
        check(tiny, specs, stepper_of(ranks, info, 14).run(*specs))
