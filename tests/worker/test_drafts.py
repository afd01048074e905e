"""Steps that check drafts on a two-layer random Llama: as many tokens at once as guesses are right, and the same ones."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from streamserve.scheduling.plan import Plan, RowDrafts, RowGrowth, RowStart, RowWork
from streamserve.scheduling.sequence import Sequence
from streamserve.types import Sampling, SequenceSpec, TokenDelta
from tests.support.stepping import Stepper, spec
from tests.support.tiny_model import VOCAB, TinyLlama
from tests.worker.playing import Playing
from tests.worker.work import MakeStepper, prompt_of, sampled_specs

PROMPT = [5, 6, 7, 8, 9]


def guesses(truth: dict[str, TokenDelta], seed: int) -> Callable[[Sequence], list[int]]:
    """Drafts from what the sequences will generate, some of them wrong, sometimes none."""
    rng = random.Random(seed)

    def propose(sequence: Sequence) -> list[int]:
        first = sequence.num_known - sequence.num_prompt_tokens
        drafts = truth[sequence.sequence_id].token_ids[first : first + rng.randint(0, 4)]
        return [token_id if rng.random() < 0.8 else rng.randrange(3, VOCAB) for token_id in drafts]

    return propose


def with_drafts(stepper: Stepper, truth: dict[str, TokenDelta], seed: int = 0) -> Stepper:
    stepper.propose = guesses(truth, seed)
    return stepper


def several_specs() -> list[SequenceSpec]:
    asking = [spec(f"asks {num_top}", prompt_of(9 + num_top, 40 + num_top), 20, logprobs=num_top) for num_top in (0, 3)]
    free = [spec("bad words", prompt_of(8, 8), 20, bad_words_token_ids=[[11, 12], [30]], temperature=0.9)]
    late = [spec("min tokens", prompt_of(8, 7), 20, min_tokens=12, stop_token_ids=list(range(3, VOCAB, 3)), temperature=1.0)]
    return [*sampled_specs(20), *asking, *free, *late]


@pytest.mark.parametrize("in_flight", [1, 2])
def test_drafts_change_no_token_whatever_the_parameters(stepper: MakeStepper, in_flight: int) -> None:
    specs = several_specs()
    plain = stepper(rows=16, step_tokens=64)
    truth = plain.run(*specs)
    drafted = with_drafts(stepper(rows=16, step_tokens=64, in_flight=in_flight), truth)
    got = drafted.run(*specs)
    for one in specs:
        name = one.sequence_id
        assert (got[name].token_ids, got[name].finish_reason) == (truth[name].token_ids, truth[name].finish_reason), name
        assert [entry.token_id for entry in got[name].logprobs or []] == (
            got[name].token_ids if one.sampling.logprobs is not None else []
        )
        for mine, theirs in zip(got[name].logprobs or [], truth[name].logprobs or [], strict=True):
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-3)
            assert [token_id for token_id, _ in mine.top] == [token_id for token_id, _ in theirs.top]
    assert drafted.num_steps < plain.num_steps


def test_drafts_survive_preemption_and_the_prefix_cache(tiny: TinyLlama, stepper: MakeStepper) -> None:
    specs = [spec(f"s{seed}", [*prompt_of(16, 1), *prompt_of(4, seed)], 40) for seed in range(5)]
    truth = stepper().run(*specs)
    playing = with_drafts(stepper(num_blocks=10), truth)
    got = playing.run(*specs)
    assert playing.scheduler.stats().num_preemptions > 0
    assert playing.scheduler.stats().prefix_cache_hits > 0
    for one in specs:
        assert got[one.sequence_id].token_ids == tiny.greedy(one.prompt_token_ids, 40)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_drafts_come_and_go_among_replayed_steps(tiny: TinyLlama, in_flight: int) -> None:
    specs = [spec(f"s{length}", list(range(3, 3 + length)), 6 + length) for length in (1, 5, 12, 30, 17)]
    truth = Playing(tiny, in_flight).run(*specs)
    propose, turn = guesses(truth, 3), iter(range(10**6))
    playing = Playing(tiny, in_flight)
    playing.propose = lambda sequence: propose(sequence) if next(turn) % 13 < 4 else []
    got = playing.run(*specs)
    for one in specs:
        assert got[one.sequence_id].token_ids == tiny.greedy(one.prompt_token_ids, one.max_tokens)


def test_a_plan_may_ask_for_drafts_behind_tokens_that_the_host_does_not_know(tiny: TinyLlama, stepper: MakeStepper) -> None:
    runner, truth = stepper().runner, tiny.greedy(PROMPT, 12)
    start = RowStart(0, PROMPT, len(PROMPT), Sampling(seed=0, temperature=0.0))
    plans = [
        Plan(1, [start], [RowGrowth(0, 0, 0, [0, 1])], [RowWork(0, 0, 5, 1)]),
        Plan(2, [], [], [RowWork(0, 5, 4, 4)], [RowDrafts(0, [truth[1], truth[2], 3])]),
        # The host plans for 4 tokens of the step before; there are 3.
        Plan(3, [], [], [RowWork(0, 9, 3, 3)], [RowDrafts(0, truth[4:6])]),
        Plan(4, [], [], [RowWork(0, 12, 1, 1)]),
    ]
    told = [pending.wait().token_ids for pending in [runner.step(plan) for plan in plans]]
    assert told == [[truth[:1]], [truth[1:4]], [truth[4:7]], [truth[7:8]]]
