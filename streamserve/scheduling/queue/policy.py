"""In which order sequences are served, and lists that keep that order.

Runs on the engine's event loop. The order of a sequence never changes: one that was preempted returns to its old place.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from operator import attrgetter

from streamserve.config import SchedulingPolicy
from streamserve.scheduling.sequence import Order, Sequence

_order = attrgetter("order")


def order_of(policy: SchedulingPolicy, priority: int, arrival: int) -> Order:
    """The place of the `arrival`-th sequence: by arrival alone under "fcfs"; lower priority values first under "priority"."""
    return (priority, arrival) if policy == "priority" else (0, arrival)


class PolicyQueue:
    """Sequences in policy order. Adding and removing cost O(log n) comparisons."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def __reversed__(self) -> Iterator[Sequence]:
        return reversed(self._sequences)

    def __contains__(self, sequence: Sequence) -> bool:
        index = bisect_left(self._sequences, sequence.order, key=_order)
        return index < len(self._sequences) and self._sequences[index] is sequence

    @property
    def first(self) -> Sequence | None:
        """The one to serve next."""
        return self._sequences[0] if self._sequences else None

    @property
    def last(self) -> Sequence | None:
        """The one to preempt first: of the lowest priority, and of those the most recent."""
        return self._sequences[-1] if self._sequences else None

    def add(self, sequence: Sequence) -> None:
        self._sequences.insert(bisect_left(self._sequences, sequence.order, key=_order), sequence)

    def remove(self, sequence: Sequence) -> None:
        """Raises `ValueError` when it isn't there."""
        index = bisect_left(self._sequences, sequence.order, key=_order)
        if index == len(self._sequences) or self._sequences[index] is not sequence:
            raise ValueError(f"{sequence.sequence_id} is not in this queue")
        del self._sequences[index]


__all__ = ["PolicyQueue", "order_of"]
