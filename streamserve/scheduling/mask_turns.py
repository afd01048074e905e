"""Whose masks are computed in a step, where those of all sequences would take so long that others notice: they take turns.

Runs on the engine's event loop. Reads no clock: constraints say how long their masks took. A grammar may be made so that each
of its masks takes as long as the library's limits permit, and a request may have many outputs; such sequences get fewer tokens,
and no other waits for them.
"""

from __future__ import annotations

from collections.abc import Iterable

from streamserve.scheduling.sequence import Order, Sequence

DECODES_S, PROMPTS_S = 0.015, 0.005
"""Processor time that the masks of a step may take, of sequences that decode and behind prompts; one more mask may be begun."""


class MaskTurns:
    """Of one scheduler, from step to step."""

    def __init__(self) -> None:
        self._left_s = 0.0
        self._after: Order | None = None
        self._last: Order | None = None
        self._is_cut = False

    def begin(self, running: Iterable[Sequence]) -> None:
        """A step begins: sequences that had no turn in the one before come first, as far as they can be planned."""
        if not self._is_cut:
            self._after = None
        elif self._last is not None:
            self._after = self._last
        if self._after is not None and not any(self._is_behind(each) and not each.awaits_commit for each in running):
            self._after = None
        self._left_s, self._last, self._is_cut = DECODES_S, None, False

    def begin_prompts(self) -> None:
        """What follows are first tokens, behind prompts."""
        self._left_s = PROMPTS_S

    def has_turn(self, sequence: Sequence) -> bool:
        """Whether the mask of a sequence that decodes may be computed."""
        if sequence.constraint is None:
            return True
        if self._after is not None and not self._is_behind(sequence):
            return False
        if self._left_s <= 0.0:
            self._is_cut = True
            return False
        self._last = sequence.order
        return True

    def has_time(self, sequence: Sequence) -> bool:
        """Whether the mask of a first token may be computed."""
        return sequence.constraint is None or self._left_s > 0.0

    def mask(self, sequence: Sequence) -> bytes | None:
        """The mask of a sequence, whose time counts."""
        if sequence.constraint is None:
            return sequence.bitmask()
        before_s = sequence.constraint.spent_s
        mask = sequence.bitmask()
        self._left_s -= sequence.constraint.spent_s - before_s
        return mask

    def _is_behind(self, sequence: Sequence) -> bool:
        assert self._after is not None
        return sequence.constraint is not None and sequence.order > self._after


__all__ = ["MaskTurns"]
