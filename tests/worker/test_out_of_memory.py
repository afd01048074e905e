"""A step that the device lacks the memory for runs in pieces, to the same tokens; only what fits in no piece is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from streamserve.errors import RankOutOfMemory
from streamserve.fail_points import arm, disarm, faults_from
from streamserve.scheduling.plan import Plan, RowWork
from streamserve.types import SequenceSpec
from streamserve.worker.communication.base import alone
from streamserve.worker.device.cpu import CpuDevice
from streamserve.worker.divided_steps import halves
from streamserve.worker.step_memory import OUT_OF_MEMORY, OUT_OF_MEMORY_AMONG_RANKS, AgreedMemory, LargestStep, TriedMemory
from tests.support.stepping import Stepper, spec
from tests.support.tiny_model import TinyLlama
from tests.worker.work import prompt_of

MakeStepper = Callable[..., Stepper]


@pytest.fixture
def faults(tmp_path: Path) -> Iterator[Path]:
    with faults_from(tmp_path):
        yield tmp_path


def crowd(**settings: Any) -> list[SequenceSpec]:
    return [spec(f"s{length}", prompt_of(length, length), 10, **settings) for length in (1, 5, 33, 60, 90)]


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.0, "logprobs": 2, "prompt_logprobs": 1}], ids=["greedy", "logprobs"]
)
def test_steps_that_run_out_of_memory_are_divided_and_give_the_same_tokens(
    stepper: MakeStepper, faults: Path, settings: dict[str, Any], in_flight: int, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = stepper(in_flight=in_flight).run(*crowd(**settings))
    arm(faults, OUT_OF_MEMORY, times=20, at_least=40)
    playing = stepper(in_flight=in_flight)
    with caplog.at_level(logging.WARNING):
        disturbed = playing.run(*crowd(**settings))
    for name, delta in undisturbed.items():
        assert disturbed[name].token_ids == delta.token_ids
        assert disturbed[name].finish_reason == "length"
        for ours, theirs in (
            (disturbed[name].logprobs, delta.logprobs),
            (disturbed[name].prompt_logprobs, delta.prompt_logprobs),
        ):
            assert [each and each.token_id for each in ours or []] == [each and each.token_id for each in theirs or []]
    scheduler = playing.scheduler
    assert 8 <= scheduler.step_tokens < 40, "later steps are planned as large as before"
    assert 1 <= scheduler.stats().divided_steps <= 1 + in_flight, "and run out of memory again"
    assert disarm(faults, OUT_OF_MEMORY) > 15
    assert len(caplog.records) == 1


def test_drafts_are_checked_in_pieces_too(stepper: MakeStepper, tiny: TinyLlama, faults: Path) -> None:
    prompts = {f"s{seed}": prompt_of(3, seed) for seed in range(1, 6)}
    tokens = {name: tiny.greedy(prompt, 12) for name, prompt in prompts.items()}
    playing = stepper()
    playing.propose = lambda sequence: tokens[sequence.sequence_id][len(sequence.token_ids) - 3 + sequence.num_in_flight :][:4]
    arm(faults, OUT_OF_MEMORY, times=99, at_least=8)
    got = playing.run(*(spec(name, prompt) for name, prompt in prompts.items()))
    assert {name: delta.token_ids for name, delta in got.items()} == tokens
    assert playing.num_steps < 12, "no draft was accepted"


@pytest.mark.parametrize("in_flight", [1, 2])
def test_what_fits_in_no_piece_ends_alone(stepper: MakeStepper, tiny: TinyLlama, faults: Path, in_flight: int) -> None:
    prompts = {"one": prompt_of(5, 1), "long": prompt_of(90, 2), "two": prompt_of(7, 3)}
    arm(faults, OUT_OF_MEMORY, times=60, at_least=10)
    playing = stepper(in_flight=in_flight)
    got = playing.run(*(spec(name, prompt) for name, prompt in prompts.items()))
    for name in ("one", "two"):
        assert got[name].token_ids == tiny.greedy(prompts[name], 12)
    assert (got["long"].finish_reason, got["long"].token_ids) == ("error", [])
    assert got["long"].error is not None
    assert got["long"].error.code == "out_of_memory"
    disarm(faults, OUT_OF_MEMORY)
    again = playing.run(spec("again", prompts["long"]))
    assert again["again"].token_ids == tiny.greedy(prompts["long"], 12), "its blocks hold what was never computed"


def test_ranks_divide_a_step_alike_that_one_of_them_lacks_the_memory_for(
    rank_stepper: MakeStepper, tiny: TinyLlama, faults: Path
) -> None:
    """Each fault is one rank's: in any attempt one of the two may find the memory. `RankThreads` compares what they sample."""
    playing = rank_stepper()
    arm(faults, OUT_OF_MEMORY, times=5, at_least=40)
    got = playing.run(*crowd())
    assert {name: delta.token_ids for name, delta in got.items()} == {
        f"s{length}": tiny.greedy(prompt_of(length, length), 10) for length in (1, 5, 33, 60, 90)
    }
    assert playing.scheduler.step_tokens < 40
    assert 1 <= playing.scheduler.stats().divided_steps <= 3


