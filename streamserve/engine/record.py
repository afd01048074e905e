"""What it takes to go on with a sequence in another engine: what was asked for, and every token that has come of it.

Sampling is keyed by (seed, position), so nothing else is needed: going on is admitting, with tokens generated already. Kept by
the sequence's channel, on its reader's event loop, because an engine that is gone can be asked nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from time import monotonic

import msgspec

from streamserve.types import SequenceSpec, TokenDelta

MAX_INTERRUPTIONS = 2
"""Engines that a sequence may lose: one that loses more may be what they die of."""


class SequenceRecord:
    """See the module.

    token_ids      all that were delivered; four bytes each, since there may be many and few are ever needed
    interruptions  engines that went away under it
    """

    __slots__ = ("_admitted_at", "_clock", "_spec", "interruptions", "token_ids")

    def __init__(self, spec: SequenceSpec, clock: Callable[[], float] = monotonic) -> None:
        self._spec = spec
        self._clock = clock
        self._admitted_at = clock()
        self.token_ids = array("I", spec.generated_token_ids)
        self.interruptions = 0

    @property
    def is_out_of_time(self) -> bool:
        return self._spec.max_time_s is not None and self._seconds_left <= 0

    def told_once(self, delta: TokenDelta) -> TokenDelta:
        """An engine's first delta of the sequence, without what an earlier engine has told already."""
        if not self.interruptions or not self.token_ids:
            return delta
        return msgspec.structs.replace(delta, cached_tokens=0, queue_s=None)

    def continuation(self) -> SequenceSpec:
        """The sequence as another engine admits it."""
        spec = self._spec
        return msgspec.structs.replace(
            spec,
            generated_token_ids=self.token_ids.tolist(),
            prompt_logprobs=None if self.token_ids else spec.prompt_logprobs,
            max_time_s=None if spec.max_time_s is None else self._seconds_left,
        )

    @property
    def _seconds_left(self) -> float:
        return (self._spec.max_time_s or 0.0) - (self._clock() - self._admitted_at)
