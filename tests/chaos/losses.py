"""When connections of clients may have been lost: while the process at their other end ended, or had no descriptors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

NOTICED_S = 2.0
"""Seconds after a fault within which another connection may still meet it: one that was being made."""


class Losses:
    """Periods of such faults, by the clock that all processes share."""

    def __init__(self) -> None:
        self._periods: list[tuple[float, float]] = []

    @contextmanager
    def possible(self) -> Iterator[None]:
        """Connections may be lost while the block runs."""
        began, number = monotonic(), len(self._periods)
        self._periods.append((began, float("inf")))
        try:
            yield
        finally:
            self._periods[number] = (began, monotonic())

    def explain(self, began: float, ended: float) -> bool:
        """Whether an answer that was asked for and lost at these times met such a fault."""
        return any(start <= ended and began <= end + NOTICED_S for start, end in self._periods)
