"""Steps on a two-layer random Llama, against transformers recomputing every token from nothing."""

from __future__ import annotations

import numpy as np
import pytest

from streamserve.types import SequenceSpec, TokenDelta
from tests.support.sampling import RESTRICTIONS, gumbel, kept_tokens, log_softmax, penalised
from tests.support.stepping import spec
from tests.support.tiny_model import VOCAB, TinyLlama
from tests.worker.work import MakeStepper, prompt_of, sampled_specs


def greedy_specs() -> list[SequenceSpec]:
    return [spec(f"s{length}", prompt_of(length, length), 14) for length in (1, 5, 16, 17, 40, 90)]


def tokens_of(deltas: dict[str, TokenDelta]) -> dict[str, list[int]]:
    return {name: delta.token_ids for name, delta in deltas.items()}


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("step_tokens", [8, 33, 512])
def test_chunks_decodes_and_admissions_in_one_step_give_the_tokens_of_transformers(
    tiny: TinyLlama, stepper: MakeStepper, step_tokens: int, in_flight: int
) -> None:
    specs = greedy_specs()
    got = tokens_of(stepper(step_tokens=step_tokens, in_flight=in_flight).run(*specs))
    assert got == {one.sequence_id: tiny.greedy(one.prompt_token_ids, 14) for one in specs}


def test_preempted_sequences_give_the_tokens_of_transformers(tiny: TinyLlama, stepper: MakeStepper) -> None:
    specs = [spec(f"s{seed}", prompt_of(20, seed), 40) for seed in range(5)]
    playing = stepper(num_blocks=12)
    got = tokens_of(playing.run(*specs))
    assert playing.scheduler.stats().num_preemptions > 0
    assert got == {one.sequence_id: tiny.greedy(one.prompt_token_ids, 40) for one in specs}


def test_a_prefix_hit_gives_the_tokens_of_transformers(tiny: TinyLlama, stepper: MakeStepper) -> None:
    playing, shared = stepper(), prompt_of(50, 1)
    playing.run(spec("first", shared, 3))
    got = playing.run(spec("second", [*shared, 7, 8], 10))["second"]
    assert got.cached_tokens == 48
    assert got.token_ids == tiny.greedy([*shared, 7, 8], 10)


def test_a_sequence_may_fill_the_context_to_its_last_token(tiny: TinyLlama, stepper: MakeStepper) -> None:
    prompt = prompt_of(60, 2)
    got = stepper(num_blocks=4).run(spec("full", prompt, 4))["full"]
    assert got.token_ids == tiny.greedy(prompt, 4)


def test_going_on_after_generated_tokens_gives_the_rest(tiny: TinyLlama, stepper: MakeStepper) -> None:
    settings = {"temperature": 0.8, "seed": 5, "frequency_penalty": 0.7}
    prompt = prompt_of(9, 3)
    whole = stepper().run(spec("whole", prompt, 12, **settings))["whole"].token_ids
    rest = stepper().run(spec("rest", prompt, 12, generated_token_ids=whole[:5], **settings))["rest"].token_ids
    assert whole[5:] == rest


def formula_tokens(tiny: TinyLlama, one: SequenceSpec) -> list[int]:
    """Sampling by the formulas, on transformers' logits."""
    output: list[int] = []
    for _ in range(one.max_tokens):
        tokens = [*one.prompt_token_ids, *output]
        logits = tiny.logits(tuple(tokens))[-1].copy()
        if one.sampling.allowed_token_ids is not None:
            logits[np.setdiff1d(np.arange(VOCAB), one.sampling.allowed_token_ids)] = -np.inf
        for token_id, bias in one.sampling.logit_bias.items():
            logits[token_id] += bias
        logits = penalised(
            logits,
            one.prompt_token_ids,
            output,
            one.sampling.repetition_penalty,
            one.sampling.frequency_penalty,
            one.sampling.presence_penalty,
        )
        if one.sampling.temperature > 0:
            restrictions = {name: getattr(one.sampling, name) for name in RESTRICTIONS}
            kept = kept_tokens(logits, one.sampling.temperature, **restrictions)
            scores = logits / one.sampling.temperature + gumbel(one.sampling.seed, len(tokens), VOCAB)
            logits = np.where(kept, scores, -np.inf)
        output.append(int(logits.argmax()))
    return output


def test_every_parameter_in_one_batch_samples_what_its_formula_says(tiny: TinyLlama, stepper: MakeStepper) -> None:
    specs = sampled_specs(12)
    got = tokens_of(stepper(rows=16, step_tokens=64).run(*specs))
    assert got == {one.sequence_id: formula_tokens(tiny, one) for one in specs}


def test_samples_do_not_depend_on_batch_mates_chunks_preemption_or_overlap(stepper: MakeStepper) -> None:
    specs = sampled_specs(24)
    crowd = tokens_of(stepper(rows=16, num_blocks=64).run(*specs))
    crowded = stepper(rows=16, step_tokens=17, num_blocks=14, in_flight=1)
    assert tokens_of(crowded.run(*specs)) == crowd
    assert crowded.scheduler.stats().num_preemptions > 0
    alone = stepper(rows=1, in_flight=1)
    for one in specs:
        assert tokens_of(alone.run(one))[one.sequence_id] == crowd[one.sequence_id], one.sequence_id


