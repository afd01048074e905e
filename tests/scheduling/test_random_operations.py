"""Hypothesis drives the scheduler: any order of operations keeps the invariants, any driving gives the same tokens."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamserve.types import SequenceSpec
from tests.scheduling.machine import MOST_DRAFTS, SchedulerMachine, sequence_specs, settings_of_a_scheduler
from tests.scheduling.oracle import constraint_of, expected
from tests.scheduling.play import Play
from tests.support.scheduler_invariants import check_invariants
from tests.support.specs import make_spec

TestRandomOperations = SchedulerMachine.TestCase
TestRandomOperations.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@st.composite
def crowds(draw: st.DrawFn) -> list[SequenceSpec]:
    specs = [draw(sequence_specs(f"s{index}")) for index in range(draw(st.integers(1, 6)))]
    return [spec for spec in specs if spec.max_time_s is None]


@settings(max_examples=150, deadline=None)
@given(limits=settings_of_a_scheduler(), crowd=crowds())
def test_overlapped_and_sequential_steps_produce_the_same_tokens(limits: dict[str, Any], crowd: list[SequenceSpec]) -> None:
    outputs = []
    for outstanding in (1, 2, 3):
        play = Play(**limits)
        for spec in crowd:
            play.add(spec, constraint=constraint_of(spec))
        play.finish(outstanding)
        check_invariants(play.scheduler)
        outputs.append({spec.sequence_id: play.output(spec.sequence_id) for spec in crowd})
    for spec in crowd:
        told = [output[spec.sequence_id] for output in outputs]
        assert (told[0].token_ids, told[0].finish_reason) == expected(spec)
        for other in told[1:]:
            assert (other.token_ids, other.logprobs, other.prompt_logprobs) == (
                told[0].token_ids,
                told[0].logprobs,
                told[0].prompt_logprobs,
            )


@settings(max_examples=100, deadline=None)
@given(limits=settings_of_a_scheduler(), crowd=crowds(), outstanding=st.integers(1, 3), seed=st.integers(0, 99))
def test_drafts_change_no_token_and_no_log_probability(
    limits: dict[str, Any], crowd: list[SequenceSpec], outstanding: int, seed: int
) -> None:
    rng = random.Random(seed)
    outputs = []
    for most_drafts in (0, MOST_DRAFTS):
        play = Play(**limits)
        for spec in crowd:
            play.add(spec, constraint=constraint_of(spec))

        def offer(play: Play = play, most_drafts: int = most_drafts) -> None:
            check_invariants(play.scheduler, most_drafts=most_drafts * 3)
            for spec in crowd:
                if spec.sequence_id in play.scheduler.registry.sequences:
                    drafts = play.guess(spec, rng.randint(0, most_drafts), rng.randint(0, 6))
                    play.scheduler.offer_drafts(spec.sequence_id, drafts)

        play.finish(outstanding, offer)
        outputs.append({spec.sequence_id: play.output(spec.sequence_id) for spec in crowd})
    for spec in crowd:
        without, drafted = (output[spec.sequence_id] for output in outputs)
        assert (drafted.token_ids, drafted.finish_reason) == expected(spec)
        assert (drafted.logprobs, drafted.prompt_logprobs) == (without.logprobs, without.prompt_logprobs)


@pytest.mark.parametrize("outstanding", [1, 2])
def test_a_crowd_that_preempts_itself_all_the_time_produces_the_same_tokens(outstanding: int) -> None:
    specs = [make_spec(f"s{index}", [index] * 5, seed=index, max_tokens=20, stop_token_ids=[0]) for index in range(12)]
    play = Play(num_blocks=9, max_num_seqs=6, max_num_batched_tokens=16)
    play.add(*specs)
    play.finish(outstanding)
    assert play.scheduler.stats().num_preemptions > 5
    for spec in specs:
        assert (play.tokens(spec.sequence_id), play.output(spec.sequence_id).finish_reason) == expected(spec)
