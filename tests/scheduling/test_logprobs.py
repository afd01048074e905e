"""Log-probabilities find their way to the right delta."""

from __future__ import annotations

from itertools import pairwise

from streamserve.types import TokenLogprobs
from tests.scheduling.oracle import logprobs_of, state_after
from tests.scheduling.play import Play, spec


def of_prompt(tokens: list[int], num_top: int) -> list[TokenLogprobs | None]:
    state, entries = b"", []
    for token_id, following in pairwise(tokens):
        state = state_after(state, token_id)
        entries.append(logprobs_of(state, following, num_top))
    return [None, *entries]


PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]


def test_logprobs_of_a_chunked_prompt_come_with_the_first_delta() -> None:
    play = Play(max_num_batched_tokens=5, max_num_seqs=2)
    play.add(spec("a", PROMPT, prompt_logprobs=2))
    play.finish()
    first, *rest = play.deltas["a"]
    assert first.prompt_logprobs == of_prompt(PROMPT, 2)
    assert all(delta.prompt_logprobs is None for delta in rest)


def test_logprobs_of_a_prompt_do_not_hold_up_those_that_decode() -> None:
    play = Play(max_scored_tokens=3)
    play.add(spec("alone", PROMPT, prompt_logprobs=1))
    plan = play.submit()
    assert plan is not None
    assert [work.count for work in plan.work] == [len(PROMPT)]
    play.commit()
    play.add(spec("a", PROMPT, prompt_logprobs=2), spec("b", PROMPT, prompt_logprobs=2, cache_salt="b"))
    scored = []
    while (plan := play.submit()) is not None and "alone" in play.scheduler.registry.sequences:
        scored.append(sum(work.count for work in plan.work if work.count > 1))
        play.commit()
    assert max(scored) == 3
    play.finish()
    assert play.deltas["a"][0].prompt_logprobs == play.deltas["b"][0].prompt_logprobs == of_prompt(PROMPT, 2)


def test_a_prompt_preempted_half_way_reports_each_token_once() -> None:
    play = Play(num_blocks=8, max_num_batched_tokens=6, max_num_seqs=2)
    play.add(spec("other", 6, max_tokens=20), spec("a", PROMPT, prompt_logprobs=1))
    play.step()
    play.step()
    assert play.scheduler.registry.sequences["a"].num_computed == 5
    play.submit()
    play.scheduler.pause("a")
    for _ in range(12):
        play.submit()
        play.commit()
    assert not play.scheduler.registry.sequences["a"].is_resident
    play.scheduler.resume("a")
    play.finish()
    assert play.scheduler.stats().num_preemptions >= 1
    assert play.output("a").prompt_logprobs == of_prompt(PROMPT, 1)


def test_a_prompt_of_one_token_has_nothing_to_report() -> None:
    play = Play()
    play.add(spec("a", [7], prompt_logprobs=0))
    play.finish()
    assert play.deltas["a"][0].prompt_logprobs == [None]


def test_logprobs_go_only_to_those_who_asked() -> None:
    play = Play()
    play.add(spec("a", [7, 7], logprobs=3), spec("b"))
    play.finish()
    output = play.output("a")
    assert output.logprobs is not None
    assert [entry.token_id for entry in output.logprobs] == output.token_ids
    assert output.logprobs[0] == logprobs_of(state_after(state_after(b"", 7), 7), output.token_ids[0], 3)
    assert play.output("b").logprobs is None
