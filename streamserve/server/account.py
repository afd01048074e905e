"""What one request costs and when: its usage object, and this worker's metrics.

Fed with every delta on its way out. Lives on one API worker's event loop.
"""

from __future__ import annotations

from time import monotonic

from streamserve.server.metrics import Metrics
from streamserve.server.usage import Usage
from streamserve.types import FinishReason, TextDelta


class Account:
    """One request's tokens and times.

    usage           kept up to date with every delta
    num_prompts, n  the request's shape: choice = output index + prompt index * n
    """

    def __init__(self, usage: Usage, metrics: Metrics, *, num_prompts: int, n: int) -> None:
        self.usage = usage
        self.unfinished = num_prompts * n
        self.last_event_at = self._received_at = monotonic()
        self._first_event_at: float | None = None
        self._last_at: list[float | None] = [None] * (num_prompts * n)
        self._num_tokens = [0] * (num_prompts * n)
        self._queue_s = 0.0
        self._metrics = metrics
        self._n = n

    @property
    def has_begun(self) -> bool:
        return self._first_event_at is not None

    def record(self, delta: TextDelta) -> None:
        """Count a delta: tokens, times, endings."""
        now = monotonic()
        index = delta.index
        last_at = self._last_at[index]
        if last_at is not None:
            self._metrics.inter_token_s.observe(now - last_at)
        elif self._first_event_at is None:
            self._begin(delta, now)
        self._last_at[index] = self.last_event_at = now
        num_tokens = len(delta.token_ids)
        self._num_tokens[index] += num_tokens
        usage = self.usage
        usage.completion_tokens += num_tokens
        if delta.cached_tokens and index % self._n == 0:
            usage.cached_tokens += delta.cached_tokens
        if delta.finish_reason is not None:
            self.unfinished -= 1
            self._metrics.finished.add(1, delta.finish_reason)

    def close(self, unfinished: FinishReason = "abort") -> None:
        """The request has been answered, well or not.

        unfinished  what became of the choices whose end nobody was told: "abort" when the client left, or "error"
        """
        metrics = self._metrics
        metrics.e2e_s.observe(monotonic() - self._received_at)
        metrics.request_prompt_tokens.observe(self.usage.prompt_tokens)
        metrics.request_generation_tokens.observe(self.usage.completion_tokens)
        metrics.request_max_generation_tokens.observe(max(self._num_tokens))
        if self.unfinished:
            metrics.finished.add(self.unfinished, unfinished)
        if self._first_event_at is not None:
            self._close_times(self._first_event_at)

    def _begin(self, delta: TextDelta, now: float) -> None:
        """The first text of the request."""
        self._first_event_at = now
        self._queue_s = min(delta.queue_s or 0.0, now - self._received_at)
        self._metrics.ttft_s.observe(now - self._received_at)
        self._metrics.queue_s.observe(self._queue_s)

    def _close_times(self, first_event_at: float) -> None:
        """Where the time went, of a request that had text."""
        metrics, tokens = self._metrics, self.usage.completion_tokens
        prefill_s = first_event_at - self._received_at - self._queue_s
        decode_s = self.last_event_at - first_event_at
        metrics.prefill_s.observe(prefill_s)
        metrics.decode_s.observe(decode_s)
        metrics.inference_s.observe(prefill_s + decode_s)
        if tokens > 1:
            metrics.per_output_token_s.observe(decode_s / (tokens - 1))
