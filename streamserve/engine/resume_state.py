"""What it takes to continue a sequence in another engine: its spec, and every token that was generated for it.

Sampling is keyed by (seed, position), so nothing else is needed: continuing is admitting, with tokens generated already. Kept
by the sequence's channel, on its reader's event loop, because an engine that has ended can't be asked for it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from time import monotonic

import msgspec

from streamserve.types import SequenceSpec, TokenDelta

MAX_LOSSES = 3
"""Engines in a row that may be lost under a sequence before it gets another token; then the sequence is taken for the cause."""


class ResumeState:
    """One sequence as another engine can continue it.

    token_ids   all that were delivered; four bytes each, since there may be many and few are ever needed
    num_losses  engines in a row that were lost under it; after the first, only those that generated no token count
    """

    __slots__ = ("_admitted_at", "_clock", "_handed_over", "_spec", "num_losses", "token_ids")

    def __init__(self, spec: SequenceSpec, clock: Callable[[], float] = monotonic) -> None:
        self._spec = spec
        self._clock = clock
        self._admitted_at = clock()
        self.token_ids = array("I", spec.generated_token_ids)
        self.num_losses = 0
        # Tokens there were when the engine got it; None while no engine has it.
        self._handed_over: int | None = len(self.token_ids)

    @property
    def is_out_of_time(self) -> bool:
        return self._spec.max_time_s is not None and self._seconds_left <= 0

    def without_repeats(self, delta: TokenDelta) -> TokenDelta:
        """An engine's first delta of the sequence, less the figures that an earlier engine has reported already."""
        if not self.num_losses or not self.token_ids:
            return delta
        return msgspec.structs.replace(delta, cached_tokens=0, queue_s=None)

    @property
    def has_progressed(self) -> bool:
        """Whether the engine that has it has generated a token."""
        return self._handed_over is not None and len(self.token_ids) > self._handed_over

    @property
    def is_suspect(self) -> bool:
        """Whether it may be the cause of its engines' ends."""
        return self.num_losses > 1

    def engine_lost(self) -> None:
        """Count a loss, unless no engine had the sequence."""
        if self._handed_over is not None:
            self.num_losses = 1 if self.has_progressed else self.num_losses + 1
            self._handed_over = None

    def hand_over(self) -> SequenceSpec:
        """The `continuation`, from now on in another engine."""
        self._handed_over = len(self.token_ids)
        return self.continuation()

    def continuation(self) -> SequenceSpec:
        """The sequence as another engine admits it: after the tokens so far, within the time that is left."""
        spec, sampling = self._spec, self._spec.sampling
        if self.token_ids:
            sampling = msgspec.structs.replace(sampling, prompt_logprobs=None)
        return msgspec.structs.replace(
            spec,
            sampling=sampling,
            generated_token_ids=self.token_ids.tolist(),
            max_time_s=None if spec.max_time_s is None else self._seconds_left,
        )

    @property
    def _seconds_left(self) -> float:
        return (self._spec.max_time_s or 0.0) - (self._clock() - self._admitted_at)
