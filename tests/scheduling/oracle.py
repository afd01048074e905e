"""A model that fits on a page: the next token is a hash of the seed and of everything before it.

`expected` says what a sequence must produce, whatever else runs beside it: the one truth that every way of driving the
scheduler is compared with.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b

from streamserve.scheduling.plan import RowSampling
from streamserve.types import FinishReason, SequenceSpec, TokenLogprobs

VOCABULARY = 24
EOS = 0


def state_after(state: bytes, token_id: int) -> bytes:
    """What the model knows after one more token; b"" knows nothing."""
    return blake2b(state + token_id.to_bytes(4, "little"), digest_size=8).digest()


def score(state: bytes, token_id: int) -> float:
    return -float(blake2b(state + b"p%d" % token_id, digest_size=2).digest()[0])


def logprobs_of(state: bytes, token_id: int, num_top: int) -> TokenLogprobs:
    ranked = sorted(range(VOCABULARY), key=lambda t: (-score(state, t), t))
    rank = 1 + sum(score(state, other) > score(state, token_id) for other in ranked)
    return TokenLogprobs(token_id, score(state, token_id), rank, [(t, score(state, t)) for t in ranked[:num_top]])


def draw(seed: int, state: bytes, allowed: Collection[int]) -> int:
    """The token that follows `state`, one of `allowed`."""
    choices = sorted(allowed)
    return choices[int.from_bytes(blake2b(state + seed.to_bytes(8, "little"), digest_size=8).digest(), "little") % len(choices)]


def allowed_tokens(sampling: RowSampling | SequenceSpec, num_generated: int) -> set[int]:
    stops = set(sampling.stop_token_ids) if num_generated < sampling.min_tokens else set()
    return set(range(VOCABULARY)) - stops


def expected(spec: SequenceSpec) -> tuple[list[int], FinishReason]:
    """All tokens an unconstrained sequence generates after those it came with, and why it ends."""
    state = b""
    for token_id in (*spec.prompt_token_ids, *spec.generated_token_ids):
        state = state_after(state, token_id)
    generated: list[int] = []
    while True:
        num_generated = len(spec.generated_token_ids) + len(generated)
        if num_generated == spec.max_tokens:
            return generated, "length"
        generated.append(draw(spec.seed, state, allowed_tokens(spec, num_generated)))
        if generated[-1] in spec.stop_token_ids:
            return generated, "stop"
        state = state_after(state, generated[-1])
