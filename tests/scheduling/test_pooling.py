"""Prompts of which a vector is made: computed like others, in chunks beside others, and nothing is sampled of them."""

from __future__ import annotations

from typing import Any

import pytest

from streamserve.errors import ContextLengthExceeded
from streamserve.types import Pooling, PoolingKind, SequenceSpec, Tenant
from tests.scheduling.oracle import embedding_of, expected
from tests.scheduling.play import Play, rows, spec

KINDS: list[PoolingKind] = ["last", "mean"]


def prompt(name: str, tokens: int | list[int], kind: PoolingKind = "last", **changes: Any) -> SequenceSpec:
    return spec(name, tokens, max_tokens=1, pooling=Pooling(kind), **changes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 8, 9, 21])
def test_a_prompt_is_pooled_in_chunks_beside_others_that_generate(kind: PoolingKind, length: int) -> None:
    play = Play(max_num_batched_tokens=8)
    play.add(spec("b"), prompt("a", length, kind))
    play.finish()
    output = play.output("a")
    assert (output.embedding, output.token_ids, output.finish_reason) == (embedding_of(prompt("a", length, kind)), [], "stop")
    assert play.tokens("b") == expected(spec("b"))[0]
    assert play.scheduler.stats().generation_tokens == 8
    assert play.used_blocks() == 0


@pytest.mark.parametrize(("kind", "num_computed"), [("last", 1), ("mean", 9)])
def test_a_mean_takes_nothing_from_the_prefix_cache_and_a_last_state_does(kind: PoolingKind, num_computed: int) -> None:
    tokens = list(range(9))
    play = Play()
    play.add(spec("first", tokens))
    play.finish()
    play.add(prompt("a", tokens, kind))
    [(_, count, num_sampled)] = rows(play.submit()).values()
    assert (count, num_sampled) == (num_computed, 0)
    play.finish()
    assert play.output("a").embedding == embedding_of(prompt("a", tokens, kind))
    assert play.output("a").cached_tokens == 9 - num_computed


def test_what_is_pooled_is_kept_for_prompts_that_generate() -> None:
    tokens = list(range(9))
    play = Play()
    play.add(prompt("a", tokens, "mean"))
    play.finish()
    play.add(spec("b", tokens))
    play.finish()
    assert play.output("b").cached_tokens == 8
    assert play.tokens("b") == expected(spec("b", tokens))[0]


def test_a_prompt_may_have_all_of_the_context_and_no_token_more() -> None:
    play = Play(max_model_len=16)
    play.add(prompt("a", 16))
    play.finish()
    assert play.output("a").embedding == embedding_of(prompt("a", 16))
    with pytest.raises(ContextLengthExceeded):
        play.add(prompt("b", 17))


def test_a_prompt_that_was_pooled_no_longer_counts_among_the_requests_of_its_key() -> None:
    tenant = Tenant(name="limited", max_concurrency=1)
    play = Play()
    play.add(prompt("a", 5, tenant=tenant))
    play.finish()
    play.add(prompt("b", 5, tenant=tenant))
    play.finish()
    assert play.output("b").embedding == embedding_of(prompt("b", 5))


def test_a_prompt_that_is_aborted_while_its_vector_is_in_flight_gets_no_other_delta() -> None:
    play = Play()
    play.add(prompt("a", 5))
    play.submit()
    assert play.submit() is None
    play.abort("a")
    play.commit()
    assert play.output("a").finish_reason == "abort"
    assert play.output("a").embedding is None
