"""Accounting of one request: its usage object, this worker's metrics, its trace.

Records every delta on its way out. Lives on one API worker's event loop.
"""

from __future__ import annotations

from time import monotonic
from typing import Protocol

from streamserve.server.telemetry.metrics import Metrics
from streamserve.server.telemetry.request_cost import RequestCost, RequestTimes, TokenCounts
from streamserve.types import FinishReason, TextDelta


class Trace(Protocol):
    """Receives a request's totals."""

    def end(self, cost: RequestCost) -> None:
        """The request has ended. Never blocks, never raises."""
        ...


class Account:
    """One request's tokens and times.

    usage           kept up to date with every delta
    num_prompts, n  the request's shape: choice = output index + prompt index * n
    trace           receives the totals when the request ends
    """

    def __init__(self, usage: TokenCounts, metrics: Metrics, *, num_prompts: int, n: int, trace: Trace | None = None) -> None:
        self.usage = usage
        self.unfinished = num_prompts * n
        self.last_event_at = self._received_at = monotonic()
        self._first_event_at: float | None = None
        self._last_at: list[float | None] = [None] * (num_prompts * n)
        self._num_tokens = [0] * (num_prompts * n)
        self._queue_s = 0.0
        self._metrics = metrics
        self._finish_reasons: list[FinishReason] = []
        self._trace = trace
        self._n = n

    @property
    def has_begun(self) -> bool:
        """Whether the request has had text."""
        return self._first_event_at is not None

    def record(self, delta: TextDelta) -> None:
        """Count a delta: tokens, times, endings."""
        now = monotonic()
        index = delta.index
        last_at = self._last_at[index]
        if last_at is not None:
            self._metrics.inter_token_s.observe(now - last_at)
        elif delta.is_progress_only:
            self.last_event_at = now
            return
        elif self._first_event_at is None:
            self._begin(delta, now)
        self._last_at[index] = self.last_event_at = now
        num_tokens = len(delta.token_ids)
        self._num_tokens[index] += num_tokens
        self.usage.completion_tokens += num_tokens
        if delta.cached_tokens and index % self._n == 0:
            self.usage.cached_tokens += delta.cached_tokens
        if delta.finish_reason is not None:
            self.unfinished -= 1
            self._finish_reasons.append(delta.finish_reason)
            self._metrics.finished.add(1, delta.finish_reason)

    def close(self, unfinished: FinishReason = "abort") -> None:
        """Report the request's totals, once it has been answered or given up.

        unfinished  finish reason of the choices that have none yet: "abort" when the client left, or "error"
        """
        if self.unfinished:
            self._metrics.finished.add(self.unfinished, unfinished)
            self._finish_reasons += [unfinished] * self.unfinished
        cost = RequestCost(
            prompt_tokens=self.usage.prompt_tokens,
            completion_tokens=self.usage.completion_tokens,
            longest_choice=max(self._num_tokens),
            e2e_s=monotonic() - self._received_at,
            times=self._times(),
            finish_reasons=self._finish_reasons,
        )
        self._metrics.count(cost)
        if self._trace is not None:
            self._trace.end(cost)

    def _begin(self, delta: TextDelta, now: float) -> None:
        """Record the first text of the request."""
        self._first_event_at = now
        self._queue_s = min(delta.queue_s or 0.0, now - self._received_at)
        self._metrics.ttft_s.observe(now - self._received_at)

    def _times(self) -> RequestTimes | None:
        first = self._first_event_at
        if first is None:
            return None
        return RequestTimes(self._queue_s, first - self._received_at - self._queue_s, self.last_event_at - first)