def test_logprobs_are_transformers_even_where_penalties_bend_the_choice(tiny: TinyLlama, stepper: MakeStepper) -> None:
    prompt = prompt_of(12, 4)
    asking = spec("asks", prompt, 6, logprobs=3, repetition_penalty=2.0, allowed_token_ids=[3, 5, 7, 11])
    got = stepper().run(asking, spec("quiet", prompt_of(5, 5), 6), spec("bare", prompt, 6, logprobs=0))
    assert got["quiet"].logprobs is None
    for name, num_top in (("asks", 3), ("bare", 0)):
        entries = got[name].logprobs
        assert entries is not None
        assert [entry.token_id for entry in entries] == got[name].token_ids
        for place, entry in enumerate(entries):
            expected = log_softmax(tiny.logits(tuple(prompt + got[name].token_ids[:place]))[-1])
            assert entry.logprob == pytest.approx(expected[entry.token_id], abs=1e-3)
            assert entry.rank == 1 + int((expected > expected[entry.token_id] + 1e-9).sum())
            assert [token_id for token_id, _ in entry.top] == np.argsort(-expected)[:num_top].tolist()


@pytest.mark.parametrize("step_tokens", [8, 33, 512])
def test_prompt_logprobs_are_transformers_however_the_prompt_is_cut(
    tiny: TinyLlama, stepper: MakeStepper, step_tokens: int
) -> None:
    prompt = prompt_of(70, 6)
    specs = [spec("asks", prompt, 4, prompt_logprobs=2), *greedy_specs()]
    entries = stepper(step_tokens=step_tokens).run(*specs)["asks"].prompt_logprobs
    assert entries is not None
    assert entries[0] is None
    assert len(entries) == len(prompt)
    expected = [log_softmax(line) for line in tiny.logits(tuple(prompt))]
    for place, entry in enumerate(entries[1:], start=1):
        assert entry is not None
        assert entry.token_id == prompt[place]
        assert entry.logprob == pytest.approx(expected[place - 1][prompt[place]], abs=1e-3)
        assert [token_id for token_id, _ in entry.top] == np.argsort(-expected[place - 1])[:2].tolist()


def test_stop_ids_are_banned_until_min_tokens_and_not_after(tiny: TinyLlama, stepper: MakeStepper) -> None:
    prompt = prompt_of(8, 7)
    first = tiny.greedy(prompt, 1)[0]
    got = stepper().run(spec("s", prompt, 30, stop_token_ids=[first], min_tokens=4, logit_bias={first: 50.0}))["s"]
    assert first not in got.token_ids[:4]
    assert got.token_ids[4:] == [first]
    assert got.finish_reason == "stop"


def test_bad_words_never_appear_though_the_model_wants_them(tiny: TinyLlama, stepper: MakeStepper) -> None:
    prompt = prompt_of(8, 8)
    free = tiny.greedy(prompt, 20)
    bad = [free[0:1], free[3:5], free[6:9]]
    got = stepper().run(spec("s", prompt, 20, bad_words_token_ids=bad), spec("free", prompt, 20))
    assert got["free"].token_ids == free
    text = got["s"].token_ids
    assert free[0] not in text
    for word in bad[1:]:
        assert all(text[place : place + len(word)] != word for place in range(len(text)))


def test_ids_outside_the_vocabulary_in_lists_harm_nobody(tiny: TinyLlama, stepper: MakeStepper) -> None:
    prompt = prompt_of(8, 9)
    got = stepper().run(
        spec(
            "odd",
            prompt,
            5,
            logit_bias={VOCAB + 7: 5.0},
            stop_token_ids=[VOCAB],
            min_tokens=2,
            bad_words_token_ids=[[VOCAB], [3, VOCAB + 1]],
            allowed_token_ids=[*range(VOCAB + 100)],
            top_k=10**9,
        )
    )
    assert got["odd"].token_ids == tiny.greedy(prompt, 5)


def test_prompt_logprobs_are_whole_though_the_prefix_is_cached(stepper: MakeStepper) -> None:
    playing, prompt = stepper(), prompt_of(50, 10)
    fresh = playing.run(spec("first", prompt, 3, prompt_logprobs=1))["first"].prompt_logprobs
    again = playing.run(spec("again", prompt, 3, prompt_logprobs=1))["again"].prompt_logprobs
    assert fresh is not None
    assert again is not None
    assert len(again) == 50
    assert [entry and entry.top for entry in again] == [entry and entry.top for entry in fresh]


def test_prompt_logprobs_survive_preemption(tiny: TinyLlama, stepper: MakeStepper) -> None:
    prompts = [prompt_of(20, 20 + seed) for seed in range(5)]
    playing = stepper(num_blocks=12)
    got = playing.run(*(spec(f"s{place}", prompt, 40, prompt_logprobs=0) for place, prompt in enumerate(prompts)))
    assert playing.scheduler.stats().num_preemptions > 0
    for place, prompt in enumerate(prompts):
        entries = got[f"s{place}"].prompt_logprobs
        assert entries is not None
        assert [entry.token_id for entry in entries[1:] if entry is not None] == prompt[1:]
