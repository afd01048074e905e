"""A model that fits on a page: the next token is a hash of the seed and of everything before it.

`expected` says what a sequence must produce, whatever else runs beside it: the one truth that every way of driving the
scheduler is compared with.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from hashlib import blake2b

from streamserve.types import FinishReason, Pooling, ReasoningMarks, Sampling, SequenceSpec, TokenLogprobs

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


def allowed_tokens(sampling: Sampling, num_generated: int) -> set[int]:
    stops = set(sampling.stop_token_ids) if num_generated < sampling.min_tokens else set()
    return set(range(VOCABULARY)) - stops


def pooled(states: list[bytes], pooling: Pooling) -> bytes:
    """The vector of a prompt after whose tokens these were the model's states: of the last, or of all of them."""
    return states[-1] if pooling.kind == "last" else b"".join(states)


def embedding_of(spec: SequenceSpec) -> bytes:
    """The vector of a sequence that is pooled."""
    assert spec.pooling is not None
    states = itertools.accumulate(spec.prompt_token_ids, state_after, initial=b"")
    return pooled([*states][1:], spec.pooling)


class Alternating:
    """A constraint: even tokens at even places, odd tokens at odd ones, and an end after so many."""

    spent_s = 0.0

    def __init__(self, num_places: int) -> None:
        self._num_places = num_places
        self._place = 0

    @property
    def allowed(self) -> set[int]:
        return {token_id for token_id in range(VOCABULARY) if token_id % 2 == self._place % 2}

    def bitmask(self) -> bytes:
        return sum(1 << token_id for token_id in self.allowed).to_bytes(4, "little")

    def accept(self, token_id: int) -> None:
        if self.is_complete or token_id not in self.allowed:
            raise ValueError(f"token {token_id} is not allowed at place {self._place}")
        self._place += 1

    @property
    def is_complete(self) -> bool:
        return self._place == self._num_places


def constraint_of(spec: SequenceSpec) -> Alternating | None:
    """A fresh constraint of as many places as the regex has characters."""
    if spec.structured_outputs is None:
        return None
    assert spec.structured_outputs.regex is not None
    return Alternating(len(spec.structured_outputs.regex))


OPEN, CLOSE, FIRST_OF_ENDING, LAST_OF_ENDING = 20, 21, 22, 23


def marks(*, has_begun: bool) -> ReasoningMarks:
    """Reasoning between marks, of which the one that is forced has two tokens."""
    closes = [[CLOSE], [FIRST_OF_ENDING, LAST_OF_ENDING]]
    ending = [[FIRST_OF_ENDING], [LAST_OF_ENDING]]
    return ReasoningMarks(opens=[[OPEN]], closes=closes, answers=closes, ending=ending, has_begun=has_begun)


def forced(spec: SequenceSpec, generated: list[int]) -> set[int] | None:
    """The token that ends the reasoning, where the budget is spent; None where any may follow.

    generated  all tokens, those included that the sequence came with
    """
    if spec.reasoning is None or spec.reasoning_budget is None:
        return None
    begins = 0 if spec.reasoning.has_begun else generated.index(OPEN) + 1 if OPEN in generated[:3] else None
    if begins is None:
        return None
    # A mark that closes ends the matter, also where nothing was opened.
    if CLOSE in generated or (FIRST_OF_ENDING, LAST_OF_ENDING) in itertools.pairwise(generated):
        return None
    thought = generated[begins:]
    spent = max(spec.reasoning_budget, len(spec.generated_token_ids) - begins)
    if len(thought) < spent:
        return None
    num_spelled = int(thought[:spent][-1:] == [FIRST_OF_ENDING])
    return {(FIRST_OF_ENDING, LAST_OF_ENDING)[num_spelled + len(thought) - spent]}


def expected(spec: SequenceSpec) -> tuple[list[int], FinishReason]:
    """All tokens a sequence generates after those it came with, and why it ends."""
    if spec.pooling is not None:
        return [], "stop"
    state, constraint = b"", constraint_of(spec)
    for token_id in (*spec.prompt_token_ids, *spec.generated_token_ids):
        state = state_after(state, token_id)
    generated: list[int] = []
    while True:
        num_generated = len(spec.generated_token_ids) + len(generated)
        if num_generated == spec.max_tokens:
            return generated, "length"
        allowed = allowed_tokens(spec.sampling, num_generated)
        if (only := forced(spec, [*spec.generated_token_ids, *generated])) is not None:
            allowed &= only
        generated.append(draw(spec.sampling.seed, state, allowed & constraint.allowed if constraint else allowed))
        if generated[-1] in spec.sampling.stop_token_ids:
            return generated, "stop"
        if constraint is not None:
            constraint.accept(generated[-1])
            if constraint.is_complete:
                return generated, "stop"
        state = state_after(state, generated[-1])
