"""What one request costs and when: its usage object, and this worker's metrics.

Fed with every delta on its way out. Lives on one API worker's event loop.
"""

from __future__ import annotations

from time import monotonic

from streamserve.server.metrics import Metrics
from streamserve.server.usage import Usage
from streamserve.types import TextDelta


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
        self._metrics = metrics
        self._n = n

    @property
    def has_begun(self) -> bool:
        return self._first_event_at is not None

    def record(self, delta: TextDelta) -> None:
        """Count a delta: tokens, times, endings."""
        now = monotonic()
        if self._first_event_at is None:
            self._first_event_at = now
            self._metrics.ttft_s.observe(now - self._received_at)
        else:
            self._metrics.inter_token_s.observe(now - self.last_event_at)
        self.last_event_at = now
        usage = self.usage
        usage.completion_tokens += len(delta.token_ids)
        if delta.cached_tokens and delta.index % self._n == 0:
            usage.cached_tokens += delta.cached_tokens
        if delta.finish_reason is not None:
            self.unfinished -= 1
            self._metrics.finished.add(1, delta.finish_reason)

    def close(self) -> None:
        """The request has been answered, well or not."""
        now = monotonic()
        tokens = self.usage.completion_tokens
        self._metrics.e2e_s.observe(now - self._received_at)
        self._metrics.request_prompt_tokens.observe(self.usage.prompt_tokens)
        self._metrics.request_generation_tokens.observe(tokens)
        if self._first_event_at is not None and tokens > 1:
            self._metrics.per_output_token_s.observe((now - self._first_event_at) / (tokens - 1))
