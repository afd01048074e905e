"""Numbers that one API worker counts up and any of them can read: plain doubles in memory shared by the workers.

Each worker writes its own stretch, so nothing is locked; whoever answers /metrics sums over all stretches. Counting costs a
list index, which is what lets every streamed token be counted.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from collections.abc import Sequence

_DOUBLE_BYTES = 8


class CellMemory:
    """Room for `cells` numbers of each of `workers` processes.

    fd  shared memory made by `create_shared`; without it the memory is this process's own
    """

    def __init__(self, cells: int, *, workers: int = 1, fd: int | None = None) -> None:
        self.cells = cells
        self.workers = workers
        size = cells * workers * _DOUBLE_BYTES
        self._map = mmap.mmap(-1 if fd is None else fd, size)
        self._numbers = memoryview(self._map).cast("d")

    @staticmethod
    def create_shared(cells: int, workers: int) -> int:
        """A file descriptor of zeroed memory, to be handed to every worker."""
        fd = os.memfd_create("streamserve-metrics")
        os.truncate(fd, cells * workers * _DOUBLE_BYTES)
        return fd

    def stretch(self, worker: int) -> memoryview[float]:
        """The numbers that `worker` counts up."""
        return self._numbers[worker * self.cells : (worker + 1) * self.cells]

    def total(self, cell: int) -> float:
        """One number, summed over all workers."""
        return sum(self._numbers[cell :: self.cells])


class Layout:
    """Hands out cells while the metrics are declared; every worker declares the same ones in the same order."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, count: int) -> int:
        first = self.size
        self.size += count
        return first


class Counter:
    """A total, or one total per label value."""

    def __init__(self, layout: Layout, labels: Sequence[str] = ("",)) -> None:
        self._first = layout.take(len(labels))
        self._offsets = {label: offset for offset, label in enumerate(labels)}
        self._cells: memoryview[float] | None = None

    def bind(self, cells: memoryview[float]) -> None:
        self._cells = cells

    def add(self, amount: float = 1.0, label: str = "") -> None:
        assert self._cells is not None
        self._cells[self._first + self._offsets[label]] += amount

    def set(self, value: float) -> None:
        """Make this worker's share `value`; for a level that is measured and not counted."""
        assert self._cells is not None
        self._cells[self._first] = value

    def totals(self, memory: CellMemory) -> dict[str, float]:
        return {label: memory.total(self._first + offset) for label, offset in self._offsets.items()}


class Histogram:
    """Observations by upper bound, with their sum."""

    def __init__(self, layout: Layout, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._first = layout.take(len(self.bounds) + 2)
        self._sum = self._first + len(self.bounds) + 1
        self._cells: memoryview[float] | None = None

    def bind(self, cells: memoryview[float]) -> None:
        self._cells = cells

    def observe(self, value: float) -> None:
        cells = self._cells
        assert cells is not None
        cells[self._first + bisect_left(self.bounds, value)] += 1.0
        cells[self._sum] += value

    def cumulative(self, memory: CellMemory) -> tuple[list[tuple[str, float]], float]:
        """(upper bound, observations up to it) in order, ending with "+Inf"; and the sum of all observations."""
        buckets: list[tuple[str, float]] = []
        count = 0.0
        for offset, bound in enumerate([*map(str, self.bounds), "+Inf"]):
            count += memory.total(self._first + offset)
            buckets.append((bound, count))
        return buckets, memory.total(self._sum)
