"""What one request has cost, as metrics and traces report it. Plain values."""

from __future__ import annotations

from typing import NamedTuple

from streamserve.types import FinishReason


class Times(NamedTuple):
    """Where the time went, of a request that had text; seconds."""

    queue_s: float
    prefill_s: float
    decode_s: float


class Spent(NamedTuple):
    """What a request has cost once it is over; `times` is None when it never had text."""

    prompt_tokens: int
    completion_tokens: int
    longest_choice: int
    e2e_s: float
    times: Times | None
    finish_reasons: list[FinishReason]
