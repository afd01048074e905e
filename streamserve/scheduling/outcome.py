"""What sampled tokens do to their sequence: whether one ends it, and the delta for its reader.

Runs on the engine's event loop, at commit.
"""

from __future__ import annotations

from typing import NamedTuple

from streamserve.errors import NoTokenPossible, OutOfMemory, StructureTooComplex
from streamserve.scheduling.plan import NO_TOKEN
from streamserve.scheduling.progress_reports import last_prefill_progress
from streamserve.scheduling.sequence import Sequence
from streamserve.types import ErrorInfo, FinishReason, TokenDelta, TokenLogprobs

_NO_TOKEN = ErrorInfo(
    NoTokenPossible.code,
    "no token could be sampled: the model's logits were not finite, or the request's bad_words, allowed_token_ids, min_tokens "
    "and structured outputs together leave none",
)

OUT_OF_MEMORY = ErrorInfo(
    OutOfMemory.code,
    "the device ran out of memory under this request, even in the smallest steps: try again, or start the server with a lower "
    "--max-num-seqs or --gpu-memory-utilization",
)


class Ending(NamedTuple):
    """Why a sequence ends; fields as in `TokenDelta`."""

    reason: FinishReason
    stop_reason: int | None = None
    error: ErrorInfo | None = None


def append_tokens(sequence: Sequence, token_ids: list[int]) -> tuple[list[int], Ending | None]:
    """Append tokens up to the first that ends the sequence; returns those appended, and how they end it.

    Advances the sequence's constraint.
    """
    for count, token_id in enumerate(token_ids, start=1):
        sequence.token_ids.append(token_id)
        ending = _ending_of(sequence, token_id)
        if ending is not None:
            return token_ids[:count], ending
    return token_ids, None


def _ending_of(sequence: Sequence, token_id: int) -> Ending | None:
    """How `token_id`, just appended, ends the sequence."""
    if token_id == NO_TOKEN:
        return Ending("error", error=_NO_TOKEN)
    if sequence.reasoning is not None:
        sequence.follow_reasoning(token_id)
    length = len(sequence.token_ids)
    if token_id in sequence.ending_ids and length >= sequence.min_length:
        return Ending("stop", token_id)
    if sequence.constraint is not None:
        try:
            sequence.constraint.accept(token_id)
        except ValueError as error:
            return Ending(
                "error", error=ErrorInfo(StructureTooComplex.code, f"the output left the requested structure: {error}")
            )
        if sequence.constraint.is_complete:
            return Ending("stop")
    return Ending("length") if length == sequence.limit else None


def delta_of(
    sequence: Sequence, token_ids: list[int], ending: Ending | None, logprobs: list[TokenLogprobs] | None, now: float
) -> TokenDelta:
    """The delta for tokens just appended; a sequence's first one also carries what is known of the prompt.

    logprobs  one entry per token or more, None when not requested

    A token that ends the sequence in an error is no part of its output.
    """
    progress = None if sequence.has_reported else last_prefill_progress(sequence, now)
    is_first, sequence.has_reported = not sequence.has_reported, True
    is_free = sequence.constraint is None and sequence.reasoning is None
    sequence.only_reports_ids = ending is None and is_free and sequence.spec.sampling.logprobs is None
    reason, stop_reason, error = ending or (None, None, None)
    if error is not None:
        token_ids = token_ids[:-1]
    return TokenDelta(
        token_ids=token_ids,
        logprobs=logprobs[: len(token_ids)] or None
        if logprobs is not None and sequence.spec.sampling.logprobs is not None
        else None,
        prompt_logprobs=sequence.prompt_logprobs if is_first else None,
        finish_reason=reason,
        stop_reason=stop_reason,
        cached_tokens=(sequence.num_cached_tokens or 0) if is_first else 0,
        error=error,
        queue_s=sequence.queue_s if is_first else None,
        progress=progress,
    )


def pooled_delta(sequence: Sequence, embedding: bytes) -> TokenDelta:
    """The only delta of a sequence that is pooled."""
    return TokenDelta(
        [],
        finish_reason="stop",
        cached_tokens=sequence.num_cached_tokens or 0,
        queue_s=sequence.queue_s,
        embedding=embedding,
    )


def final_delta(sequence: Sequence, error: ErrorInfo | None = None) -> TokenDelta:
    """The last delta of a sequence that ends without a token."""
    cached_tokens = 0 if sequence.has_reported else sequence.num_cached_tokens or 0
    return TokenDelta(token_ids=[], finish_reason=sequence.finish_reason, cached_tokens=cached_tokens, error=error)


__all__ = ["OUT_OF_MEMORY", "Ending", "append_tokens", "delta_of", "final_delta", "pooled_delta"]
