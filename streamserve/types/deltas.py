"""What streams are made of: the new tokens of a sequence, and the new text of a choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from streamserve.types.progress import Progress

FinishReason = Literal["stop", "length", "abort", "error", "time"]


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities at one position, of the raw logits (before penalties and temperature), as vLLM reports them.

    rank     1 for the most likely token
    top      (token id, logprob) of the most likely ones, best first; not necessarily containing `token_id`
    """

    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]


class ErrorInfo(msgspec.Struct, frozen=True, array_like=True):
    """A `StreamserveError` on the engine socket: its code and message, and when to try again, where it says so."""

    code: str
    message: str
    retry_after_s: float | None = None


class TokenDelta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The new tokens of one sequence since the last delta; deltas of one sequence concatenate.

    token_ids        new tokens; may be empty on the last delta
    logprobs         one entry per new token when requested
    prompt_logprobs  on the first delta when requested; entry 0 is None (nothing precedes the first token)
    finish_reason    set exactly once, on the last delta
    stop_reason      the stop token id that ended it, None when that was end-of-sequence or no token
    cached_tokens    prompt tokens taken from the prefix cache, on the first delta
    error            set with finish_reason "error"
    queue_s          seconds between admission to the queue and the first step, on the first delta
    progress         before and on the first delta, for sequences that report it
    embedding        what pooling made of a prompt, float32, on its only delta
    """

    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    cached_tokens: int = 0
    error: ErrorInfo | None = None
    queue_s: float | None = None
    progress: Progress | None = None
    embedding: bytes | None = None

    @property
    def is_single_token(self) -> bool:
        """Whether it holds one token and nothing else, as nearly all deltas in the middle of a sequence do."""
        return (
            len(self.token_ids) == 1
            and self.logprobs is None
            and self.finish_reason is None
            and self.queue_s is None
            and self.prompt_logprobs is None
        )

    @property
    def is_progress_only(self) -> bool:
        """Whether it says no more than how far the sequence is before its first token."""
        return self.progress is not None and not self.token_ids and self.finish_reason is None

    def then(self, later: TokenDelta) -> TokenDelta:
        """This delta followed by `later`, as one: order kept, nothing lost."""
        logprobs = self.logprobs
        if later.logprobs is not None:
            logprobs = (logprobs or []) + later.logprobs
        return TokenDelta(
            token_ids=self.token_ids + later.token_ids,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs if later.prompt_logprobs is None else later.prompt_logprobs,
            finish_reason=later.finish_reason,
            stop_reason=later.stop_reason,
            cached_tokens=self.cached_tokens or later.cached_tokens,
            error=later.error,
            queue_s=later.queue_s if self.queue_s is None else self.queue_s,
            progress=later.progress or self.progress,
            embedding=later.embedding,
        )


class TextLogprob(msgspec.Struct, frozen=True):
    """One token's log-probability with its text.

    text   the token's bytes as UTF-8, U+FFFD where they are only part of a character
    bytes  the token's true bytes
    rank   1 for the most likely token; None on an alternative whose rank is its place in `top`
    top    the most likely tokens at this position, best first; empty on the alternatives themselves
    """

    token_id: int
    text: str
    bytes: bytes
    logprob: float
    rank: int | None = None
    top: list[TextLogprob] = []


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """The new text of one choice, of one or more tokens; deltas of one choice concatenate.

    text              never ends inside a character; holds back no more than a stop string could still match
    token_ids         tokens since the last delta; up to a few of them may have their text in the next one
    logprobs          one entry per token when requested
    prompt_logprobs   on the first delta when requested; entry 0 is None
    finish_reason     set exactly once, on the choice's last delta
    stop_reason       the stop token id or stop string that ended it; None when that was end-of-sequence
    cached_tokens     prompt tokens taken from the prefix cache, on the first delta
    error             set with finish_reason "error"
    index             which choice: output index + prompt index * n
    queue_s           seconds between admission to the queue and the first step, on the first delta
    progress          before and on the first delta, where the request asks for it
    embedding         what pooling made of a prompt, float32, on its only delta
    """

    text: str
    token_ids: list[int] = []
    logprobs: list[TextLogprob] | None = None
    prompt_logprobs: Sequence[TextLogprob | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    cached_tokens: int = 0
    error: ErrorInfo | None = None
    index: int = 0
    queue_s: float | None = None
    progress: Progress | None = None
    embedding: bytes | None = None

    @property
    def is_progress_only(self) -> bool:
        """Whether it says no more than how far the choice is before its first token."""
        return self.progress is not None and not self.token_ids and self.finish_reason is None
