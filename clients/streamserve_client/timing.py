"""When the text of a stream arrived."""

from __future__ import annotations

import time
from collections.abc import Callable

from streamserve_client.types import Usage


class Timing:
    """Starts when made; `mark` each arrival of text. All figures in seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start_s = clock()
        self._first_s: float | None = None
        self._last_s = self._start_s

    def mark(self) -> None:
        self._last_s = self._clock()
        if self._first_s is None:
            self._first_s = self._last_s

    @property
    def ttft_s(self) -> float | None:
        """From the request to the first text; None before it."""
        return None if self._first_s is None else self._first_s - self._start_s

    def tokens_per_s(self, usage: Usage | None) -> float | None:
        """Tokens after the first, over the time they took; None for less than two tokens."""
        if usage is None or usage.completion_tokens < 2 or self._first_s is None or self._last_s == self._first_s:
            return None
        return (usage.completion_tokens - 1) / (self._last_s - self._first_s)

    def summary(self, usage: Usage | None) -> str:
        """One line for a person."""
        rate = self.tokens_per_s(usage)
        parts = []
        if self.ttft_s is not None:
            parts.append(f"TTFT {self.ttft_s * 1e3:.0f} ms")
        if rate is not None:
            parts.append(f"{rate:.1f} tokens/s")
        if usage is not None:
            parts.append(f"{usage.prompt_tokens} prompt + {usage.completion_tokens} completion tokens")
        return " · ".join(parts) or "no tokens"
