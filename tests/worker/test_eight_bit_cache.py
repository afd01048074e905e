"""Steps over a KV cache of 8-bit floats: the same tokens however a sequence gets there."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from streamserve.config import KvCacheDType
from streamserve.types import TokenDelta
from tests.support.stepping import Stepper, spec
from tests.support.tiny_model import VOCAB

MakeStepper = Callable[..., Stepper]


def prompt_of(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, VOCAB), k=length)


def tokens_of(deltas: dict[str, TokenDelta]) -> dict[str, list[int]]:
    return {name: delta.token_ids for name, delta in deltas.items()}


@pytest.mark.parametrize("kept_as", ["fp8", "fp8_e5m2"])
def test_tokens_do_not_depend_on_batch_mates_chunks_preemption_or_cached_prefixes(
    stepper: MakeStepper, kept_as: KvCacheDType
) -> None:
    specs = [spec(f"s{length}", prompt_of(length, length), 40) for length in (20, 21, 22, 23, 40)]
    crowd = tokens_of(stepper(kv_cache_dtype=kept_as).run(*specs))
    crowded = stepper(step_tokens=33, num_blocks=12, in_flight=1, kv_cache_dtype=kept_as)
    assert tokens_of(crowded.run(*specs)) == crowd
    assert crowded.scheduler.stats().num_preemptions > 0
    alone = stepper(rows=1, in_flight=1, kv_cache_dtype=kept_as)
    for one in specs:
        assert tokens_of(alone.run(one)) == {one.sequence_id: crowd[one.sequence_id]}
    again = alone.run(spec("again", specs[-1].prompt_token_ids, 40))["again"]
    assert again.cached_tokens == 32
    assert again.token_ids == crowd["s40"]
