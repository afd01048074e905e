"""Checks on admission: refuses sequences that could never finish on this engine, whatever else it runs.

Runs on the engine's event loop. Looks at one spec and the limits, at no state.
"""

from __future__ import annotations

from collections.abc import Collection

from streamserve.errors import ContextLengthExceeded, InvalidParameter, PromptTooLarge
from streamserve.scheduling.constraint import Constraint
from streamserve.scheduling.limits import SchedulerLimits
from streamserve.scheduling.token_masks import bits
from streamserve.types import SequenceSpec


class IdCheck:
    """Checks token ids against a vocabulary. A list that the sequences of a request share is walked for the first of them."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._checked: dict[str, object] = {}

    def require(self, spec: SequenceSpec) -> None:
        """Raise `InvalidParameter` when the sequence names an id without an embedding, which would fail its whole step."""
        sampling = spec.sampling
        self._require("prompt_token_ids", spec.prompt_token_ids)
        self._require("generated_token_ids", spec.generated_token_ids)
        self._require("stop_token_ids", sampling.stop_token_ids)
        self._require("allowed_token_ids", sampling.allowed_token_ids or ())
        self._require("logit_bias", sampling.logit_bias)
        for word in sampling.bad_words_token_ids:
            self._require("bad_words", word)

    def _require(self, name: str, token_ids: Collection[int]) -> None:
        if not token_ids or self._checked.get(name) is token_ids:
            return
        if not 0 <= min(token_ids) <= max(token_ids) < self._vocab_size:
            raise InvalidParameter(name, f"token ids must be between 0 and {self._vocab_size - 1}")
        self._checked[name] = token_ids


def check_spec(spec: SequenceSpec, limits: SchedulerLimits) -> None:
    """Raise `InvalidParameter`, `ContextLengthExceeded` or `PromptTooLarge` when `spec` can never run to its end."""
    _check_counts(spec)
    num_prompt_tokens = len(spec.prompt_token_ids)
    # The last token of an output is sampled and never computed, so it needs no place in the cache.
    length = num_prompt_tokens + spec.max_tokens if spec.pooling is None else num_prompt_tokens
    num_computed = length - 1 if spec.pooling is None else length
    if length > limits.max_model_len:
        raise ContextLengthExceeded(
            f"this model's context is {limits.max_model_len} tokens; the prompt has {num_prompt_tokens} and max_tokens asks "
            f"for {spec.max_tokens} more: shorten one of them"
        )
    if limits.groups.blocks_for(num_computed, limits.max_num_batched_tokens) > limits.num_blocks:
        longest = limits.groups.longest(limits.num_blocks, limits.max_num_batched_tokens, length)
        raise PromptTooLarge(
            f"the KV cache holds {longest} tokens of a sequence; the prompt has {num_prompt_tokens} and max_tokens "
            f"asks for {spec.max_tokens} more: shorten one of them, or start the server with more --kv-cache-memory"
        )


def replay(constraint: Constraint, token_ids: list[int]) -> None:
    """Bring a fresh constraint to where tokens generated elsewhere left it; raises `InvalidParameter` when it refuses."""
    try:
        for token_id in token_ids:
            constraint.accept(token_id)
    except ValueError as error:
        raise InvalidParameter("generated_token_ids", f"do not follow structured_outputs: {error}") from error
    if constraint.is_complete:
        raise InvalidParameter("generated_token_ids", "complete structured_outputs already: nothing is left to generate")


def require_choice(constraint: Constraint, spec: SequenceSpec) -> None:
    """Raise `InvalidParameter` when the sequence's other parameters exclude every token that its constraint allows next."""
    sampling = spec.sampling
    excluding = {
        "allowed_token_ids": sampling.allowed_token_ids is not None,
        "bad_words": bool(sampling.banned_token_ids),
        "min_tokens": len(spec.generated_token_ids) < sampling.min_tokens,
    }
    if not any(excluding.values()):
        return
    possible = int.from_bytes(constraint.bitmask(), "little")
    if sampling.allowed_token_ids is not None:
        possible &= bits(sampling.allowed_token_ids)
    possible &= ~bits(sampling.banned_token_ids)
    if excluding["min_tokens"]:
        possible &= ~bits(sampling.stop_token_ids)
    if not possible:
        others = " and ".join(name for name, excludes in excluding.items() if excludes)
        raise InvalidParameter("structured_outputs", f"allow only tokens that {others} exclude")


def _check_counts(spec: SequenceSpec) -> None:
    if not spec.prompt_token_ids:
        raise InvalidParameter("prompt", "must have at least one token")
    if spec.max_tokens < 1:
        raise InvalidParameter("max_tokens", f"must be at least 1, got {spec.max_tokens}")
    if len(spec.generated_token_ids) >= spec.max_tokens:
        raise InvalidParameter("generated_token_ids", f"already {spec.max_tokens} tokens: nothing is left to generate")


__all__ = ["IdCheck", "check_spec", "replay", "require_choice"]
