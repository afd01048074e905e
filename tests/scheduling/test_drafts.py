"""Drafts: a step checks guesses for a sequence's next tokens, and yields as many tokens as were right, and one more."""

from __future__ import annotations

import pytest

from streamserve.scheduling.sequence import Sequence
from tests.scheduling.oracle import EOS, Alternating, expected
from tests.scheduling.play import Play, rows, spec


def decoding(*specs_and_changes: object, **limits: object) -> Play:
    """A play whose sequences have computed their prompts."""
    play = Play(**limits)
    play.add(*specs_and_changes)  # type: ignore[arg-type]
    play.step()
    return play


def sequence_of(play: Play, name: str) -> Sequence:
    return play.scheduler.registry.sequences[name]


def test_right_drafts_come_out_of_one_step_with_the_token_behind_them() -> None:
    play = decoding(one := spec("a"))
    play.scheduler.offer_drafts("a", play.guess(one, 3))
    plan = play.submit()
    assert rows(plan) == {0: (6, 4, 4)}
    assert play.commit() == {"a": expected(one)[0][1:5]}
    assert (sequence_of(play, "a").num_known, sequence_of(play, "a").num_computed) == (11, 10)


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_a_wrong_draft_ends_what_is_accepted_and_the_rest_is_taken_back(wrong: int) -> None:
    play = decoding(one := spec("a"))
    play.scheduler.offer_drafts("a", play.guess(one, 3, wrong))
    play.submit()
    assert play.commit() == {"a": expected(one)[0][1 : 2 + wrong]}
    assert (sequence_of(play, "a").num_known, sequence_of(play, "a").num_computed) == (8 + wrong, 7 + wrong)
    play.finish()
    assert play.tokens("a") == expected(one)[0]


def test_the_step_after_one_with_drafts_is_planned_before_anyone_knows_how_many_were_right() -> None:
    play = decoding(one := spec("a"))
    play.scheduler.offer_drafts("a", play.guess(one, 3, wrong=1))
    play.submit()
    assert rows(play.submit()) == {0: (10, 1, 1)}, "planned for the most that there can be"
    assert play.commit() == {"a": expected(one)[0][1:3]}
    assert play.commit() == {"a": expected(one)[0][3:4]}


def test_drafts_follow_drafts_in_flight() -> None:
    play = decoding(one := spec("a", max_tokens=20))
    for wrong in (2, 0, 5):
        play.scheduler.offer_drafts("a", play.guess(one, 4, wrong))
        play.submit()
    told = [play.commit()["a"] for _ in range(3)]
    assert [len(tokens) for tokens in told] == [3, 1, 5]
    assert [token for tokens in told for token in tokens] == expected(one)[0][1:10]


@pytest.mark.parametrize("outstanding", [1, 2, 3])
def test_no_token_is_planned_past_max_tokens_however_many_steps_are_outstanding(outstanding: int) -> None:
    play = Play()
    play.add(one := spec("a", max_tokens=9))

    def offer() -> None:
        if "a" in play.scheduler.registry.sequences:
            play.scheduler.offer_drafts("a", play.guess(one, 4))
            assert sequence_of(play, "a").num_known <= 15

    play.finish(outstanding, offer)
    assert (play.tokens("a"), play.output("a").finish_reason) == expected(one)


def test_a_stop_token_among_the_drafts_ends_the_sequence_there() -> None:
    one = spec("a", stop_token_ids=[EOS, 3, 5, 7, 9, 11], max_tokens=40)
    tokens, reason = expected(one)
    assert reason == "stop"
    play = decoding(one)
    play.scheduler.offer_drafts("a", [*tokens[1:], *[1] * 3])
    if len(tokens) > 1:
        play.finish()
    assert (play.tokens("a"), play.output("a").finish_reason) == (tokens, "stop")


def test_tokens_accepted_behind_a_stop_token_are_counted_as_wasted() -> None:
    free = expected(spec("a", max_tokens=8))[0]
    stop = next(token for token in free[1:] if free.index(token) >= 2)
    play = decoding(one := spec("a", stop_token_ids=[stop]))
    play.scheduler.offer_drafts("a", free[1:5])
    play.submit()
    assert play.commit() == {"a": expected(one)[0][1:]}
    stats = play.scheduler.stats()
    assert stats.generation_tokens == len(expected(one)[0])
    assert stats.wasted_tokens == 6 - len(expected(one)[0])


def test_drafts_take_what_the_others_leave_of_a_steps_budget() -> None:
    play = Play(max_num_batched_tokens=9)
    play.add(one := spec("a", 2, max_tokens=40), spec("b", 2), spec("c", 2))
    play.step()
    play.scheduler.offer_drafts("a", [*play.guess(one, 5), 1, 1, 1])
    plan = play.submit()
    assert plan is not None
    assert sorted(work.count for work in plan.work) == [1, 1, 7]
    assert plan.num_tokens == 9


def test_a_prompt_gets_what_drafts_leave_of_a_steps_budget() -> None:
    play = Play(max_num_batched_tokens=9)
    play.add(one := spec("a", 2, max_tokens=40))
    play.step()
    play.add(spec("b", 20))
    play.scheduler.offer_drafts("a", play.guess(one, 4))
    plan = play.submit()
    assert plan is not None
    assert [work.count for work in plan.work] == [5, 4]


def test_nobody_is_preempted_for_drafts() -> None:
    play = Play(num_blocks=4, block_size=4)
    play.add(one := spec("a", 3), spec("b", 6))
    play.step()
    play.scheduler.offer_drafts("a", play.guess(one, 7))
    plan = play.submit()
    assert plan is not None
    assert [len(drafts.token_ids) for drafts in plan.drafts] == [4], "one block is free"
    assert play.scheduler.stats().num_preemptions == 0


def test_a_sequence_with_a_constraint_takes_no_drafts() -> None:
    play = Play()
    play.add(spec("a"), constraint=Alternating(6))
    play.step()
    play.scheduler.offer_drafts("a", [2, 3])
    plan = play.submit()
    assert plan is not None
    assert plan.drafts == []
    assert plan.num_tokens == 1


def test_a_sequence_that_may_not_end_yet_waits_for_the_number_of_its_tokens() -> None:
    one = spec("a", min_tokens=4, stop_token_ids=[EOS])
    play = decoding(one)
    play.scheduler.offer_drafts("a", play.guess(one, 2))
    assert play.submit() is not None
    assert play.submit() is None, "which tokens are banned depends on how many there are"
    play.finish()
    assert (play.tokens("a"), play.output("a").finish_reason) == expected(one)


def test_drafts_are_checked_once() -> None:
    play = decoding(one := spec("a"))
    play.scheduler.offer_drafts("a", play.guess(one, 2, wrong=0))
    play.step()
    assert rows(play.submit()) == {0: (7, 1, 1)}


def test_drafts_of_a_sequence_that_is_gone_are_refused() -> None:
    assert not Play().scheduler.offer_drafts("a", [1])
