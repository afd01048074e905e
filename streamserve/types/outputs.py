"""What `LLM` returns, in vLLM's shapes."""

from __future__ import annotations

import msgspec


class CompletionOutput(msgspec.Struct, kw_only=True):
    """One finished (or growing) output of a request, as vLLM's `CompletionOutput`."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Logprob(msgspec.Struct, frozen=True):
    """One token's log-probability, its rank (1 is best) and its text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class EmbeddingOutput(msgspec.Struct, kw_only=True):
    """The vector of one prompt, as vLLM's `EmbeddingOutput`."""

    embedding: list[float]


class EmbeddingRequestOutput(msgspec.Struct, kw_only=True):
    """What became of one prompt, as vLLM's `EmbeddingRequestOutput`."""

    request_id: str
    outputs: EmbeddingOutput
    prompt_token_ids: list[int]
    finished: bool = True
    num_cached_tokens: int = 0


class RequestOutput(msgspec.Struct, kw_only=True):
    """The outputs of one prompt, as vLLM's `RequestOutput`."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int = 0
