"""What it takes to continue a sequence in another engine: its spec, and every token that was generated for it.

Sampling is keyed by (seed, position), so nothing else is needed: continuing is admitting, with tokens generated already. Kept
by the sequence's channel, on its reader's event loop, because an engine that has ended can't be asked for it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from time import monotonic

import msgspec

from streamserve.engine.given_up import fingerprint
from streamserve.types import SequenceSpec, TokenDelta


class ResumeState:
    """One sequence as another engine can continue it.

    token_ids    all that were delivered; four bytes each, since there may be many and few are ever needed
    num_losses   engines in a row that were lost under it; after the first, only those that generated no token count
    is_suspect   the last engine was lost before it had generated a token of it: the sequence may be the cause
    is_given_up  the last engine was lost, too, while it was the only suspect that it had: the sequence is taken for the cause
    """

    __slots__ = (
        "_admitted_at",
        "_clock",
        "_handed_over",
        "_has_moved",
        "_is_alone",
        "_spec",
        "is_given_up",
        "is_suspect",
        "num_losses",
        "token_ids",
    )

    def __init__(self, spec: SequenceSpec, clock: Callable[[], float] = monotonic) -> None:
        self._spec = spec
        self._clock = clock
        self._admitted_at = clock()
        self.token_ids = array("I", spec.generated_token_ids)
        self.num_losses = 0
        self.is_suspect = self.is_given_up = self._is_alone = self._has_moved = False
        # Tokens there were when the engine got it; None while no engine has it.
        self._handed_over: int | None = len(self.token_ids)

    @property
    def is_out_of_time(self) -> bool:
        return self._spec.max_time_s is not None and self._seconds_left <= 0

    def without_repeats(self, delta: TokenDelta) -> TokenDelta:
        """An engine's first delta of the sequence, less the figures that an earlier engine has reported already."""
        if not (self.num_losses or self._has_moved) or not self.token_ids:
            return delta
        return msgspec.structs.replace(delta, cached_tokens=0, queue_s=None)

    @property
    def has_progressed(self) -> bool:
        """Whether the engine that has it has generated a token."""
        return self._handed_over is not None and len(self.token_ids) > self._handed_over

    @property
    def fingerprint(self) -> bytes:
        """What its request's copies share."""
        return fingerprint(self._spec)

    def engine_lost(self) -> None:
        """Count a loss, unless no engine had the sequence."""
        if self._handed_over is not None:
            has_progressed = self.has_progressed
            self.num_losses = 1 if has_progressed else self.num_losses + 1
            self.is_given_up = self.is_suspect and self._is_alone and not has_progressed
            self.is_suspect = not has_progressed
            self._handed_over = None

    def end_reasoning(self) -> None:
        """Its reasoning has been ended, so that another engine must not begin it again."""
        self._spec = msgspec.structs.replace(self._spec, reasoning_budget=0)

    def engine_left(self) -> None:
        """Another engine will have the sequence, although the one that has it has not been lost."""
        self._has_moved = True

    def hand_over(self, *, is_alone: bool = False) -> SequenceSpec:
        """The `continuation`, from now on in another engine.

        is_alone  no other suspect is handed over before this one has a token
        """
        self._is_alone = is_alone
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
