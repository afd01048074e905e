"""What one request costs: its tokens so far, and its totals once it has ended.

Plain values. Knows no metric, no trace and no clock.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from streamserve.types import FinishReason


class TokenCounts:
    """Token counts of one request over all of its prompts and choices, as they grow."""

    __slots__ = ("cached_tokens", "completion_tokens", "prompt_tokens")

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self.cached_tokens = 0

    def as_object(self, *, unsent_tokens: int = 0) -> dict[str, Any]:
        """The `usage` object of the OpenAI API, without the `unsent_tokens` among those generated."""
        completion_tokens = self.completion_tokens - unsent_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "completion_tokens": completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class RequestTimes(NamedTuple):
    """Seconds that a request spent in the queue, before its first text, and from its first text to its last."""

    queue_s: float
    prefill_s: float
    decode_s: float


class RequestCost(NamedTuple):
    """Totals of a request that has ended; `times` is None for one that never had text."""

    prompt_tokens: int
    completion_tokens: int
    longest_choice: int
    e2e_s: float
    times: RequestTimes | None
    finish_reasons: list[FinishReason]
