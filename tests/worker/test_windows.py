"""Steps of models whose layers see windows, and give blocks back while sequences run, against transformers."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig
from streamserve.scheduling.limits import SchedulerLimits
from streamserve.types import SequenceSpec, TokenDelta
from streamserve.worker.runner import Runner
from tests.support.stepping import Stepper, spec
from tests.support.windowed_model import MODELS, WINDOW, WindowedModel

BLOCK_SIZE = 16
MakeStepper = Callable[..., Stepper]


@pytest.fixture(scope="module", params=MODELS)
def windowed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WindowedModel:
    return WindowedModel(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def stepper(request: pytest.FixtureRequest, windowed: WindowedModel) -> MakeStepper:
    """Makes a stepper over a fresh runner; with `gives_back` off, its scheduler believes that all layers see everything."""

    def make(
        *, num_blocks: int = 200, step_tokens: int = 64, max_model_len: int = 256, in_flight: int = 2, gives_back: bool = True
    ) -> Stepper:
        config = EngineConfig(
            model=windowed.path,
            device=request.param,
            dtype="float32",
            max_num_seqs=8,
            max_num_batched_tokens=step_tokens,
            max_model_len=max_model_len,
            # A block is in one tensor with 2 heads of 32 (gemma3), or in two with 2 heads of 16 (mistral).
            kv_cache_memory=num_blocks * 2 * 2 * 32 * BLOCK_SIZE * 4,
        )
        runner = Runner(config, resolve(windowed.path))
        info = runner.load()
        assert info.num_blocks == num_blocks
        assert set(info.windows) <= {WINDOW, None}
        limits = SchedulerLimits(
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            windows=info.windows if gives_back else (None,) * len(info.windows),
            max_num_seqs=8,
            max_num_batched_tokens=step_tokens,
            max_model_len=max_model_len,
        )
        return Stepper(runner, limits, in_flight=in_flight)

    return make


def prompt_of(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, 199), k=length)


def tokens_of(deltas: dict[str, TokenDelta]) -> dict[str, list[int]]:
    return {name: delta.token_ids for name, delta in deltas.items()}


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("step_tokens", [8, 33, 512])
def test_a_crowd_in_chunks_gives_the_tokens_of_transformers(
    windowed: WindowedModel, stepper: MakeStepper, step_tokens: int, in_flight: int
) -> None:
    specs = [spec(f"s{length}", prompt_of(length, length), 24) for length in (1, 15, 40, 90, 150)]
    got = tokens_of(stepper(step_tokens=step_tokens, in_flight=in_flight).run(*specs))
    assert got == {one.sequence_id: windowed.greedy(one.prompt_token_ids, 24) for one in specs}


def run_and_measure(playing: Stepper, specs: list[SequenceSpec]) -> tuple[dict[str, list[int]], int]:
    """What each sequence produced, and the most blocks that were in use."""
    used: list[int] = []
    got = playing.run(*specs, on_step=lambda: used.append(playing.scheduler.stats().kv_blocks_used))
    return tokens_of(got), max(used)


def test_blocks_are_given_back_while_a_sequence_runs(windowed: WindowedModel, stepper: MakeStepper) -> None:
    specs = [spec(f"s{index}", prompt_of(120, index), 40) for index in range(4)]
    tokens, most = run_and_measure(stepper(step_tokens=32), specs)
    kept_tokens, kept_most = run_and_measure(stepper(step_tokens=32, gives_back=False), specs)
    assert tokens == kept_tokens == {one.sequence_id: windowed.greedy(one.prompt_token_ids, 40) for one in specs}
    assert most < 0.7 * kept_most


def test_preempted_sequences_give_the_tokens_of_transformers(windowed: WindowedModel, stepper: MakeStepper) -> None:
    groups = stepper().scheduler.limits.groups
    playing = stepper(num_blocks=groups.blocks_for(256, 16) + 4, step_tokens=16)
    specs = [spec(f"s{seed}", prompt_of(30 + 20 * seed, seed), 60) for seed in range(5)]
    got = tokens_of(playing.run(*specs))
    assert playing.scheduler.stats().num_preemptions > 0
    assert got == {one.sequence_id: windowed.greedy(one.prompt_token_ids, 60) for one in specs}


def test_a_prefix_hit_gives_the_tokens_of_transformers(windowed: WindowedModel, stepper: MakeStepper) -> None:
    playing, shared = stepper(step_tokens=32), prompt_of(100, 1)
    playing.run(spec("first", shared, 20))
    got = playing.run(spec("second", [*shared, 7, 8], 10), spec("shorter", [*shared[:70], 9], 10))
    assert (got["second"].cached_tokens, got["shorter"].cached_tokens) == (96, 64)
    assert got["second"].token_ids == windowed.greedy([*shared, 7, 8], 10)
    assert got["shorter"].token_ids == windowed.greedy([*shared[:70], 9], 10)


def test_a_sequence_of_the_longest_context_runs_in_the_memory_that_one_is_said_to_need(
    windowed: WindowedModel, stepper: MakeStepper
) -> None:
    groups = stepper().scheduler.limits.groups
    least = groups.blocks_for(256, 16)
    assert least < -(-256 // BLOCK_SIZE) * len(groups.windows)
    got = stepper(num_blocks=least, step_tokens=16).run(spec("full", prompt_of(226, 2), 30))["full"]
    assert got.token_ids == windowed.greedy(prompt_of(226, 2), 30)
