"""Totals since the scheduler started, as /metrics reports them.

Runs on the engine's event loop.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from streamserve.scheduling.sequence import Sequence
from streamserve.types import Tally, preemption_counts, step_sizes


@dataclass(slots=True)
class Counters:
    """Fields as in `EngineStats`; prefix cache queries and hits are counted in tokens."""

    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    divided_steps: int = 0
    wasted_tokens: int = 0
    tokens_wasted_after_disconnect: int = 0
    step_tokens: Tally = field(default_factory=step_sizes)
    ended_preemptions: Tally = field(default_factory=preemption_counts)

    def admitted(self, sequence: Sequence) -> None:
        """A sequence got its row; only the first time counts, since after a preemption it hits its own blocks."""
        if sequence.num_cached_tokens is not None:
            return
        sequence.num_cached_tokens = min(sequence.num_computed, sequence.num_prompt_tokens)
        self.prompt_tokens += sequence.num_prompt_tokens
        self.prefix_cache_queries += sequence.num_prompt_tokens
        self.prefix_cache_hits += sequence.num_cached_tokens

    def planned(self, num_tokens: int) -> None:
        """A step computes so many tokens."""
        self.steps += 1
        self.step_tokens.observe(num_tokens)

    def preempted(self, sequence: Sequence) -> None:
        """A sequence gave its row and blocks back."""
        self.num_preemptions += 1
        sequence.num_preemptions += 1

    def ended(self, sequence: Sequence) -> None:
        """A sequence is gone, for whatever reason."""
        self.ended_preemptions.observe(sequence.num_preemptions)

    def wasted(self, sequence: Sequence, num_tokens: int) -> None:
        """So many tokens were sampled for a sequence that had ended."""
        self.wasted_tokens += num_tokens
        if sequence.finish_reason == "abort":
            self.tokens_wasted_after_disconnect += num_tokens

    def totals(self) -> dict[str, Any]:
        """A copy of all of them."""
        return asdict(self)


__all__ = ["Counters"]
