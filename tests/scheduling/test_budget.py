"""Who gets a step's tokens: decodes, then prompts under way, then those that wait."""

from __future__ import annotations

import pytest

from streamserve.errors import ConfigError
from tests.scheduling.oracle import expected
from tests.scheduling.play import Play, limits, rows, spec


def test_decodes_come_first_then_running_prompts_then_admissions() -> None:
    play = Play(max_num_batched_tokens=10)
    play.add(spec("a", 4), spec("b", 12), spec("c", 9))
    assert rows(play.submit()) == {0: (0, 4, True), 1: (0, 6, False)}
    assert rows(play.submit()) == {0: (4, 1, True), 1: (6, 6, True), 2: (0, 3, False)}
    plan = play.submit()
    assert [work.row for work in plan.work] == [0, 1, 2] if plan else False
    assert rows(plan) == {0: (5, 1, True), 1: (12, 1, True), 2: (3, 6, True)}


def test_no_step_exceeds_the_budget_and_prompts_are_computed_once() -> None:
    play = Play(max_num_batched_tokens=8)
    lengths = {"a": 21, "b": 3, "c": 17}
    play.add(*(spec(name, length) for name, length in lengths.items()))
    computed = 0
    while play.scheduler.has_runnable or play.outstanding:
        plan = play.submit()
        if plan is not None:
            assert 0 < plan.num_tokens <= 8
            computed += plan.num_tokens
        if len(play.outstanding) == 2 or plan is None:
            play.commit()
    assert computed == sum(length + 8 - 1 for length in lengths.values())
    stats = play.scheduler.stats()
    assert (stats.step_tokens.total, sum(stats.step_tokens.counts)) == (computed, stats.steps)
    for name, length in lengths.items():
        assert play.tokens(name) == expected(spec(name, length))[0]


def test_a_chunk_samples_only_when_it_reaches_the_end_of_the_prompt() -> None:
    play = Play(max_num_batched_tokens=8, max_num_seqs=2)
    play.add(spec("a", 17))
    assert rows(play.submit()) == {0: (0, 8, False)}
    assert rows(play.submit()) == {0: (8, 8, False)}
    assert rows(play.submit()) == {0: (16, 1, True)}
    assert (play.commit(), play.commit()) == ({}, {})
    assert play.commit() == {"a": expected(spec("a", 17))[0][:1]}


def test_a_chunk_of_one_token_counts_as_a_decode_and_samples_nothing() -> None:
    play = Play(max_num_batched_tokens=5, max_num_seqs=2)
    play.add(spec("a", 4), spec("b", 9))
    plan = play.submit()
    assert plan is not None
    assert [(work.count, work.num_sampled) for work in plan.work] == [(1, 0), (4, 1)]
    play.finish()
    assert play.tokens("a") == expected(spec("a", 4))[0]
    assert play.tokens("b") == expected(spec("b", 9))[0]


def test_without_chunked_prefill_a_prompt_is_planned_whole() -> None:
    play = Play(max_num_batched_tokens=32, max_model_len=32, enable_chunked_prefill=False)
    play.add(spec("a", 20), spec("b", 20))
    assert rows(play.submit()) == {0: (0, 20, True)}
    assert rows(play.submit()) == {0: (20, 1, True), 1: (0, 20, True)}
    play.finish()
    assert play.tokens("b") == expected(spec("b", 20))[0]


def test_without_chunked_prefill_the_longest_prompt_waits_for_a_whole_step() -> None:
    play = Play(max_num_batched_tokens=32, max_model_len=32, enable_chunked_prefill=False)
    play.add(spec("a", 4, max_tokens=3), spec("c", 4, max_tokens=3), spec("b", 31, max_tokens=1))
    assert rows(play.submit()) == {0: (0, 4, True), 1: (0, 4, True)}
    assert rows(play.submit()) == {0: (4, 1, True), 1: (4, 1, True)}
    play.finish()
    assert play.tokens("b") == expected(spec("b", 31, max_tokens=1))[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_blocks": 0},
        {"max_num_batched_tokens": 7, "max_num_seqs": 8},
        {"enable_chunked_prefill": False, "max_num_batched_tokens": 64, "max_model_len": 65},
    ],
)
def test_limits_that_could_starve_a_sequence_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        limits(**changes)


def test_an_idle_scheduler_plans_nothing() -> None:
    play = Play()
    assert play.submit() is None
    assert not play.scheduler.has_work