def test_what_fits_in_no_piece_of_some_rank_ends_alone(rank_stepper: MakeStepper, tiny: TinyLlama, faults: Path) -> None:
    prompts = {"one": prompt_of(5, 1), "long": prompt_of(90, 2), "two": prompt_of(7, 3)}
    arm(faults, OUT_OF_MEMORY, times=60, at_least=10)
    got = rank_stepper().run(*(spec(name, prompt) for name, prompt in prompts.items()))
    assert {name: got[name].token_ids for name in ("one", "two")} == {n: tiny.greedy(prompts[n], 12) for n in ("one", "two")}
    assert got["long"].error is not None
    assert got["long"].error.code == "out_of_memory"


def test_steps_are_as_small_as_an_engine_before_this_one_found_out(rank_stepper: MakeStepper, tiny: TinyLlama) -> None:
    playing = rank_stepper(most_step_tokens=20)
    got = playing.run(spec("long", prompt_of(90, 2)))
    assert got["long"].token_ids == tiny.greedy(prompt_of(90, 2), 12)
    assert playing.scheduler.step_tokens <= 20
    assert playing.scheduler.stats().divided_steps >= 1


def test_memory_that_runs_out_where_other_ranks_wait_is_told_apart(tiny: TinyLlama, faults: Path) -> None:
    memory = AgreedMemory(CpuDevice(), alone(CpuDevice()), LargestStep(64, 8, 0))
    arm(faults, OUT_OF_MEMORY_AMONG_RANKS)
    with pytest.raises(RankOutOfMemory, match="a step of 7 tokens") as told, memory.of_step(plan_of(7), 1):
        pass
    assert told.value.num_tokens == 7
    with pytest.raises(RankOutOfMemory), memory.of_step(plan_of(7), 1):
        torch.empty(1 << 60)
    with pytest.raises(torch.OutOfMemoryError), TriedMemory().of_step(plan_of(7), 1):
        torch.empty(1 << 60)
    with pytest.raises(RuntimeError, match="shape"), TriedMemory().of_step(plan_of(7), 1):
        torch.empty(2, 3).view(7)


class Reserving(CpuDevice):
    """A device with so many bytes to reserve; keeps how many were asked for."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__()
        self.num_bytes, self.asked = num_bytes, list[int]()

    def reserve(self, num_bytes: int) -> None:
        self.asked.append(num_bytes)
        if num_bytes > self.num_bytes:
            raise torch.OutOfMemoryError


def test_the_largest_step_is_reserved_at_the_start_and_each_one_before_it_is_launched() -> None:
    device = Reserving(600)
    memory = AgreedMemory(device, alone(device), LargestStep(64, 8, 800))
    memory.prepare()
    with memory.of_step(plan_of(32), 1):
        pass
    with pytest.raises(torch.OutOfMemoryError), memory.of_step(plan_of(32), 8):
        pytest.fail("it was launched")
    assert device.asked == [900, 450, 900]


def plan_of(num_tokens: int) -> Plan:
    return Plan(1, [], [], [RowWork(0, 0, num_tokens, 1)])


def test_what_is_reserved_grows_with_tokens_and_with_lines() -> None:
    largest = LargestStep(8192, 256, 800)
    assert largest.bytes_of(8192, 256) == 900
    assert largest.bytes_of(4096, 1) == 450
    assert largest.bytes_of(32, 512) == 1800


@pytest.mark.parametrize(
    "work",
    [
        [(1, 1, 1), (2, 1, 1)],
        [(1, 1, 1), (2, 90, 0)],
        [(1, 90, 1)],
        [(1, 33, 1)],
        [(1, 5, 5), (2, 5, 5), (3, 40, 1)],
        [(1, 1, 1), (2, 1, 0), (3, 17, 0), (4, 300, 0), (5, 20, 1)],
    ],
)
def test_halves_are_the_whole_in_order(work: list[tuple[int, int, int]]) -> None:
    items = [RowWork(row, 100 * row, count, num_sampled) for row, count, num_sampled in work]
    parts = halves(items)
    assert parts is not None
    assert all(parts)
    positions = [(item.row, item.start + place) for part in parts for item in part for place in range(item.count)]
    assert positions == [(item.row, item.start + place) for item in items for place in range(item.count)]
    assert [(item.row, item.num_sampled) for part in parts for item in part if item.num_sampled] == [
        (item.row, item.num_sampled) for item in items if item.num_sampled
    ]
    for part in parts:
        counts = [item.count for item in part]
        assert counts == [1] * counts.count(1) + [count for count in counts if count > 1]


@pytest.mark.parametrize("work", [(1, 1), (31, 1), (5, 5), (40, 40)])
def test_a_row_of_few_tokens_or_with_drafts_is_not_divided(work: tuple[int, int]) -> None:
    assert halves([RowWork(3, 0, *work)]) is None
