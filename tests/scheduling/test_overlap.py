"""Two steps outstanding: what is planned, dropped and kept while tokens are in flight."""

from __future__ import annotations

import pytest

from streamserve.scheduling.plan import StepResult
from tests.scheduling.oracle import EOS, expected
from tests.scheduling.play import Play, rows, spec


def eos_after(num_tokens: int) -> int:
    """A seed with which the fake model ends a sequence named "a" with its `num_tokens`-th token."""
    for seed in range(10_000):
        tokens, reason = expected(spec("a", seed=seed, stop_token_ids=[EOS], max_tokens=num_tokens + 4))
        if reason == "stop" and len(tokens) == num_tokens:
            return seed
    raise AssertionError("no such seed")


def test_the_next_token_is_planned_while_the_last_one_is_in_flight() -> None:
    play = Play()
    play.add(spec("a", 6))
    assert rows(play.submit()) == {0: (0, 6, True)}
    assert rows(play.submit()) == {0: (6, 1, True)}
    assert play.scheduler.registry.sequences["a"].num_in_flight == 2
    play.commit()
    assert rows(play.submit()) == {0: (7, 1, True)}
    play.finish()
    assert (play.tokens("a"), "length") == expected(spec("a", 6))


def test_no_row_is_scheduled_past_max_tokens_with_two_steps_outstanding() -> None:
    play = Play()
    play.add(spec("a", max_tokens=2))
    play.submit()
    play.submit()
    assert play.submit() is None
    play.commit()
    assert play.submit() is None
    play.commit()
    assert play.output("a").finish_reason == "length"
    assert len(play.tokens("a")) == 2
    assert play.scheduler.stats().wasted_tokens == 0


def test_an_end_of_sequence_finish_wastes_exactly_one_token() -> None:
    play = Play()
    play.add(spec("a", seed=eos_after(3), stop_token_ids=[EOS]))
    play.finish()
    assert play.output("a").finish_reason == "stop"
    assert play.output("a").stop_reason == EOS
    assert play.tokens("a")[-1] == EOS
    assert play.scheduler.stats().wasted_tokens == 1


def test_without_overlap_an_end_of_sequence_wastes_nothing() -> None:
    play = Play()
    play.add(spec("a", seed=eos_after(3), stop_token_ids=[EOS]))
    play.finish(outstanding=1)
    assert play.scheduler.stats().wasted_tokens == 0


def test_a_row_goes_to_its_next_owner_while_a_token_of_the_former_one_is_in_flight() -> None:
    play = Play(max_num_seqs=1)
    play.add(spec("a", seed=eos_after(2), stop_token_ids=[EOS]), spec("b", 5))
    play.submit()
    play.submit()
    play.commit()
    play.submit()  # in flight for "a", which ends with the next commit
    play.commit()
    plan = play.submit()
    assert plan is not None
    assert [start.row for start in plan.starts] == [0]
    assert play.commit() == {}  # a's token past its end is dropped
    play.finish()
    assert play.tokens("b") == expected(spec("b", 5))[0]
    assert play.scheduler.stats().wasted_tokens == 1


def test_tokens_in_flight_for_a_departed_reader_are_dropped_and_counted() -> None:
    play = Play()
    play.add(spec("a"))
    play.submit()
    play.submit()
    play.abort("a")
    assert (play.commit(), play.commit()) == ({}, {})
    stats = play.scheduler.stats()
    assert (stats.wasted_tokens, stats.tokens_wasted_after_disconnect) == (2, 2)
    assert [delta.finish_reason for delta in play.deltas["a"]] == ["abort"]


def test_a_new_sequence_may_take_the_name_of_an_aborted_one_with_tokens_in_flight() -> None:
    play = Play()
    play.add(spec("a"))
    play.submit()
    play.abort("a")
    play.add(spec("a", seed=2))
    play.submit()
    assert play.commit() == {}
    play.deltas.clear()
    play.finish()
    assert play.tokens("a") == expected(spec("a", seed=2))[0]


def test_results_must_come_in_the_order_of_the_steps() -> None:
    play = Play()
    play.add(spec("a"))
    play.submit()
    play.submit()
    (first, _), (second, result) = play.outstanding
    with pytest.raises(ValueError, match="expected the result of step 0"):
        play.scheduler.commit(second, result, 0.0)
    with pytest.raises(ValueError, match="expected the result of step 0"):
        play.scheduler.commit(first, result, 0.0)


def test_a_result_with_too_few_tokens_is_refused() -> None:
    play = Play()
    play.add(spec("a"), spec("b"))
    play.submit()
    step, result = play.outstanding[0]
    with pytest.raises(ValueError, match="zip"):
        play.scheduler.commit(step, StepResult(0, result.token_ids[:1]), 0.0)


def test_a_plan_does_not_change_once_it_is_out() -> None:
    play = Play()
    play.add(spec("a", 4))
    plan = play.submit()
    assert plan is not None
    before = (list(plan.starts[0].token_ids), list(plan.growths[0].block_ids))
    play.submit()
    play.commit()
    assert (plan.starts[0].token_ids, plan.growths[0].block_ids) == before
